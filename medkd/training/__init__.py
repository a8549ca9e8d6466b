"""Training: the one loop, and one step class a stage."""
