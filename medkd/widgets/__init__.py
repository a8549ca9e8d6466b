"""Interactive views for JupyterLab; each has a static counterpart in `medkd.report` with the same content."""
