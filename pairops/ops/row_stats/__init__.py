"""Row statistics: the differentiable op over all pairs, on one process or over several ranks."""
