"""Functions with hand-written derivatives that all of torch's transforms can follow."""
