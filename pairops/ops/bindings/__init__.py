"""The compiled extension, its CUDA kernels, and facts about devices."""
