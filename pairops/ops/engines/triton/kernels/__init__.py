"""The Triton kernels themselves; they import triton, so engines import them late."""
