"""SigLIP: every pair of two sets is told by a sigmoid whether it belongs together."""

from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.pieces import linear
from pairops.ops.terms.functions import softplus
from pairops.ops.terms.term import NEG, POS, total

from .objective.keywords import Paired, Value
from .objective.objective import paired
from .objective.registration import loss
from .objective.scalars import number

__all__ = ["siglip_loss"]


@loss()
def siglip_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = Σ_j log(1 + exp(−z_ij (t s_ij + b))), z_ii = 1 and z_ij = −1 elsewhere.

    scale, bias: t and b; numbers or 0-d tensors with gradient; the defaults are those with which
    the paper starts to train. Rows of y beyond the N-th are negatives. Other arguments: as in
    `info_nce_loss`.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; equal to open_clip's
    SigLipLoss with logit_scale = t.
    """
    scale, bias = number("scale", scale), number("bias", bias)
    objective = paired(x, y, common)
    pos = total(POS, -scale, -bias, function=softplus)
    neg = total(NEG, scale, bias, function=softplus)
    return objective.of_pieces((pos, neg), [linear(pos), linear(neg)])
