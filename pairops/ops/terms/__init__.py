"""Terms: what one statistic gathers over the pairs of a row, and the recipe that names it."""
