"""Losses: distillation, contrast, low rank, gradient-guided weights, self-distillation on pseudo-labels."""
