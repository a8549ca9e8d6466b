"""A trained network outside the lab: exported with its preprocessing and model card, and used on images."""
