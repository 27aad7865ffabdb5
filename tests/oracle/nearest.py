"""The losses that look for a row: in a queue, or among the hardest pairs of a batch."""

import torch
from torch import Tensor

from oracle.rows import Rows, closeness, softplus
from oracle.two_sets import info_nce_loss

__all__ = ["nnclr_loss", "soft_triplet_loss"]


def _first_highest(s: Tensor) -> int:
    """Return the index of the maximum, of equal ones of the first; see `rows.highest`."""
    s = s.detach()
    return int(s.isclose(s.max(), rtol=1e-13, atol=1e-15, equal_nan=True).nonzero()[0, 0])


def nnclr_loss(x, y, queue, *, temperature=0.1, symmetric=True, **pairing) -> Tensor:
    """NNCLR (Dwibedi et al. 2021): InfoNCE one way of the neighbour of each row in the queue
    against the other view; symmetric: the mean of this and of the same with the views exchanged."""
    queue = queue.detach().to(x.dtype)

    def way(x: Tensor, y: Tensor) -> Tensor:
        near = [_first_highest(row) for row in closeness(x, queue, **pairing)]
        q = queue[torch.tensor(near, dtype=torch.int64, device=x.device)]
        return info_nce_loss(q, y, temperature=temperature, symmetric=False, **pairing)

    return way(x, y) / 2 + way(y, x) / 2 if symmetric else way(x, y)


def soft_triplet_loss(
    x, labels, teacher, *, ref_emb=None, ref_labels=None, ref_teacher=None, distance="l2",
    normalize=None, ignore_index=-100, **pairing,
) -> Tensor:  # fmt: skip
    """MMT's soft triplet loss (Ge et al. 2020): the cross entropy of the softmax over the distances
    to the hardest positive and negative, with that of the teacher's distances of the same pairs.
    0 for an anchor that lacks one of them."""
    rows = Rows(
        x, labels, ref_emb=ref_emb, ref_labels=ref_labels, distance=distance, normalize=normalize,
        ignore_index=ignore_index, **pairing,
    )  # fmt: skip
    others, y = (labels, teacher) if ref_emb is None else (ref_labels, ref_teacher)
    kept = torch.arange(len(y))
    if ignore_index is not None and len(kept) != rows.t.shape[1]:
        kept = kept[others.long() != ignore_index]
    dtype = rows.t.dtype
    losses = []
    for row, anchor in enumerate(rows.anchors.tolist()):
        t, pos, neg = rows.t[row], rows.positive[row], rows.negative[row]
        if not pos.any() or not neg.any():
            losses.append(t.new_zeros(()))
            continue
        hardest = (
            int(pos.nonzero()[_first_highest(-t[pos]), 0]),
            int(neg.nonzero()[_first_highest(t[neg]), 0]),
        )
        taught = -closeness(
            teacher[anchor, None].detach(), y[kept[list(hardest)]].detach(), distance, normalize,
            dtype,
        )[0]  # fmt: skip
        d = -t[list(hardest)]
        share = taught.softmax(0)
        losses.append(share[0] * softplus(d[1] - d[0]) + share[1] * softplus(d[0] - d[1]))
    return rows.spread(losses)
