"""Ranks that share a batch: their group, what they must agree on, blocks sent around a ring."""
