"""Terms: statistics over the pairs of a row, and the recipes that name them."""
