"""Training: the one loop, and one step class per stage."""
