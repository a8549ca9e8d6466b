"""What a reviewer needs of a study, in one folder."""
