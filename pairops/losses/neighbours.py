"""NNCLR: a row's nearest neighbour in a queue of earlier rows stands for the row itself."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.pairs.by_index import pairs_by_index
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.checks import flag
from pairops.ops.terms.tensor_checks import check_embeddings, number
from pairops.ops.terms.term import ALL, NEG, highest, lse

from .info_nce import self_and_others
from .objective.keywords import Paired, Value
from .objective.objective import Objective, all_negatives, check_one_for_each, split
from .objective.registration import loss

__all__ = ["nnclr_loss"]


@loss("queue")
def nnclr_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    queue: Tensor,  # (Q, D)
    *,
    temperature: float | Tensor = 0.1,
    symmetric: bool = True,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log Σ_j e^{⟨q_i, y_j⟩/τ} − ⟨q_i, y_i⟩/τ, q_i the row of the queue nearest to x_i.

    The neighbour is found without a matrix (N, Q), and is held constant: with symmetric=False x
    gets no gradient. Rows are compared as `distance` and `normalize` say, those of the queue too,
    so it may hold embeddings of any length; it may hold no row that is not filled yet. `weight` is
    one factor per pair (i, i). With a distance d, ⟨·, ·⟩ is −d. With `group` each rank finds its
    neighbours in the whole queue, which it has in full, and compares them with the y of all ranks.

    A predictor h, as in the paper, is in y alone: with projections z and predictions p = h(z) of
    two views write `(nnclr_loss(z1, p2, queue, symmetric=False) + nnclr_loss(z2, p1, queue,
    symmetric=False)) / 2`.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings of one view.
        y: (N, D) of the dtype of x, the embeddings of the other view.
        queue: (Q, D) floating point, cast to the dtype of x; earlier embeddings, Q ≥ 1.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        symmetric: True takes the mean of this loss and of the same with x and y exchanged.

    Source:
        Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of
        Visual Representations (NNCLR), ICCV 2021.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    flag("symmetric", symmetric)
    check_one_for_each(x, y)
    asked, comparing = split(common, x)
    check_embeddings("queue", queue)
    queue = queue.detach().to(x.dtype)
    check_embeddings("queue", queue, like=("x", x))
    if not queue.shape[0]:
        raise ValueError("queue has 0 rows; it must have at least 1, of which one is the nearest")
    compared = [
        pairs_by_index(_nearest(rows, queue, comparing), others, **comparing)
        for rows, others in ((x, y), (y, x))[: 1 + symmetric]
    ]
    terms = self_and_others(scale)
    losses = []
    for pairs in compared:
        _, pos, neg = row_stats(pairs, *terms)
        losses.append(log1p_exp(neg - pos))
    objective = Objective.of(compared[0], **asked)
    return objective.value(torch.stack(losses).mean(0), rows=lse(ALL, scale, 0.0))


def _nearest(x: Tensor, queue: Tensor, comparing: dict[str, Any]) -> Tensor:
    """Return (N, D) the row of the queue that is nearest to each of x."""
    with torch.no_grad():
        pairs = all_negatives(x.detach(), queue, **{**comparing, "group": None})
        ((_, index),) = row_stats(pairs, highest(NEG, index=True))
        return queue[index]
