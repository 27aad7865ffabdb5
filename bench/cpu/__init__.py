"""Benchmarks of one process on a CPU: the comparison, the sweeps of the engine cpu, retrieval."""
