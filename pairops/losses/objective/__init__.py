"""What every loss has besides its formula: keywords, a reduction, checked numbers."""
