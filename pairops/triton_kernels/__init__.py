"""The Triton kernels and what surrounds them; most import triton, so engines import them late."""
