"""A look inside a loss: the weight of every pair, the mined pairs, the memory of a step."""
