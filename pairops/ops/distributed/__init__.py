"""Ranks that share a batch: their group, agreement on arguments, blocks sent around a ring."""
