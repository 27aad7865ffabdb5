"""The benchmark: one command, `python -m bench`, sets pairops beside what people use today."""
