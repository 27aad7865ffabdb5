"""Benchmarks of one process on a CPU: the comparison, the native sweeps, retrieval."""
