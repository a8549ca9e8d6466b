"""Training: the one loop, and one step function a stage."""
