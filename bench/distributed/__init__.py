"""Benchmarks of several ranks, each a process."""
