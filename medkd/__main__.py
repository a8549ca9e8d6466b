"""`python -m medkd` is the `medkd` command."""

from medkd.cli import app

app(prog_name="medkd")
