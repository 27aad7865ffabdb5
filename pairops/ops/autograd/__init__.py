"""Functions with derivatives of their own, through which all of torch's transforms pass."""
