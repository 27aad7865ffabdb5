"""Help for training loops: a step in chunks, and references from earlier batches."""
