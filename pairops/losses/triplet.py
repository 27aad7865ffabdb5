"""Triplet loss with batch-hard mining: the farthest positive against the nearest negative."""

from torch import Tensor, relu
from typing_extensions import Unpack

from ..pairs import Pairing, Pairs
from ..stats import row_stats
from ..terms import NEG, POS, highest, lowest
from .reduction import Reduction, check_reduction, number, reduce


def triplet_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    margin: float | Tensor = 0.05,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    **pairing: Unpack[Pairing],
) -> Tensor:
    """ℓ_i = [max_n s_in − min_p s_ip + margin]₊, 0 for an anchor without positives or negatives.

    margin: a difference of similarities; a number or a 0-d tensor with gradient. Other arguments,
    errors and the returned dtype: as in `ms_loss`. Of equal extremes the lowest index gets the
    gradient.

    Source: Hermans et al., In Defense of the Triplet Loss, 2017, with cosine similarity in place of
    a distance. sentence-transformers counts an anchor without positives as if its farthest were at
    distance 0.
    """
    margin = number("margin", margin)
    pairs = Pairs.of(x, labels, **pairing)
    check_reduction(reduction, weight, pairs)
    far, near = row_stats(pairs, lowest(POS), highest(NEG))
    return reduce(relu(near - far + margin), pairs, weight, reduction)
