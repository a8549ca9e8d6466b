"""Evaluation: features, metrics with intervals, few-shot classification, embeddings."""
