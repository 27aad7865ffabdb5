"""The blockwise engine: tiles of the matrix in plain torch, on any device."""
