"""Parts of weights: a pair weight of bfloat16 embeddings is one float16, or the sum of two."""

import torch

from pairops.ops.pairs.pairs import Pairs

# The rows of the smaller set, of proxies or a batch, at most. Chosen, **not measured yet**: second
# parts take 2 GFLOP for each product of two sets of 1,024 rows at D = 1,024.
FEW = 1024


def two_parts(pairs: Pairs) -> bool:
    """Return whether weights need a second part, in engines that multiply in float16.

    Weights of opposite sign cancel between rows that nearly coincide: 11 bits may leave nothing,
    22 bits leave what float32 does. A second part is one more product a sweep, which is next to
    nothing where one set has few rows. docs/numerics.md lists the errors of the others.
    """
    return two_parts_of(pairs.x.dtype, *pairs.shape)


def two_parts_of(dtype: torch.dtype, n: int, m: int) -> bool:
    """Return the same of a call that is known by its sizes."""
    return dtype == torch.bfloat16 and min(n, m) <= FEW
