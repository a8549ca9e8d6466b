"""Reports: figures and tables, notebooks run headlessly, and the page that shows them."""
