"""Pairs: two sets of embeddings, who is positive for whom, and how two rows are compared."""
