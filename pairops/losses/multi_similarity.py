"""Multi-similarity loss: an anchor's hard pairs are mined and weighted. MLCD has no mining."""

from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.pieces import softplus_of
from pairops.ops.terms.functions import affine
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import NEG, POS, Term, highest, lowest, lse

from .objective.keywords import Labelled, Value
from .objective.objective import labelled
from .objective.registration import loss

__all__ = ["mlcd_loss", "ms_loss"]


@loss()
def ms_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    alpha: float | Tensor = 2.0,
    beta: float | Tensor = 50.0,
    base: float | Tensor = 0.5,
    epsilon: float | None = 0.1,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1/α log(1 + Σ_{P∗_i} e^{−α(s_ip − λ)}) + 1/β log(1 + Σ_{N∗_i} e^{β(s_in − λ)}).

    P∗_i holds the positives with s_ip − ε < max_n s_in, and N∗_i the negatives with s_in +
    ε > min_p s_ip. An anchor without positives, or without negatives, has neither and contributes
    0. With `epsilon=None` nothing is mined, and a side without pairs contributes 0. With a distance
    d, s is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        alpha: a number above 0 or a 0-d tensor with gradient: α, the sharpness on positives.
        beta: a number above 0 or a 0-d tensor with gradient: β, the sharpness on negatives.
        base: a number or a 0-d tensor with gradient: λ, a similarity; or a distance, and λ is
            −base.
        epsilon: a number, ε, a difference of similarities or of distances. None: nothing is mined.

    Source:
        Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019. The loss equals
        pytorch-metric-learning's MultiSimilarityLoss, with MultiSimilarityMiner unless
        `epsilon=None`.

    Differs from:
        The official code uses β = 40, leaves self pairs out by value (s < 1 − 1e-5, and exact
        duplicates with them) and fails on an anchor without positives. Here a row's own pair is
        left out by index.
    """
    alpha, beta = number("alpha", alpha, positive=True), number("beta", beta, positive=True)
    slack = None if epsilon is None else number("epsilon", epsilon)
    objective = labelled(x, labels, common)
    pairs = objective.pairs
    base = pairs.at(number("base", base))
    far = near = None
    mined: tuple[Term, ...] = ()
    if slack is not None:
        objective.warn_without_positives()
        # lowest(s) − ε is lowest(s − ε) to the last bit, so the extremes are taken of s ∓ ε.
        far = lowest(POS, 1.0, slack, function=affine, grad=False)
        near = highest(NEG, 1.0, -slack, function=affine, grad=False)
        mined = far, near
    neg, pos = lse(NEG, beta, base, above=far), lse(POS, -alpha, base, below=near)
    pieces = softplus_of(pos, weight=1 / alpha), softplus_of(neg, weight=1 / beta)
    return objective.of_pieces(
        (*mined, neg, pos), pieces, below=near, above=far, positive=pos, negative=neg
    )


@loss()
def mlcd_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    scale: float | Tensor = 64.0,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = log(1 + Σ_n e^{γ s_in}) + log(1 + Σ_p e^{−γ s_ip}).

    A side without pairs adds 0. The references are class centres, and the positives of an anchor
    all centres that it is assigned to, several of them: `positives=(rows, cols)` lists them, or
    labels (N, C) with `ref_labels=torch.eye(C)`. With a distance d, s is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        scale: a number above 0 or a 0-d tensor with gradient: γ.

    Source:
        An et al., Multi-Label Cluster Discrimination, ECCV 2024.

    Differs from:
        The paper compares with a sample of the centres; here all of them are compared. No public
        code confirms this form: the paper's training code is not public, and a later one of the
        same team takes eight labels one by one, in a softmax each.
    """
    scale = number("scale", scale, positive=True)
    objective = labelled(x, labels, common)
    pos, neg = lse(POS, -scale, 0.0), lse(NEG, scale, 0.0)
    pieces = softplus_of(pos), softplus_of(neg)
    return objective.of_pieces((pos, neg), pieces, positive=pos, negative=neg)
