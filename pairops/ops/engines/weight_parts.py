"""Whether the pair weights of bfloat16 embeddings are multiplied as one float16 each, or as two."""

import torch

from pairops.ops.pairs.pairs import Pairs

# Rows of the smaller set: proxies, a batch. Chosen, **not measured yet**: of two sets of 1,024 rows
# the products of second parts take 2 GFLOP each at D = 1,024.
FEW = 1024


def two_parts(pairs: Pairs) -> bool:
    """Do weights need a second part, for the engines that multiply in float16?

    Between rows that nearly coincide weights of opposite sign cancel, and of 11 bits nothing may be
    left; of 22 bits there is what float32 leaves. A second part is one more product a sweep, which
    is next to nothing where one set has few rows. docs/numerics.md has what the others' errors are.
    """
    return pairs.x.dtype == torch.bfloat16 and min(pairs.shape) <= FEW
