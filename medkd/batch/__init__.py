"""Whole studies: a grid of parameters over cohorts, run by Dask on this machine or on a cluster."""
