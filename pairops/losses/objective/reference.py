"""The reference of an anchor: a similarity near its positives, which a softmax subtracts first."""

from dataclasses import replace

import torch
from torch import Tensor

from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.term import POS, highest


def reference(pairs: Pairs) -> Tensor:
    """(N,) the highest similarity of a positive, 0 for an anchor without one; it has no gradient.

    A softmax loss is the same whatever is subtracted from all similarities of an anchor, and so are
    its gradients. But log Σ e^{s/τ} − s/τ of large numbers leaves little of a small loss, and
    nothing of one that is smaller than their rounding. Of s − reference it leaves all.
    """
    (near,) = row_stats(pairs, highest(POS, grad=False))
    return torch.where(near == -torch.inf, 0.0, near)


def own_reference(pairs: Pairs) -> Tensor:
    """The same for pairs by index: the positive is a row of this rank, which asks no other."""
    return reference(replace(pairs, shards=None))
