"""The CUDA engine: calls of the kernels in `csrc/cuda/`."""
