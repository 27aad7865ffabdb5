"""What the losses mine, as lists of indices: for miners' users, and for the curious."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.distributed.allocation import refusing
from pairops.ops.pairs.pairs import Pairing, Pairs
from pairops.ops.pairs.signatures import keywords_of, spelled_out
from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.positive_rows import PositiveRows
from pairops.ops.terms.checks import one_of, plain_number
from pairops.ops.terms.functions import affine
from pairops.ops.terms.term import NEG, POS, highest, lowest

from .pair_weights import Block, extreme_indices

Mined = Literal["multi_similarity", "hard", "semihard"]

_STRIP = 1 << 24  # similarities that are looked at together


@spelled_out(keywords_of(Pairs.of))
@refusing
def mine(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    mining: Mined = "multi_similarity",
    epsilon: float = 0.1,
    **pairing: Unpack[Pairing],
) -> tuple[Tensor, ...]:
    """List the pairs or triplets that a loss mines, as pytorch-metric-learning's miners do.

    How many there are depends on the values, which on a GPU are waited for. Training needs no such
    list, since the losses mine on their own. A pair that lies on its threshold within rounding may
    be listed here and dropped there.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers. Rows with equal labels are positives of each other, other rows
            negatives.
        mining: "multi_similarity", the pairs of `ms_loss`, where s_ip − ε < max_n s_in and s_in +
            ε > min_p s_ip, as MultiSimilarityMiner(epsilon); "hard" and "semihard", the triplets of
            `triplet_loss`, the first as BatchHardMiner.
        epsilon: a number, ε of "multi_similarity".

    Returns:
        int64 indices, of x and of the references, by anchor: (anchors, positives, anchors,
        negatives) with mining="multi_similarity", else (anchors, positives, negatives).

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.
    """
    one_of("mining", mining, get_args(Mined))
    plain = plain_number("epsilon", epsilon)
    pairs = Pairs.of(x, labels, **pairing).of_one_rank("mine")
    with torch.no_grad(), no_autocast(x.device.type):
        if mining == "multi_similarity":
            return _multi_similarity(pairs, plain)
        if mining == "hard":
            return _hard(pairs)
        return _semihard(pairs)


def _multi_similarity(pairs: Pairs, epsilon: float) -> tuple[Tensor, ...]:
    far, near = row_stats(
        pairs,
        lowest(POS, 1.0, epsilon, function=affine, grad=False),
        highest(NEG, 1.0, -epsilon, function=affine, grad=False),
    )
    rows = PositiveRows.of(pairs)
    selected = ~(rows.score >= near[rows.anchor])
    return (*_by_anchor(rows.anchor[selected], rows.partner[selected]), *_above(pairs, far))


def _above(pairs: Pairs, bound: Tensor) -> tuple[Tensor, Tensor]:
    """(anchors, negatives) as close as not to be below their anchor's bound (N,)."""
    n, m = pairs.shape
    index = torch.arange(max(n, m), device=bound.device)
    found = [index.new_empty((2, 0))]
    for rows in index[:n].split(max(1, _STRIP // max(1, m))):
        block = Block(pairs, rows, index[:m])
        negative = block.present & ~block.positive & ~(block.t <= bound[rows].unsqueeze(1))
        at = negative.nonzero()
        found.append(torch.stack([rows[at[:, 0]], at[:, 1]]))
    anchors, negatives = torch.cat(found, 1)
    return _by_anchor(anchors, negatives)


def _hard(pairs: Pairs) -> tuple[Tensor, ...]:
    far, near = extreme_indices(pairs, lowest(POS)), extreme_indices(pairs, highest(NEG))
    (anchors,) = ((far >= 0) & (near >= 0)).nonzero(as_tuple=True)
    return anchors, far[anchors], near[anchors]


def _semihard(pairs: Pairs) -> tuple[Tensor, ...]:
    rows = PositiveRows.of(pairs)
    near = extreme_indices(rows.pairs, highest(NEG, below=rows.score))
    farthest = extreme_indices(pairs, lowest(NEG))[rows.anchor]
    negatives = torch.where(near < 0, farthest, near)
    some = negatives >= 0
    order = _order(rows.anchor[some], rows.partner[some])
    return tuple([z[some][order] for z in (rows.anchor, rows.partner, negatives)])


def _by_anchor(anchors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    order = _order(anchors, others)
    return anchors[order], others[order]


def _order(anchors: Tensor, others: Tensor) -> Any:
    inner = torch.argsort(others, stable=True)
    return inner[torch.argsort(anchors[inner], stable=True)]
