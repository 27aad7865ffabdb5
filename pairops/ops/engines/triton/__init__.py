"""The Triton engines: kernels written out per recipe, tile by tile or over chunks of torch.mm."""
