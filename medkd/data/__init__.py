"""Cohorts: one table of samples with their images and vectors, folds, views and few-shot tasks."""
