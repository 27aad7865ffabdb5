"""SigLIP: a sigmoid decides for every pair of two sets whether it belongs together."""

from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.pieces import linear
from pairops.ops.terms.functions import softplus
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, total

from .objective.keywords import Paired, Value
from .objective.objective import paired
from .objective.registration import loss

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

    Rows of y beyond the N-th are negatives. `weight` is one factor per row of x. With a distance d,
    s is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (M, D) of the dtype of x, with M ≥ N. y_i is the one positive of x_i.
        scale: a number or a 0-d tensor with gradient: t. The default is the paper's at the start of
            training.
        bias: a number or a 0-d tensor with gradient: b. The default is the paper's at the start of
            training.

    Source:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023. The loss equals open_clip's
        SigLipLoss with logit_scale = t.
    """
    scale, bias = number("scale", scale), number("bias", bias)
    objective = paired(x, y, common)
    pos = total(POS, -scale, -bias, function=softplus)
    neg = total(NEG, scale, bias, function=softplus)
    return objective.of_pieces((pos, neg), [linear(pos), linear(neg)])
