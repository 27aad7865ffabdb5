"""Adapters for code that was written for other libraries; each is imported by its own name."""
