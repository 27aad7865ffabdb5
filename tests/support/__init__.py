"""What several test modules share: problems, cases, comparisons, ranks, and programs of `make`."""
