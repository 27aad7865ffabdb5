"""The compiled extension, its CUDA kernels, and what is known of a GPU."""
