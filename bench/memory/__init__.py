"""Benchmarks of memory: the peak of a process, and of a step through a network in chunks."""
