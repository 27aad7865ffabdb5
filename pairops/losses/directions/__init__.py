"""What InfoNCE and its kin compare: x with y, y with x, and each with itself."""
