"""InfoNCE with all its keywords: the whole matrix of every direction, and a mask of who counts."""

import torch
from torch import Tensor

from oracle.rows import closeness

__all__ = ["info_nce_loss"]


def info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    *,
    temperature=0.07,
    directions=("xy", "yx"),
    symmetric=None,
    partition="separate",
    own_negatives: Tensor | None = None,  # (N, K, D)
    false_negatives=None,
    ids: Tensor | None = None,  # (N,)
    ref_ids: Tensor | None = None,  # (M,)
    log_q: Tensor | None = None,  # (M,)
    guide: tuple[Tensor, Tensor] | None = None,  # (N, E), (M, E)
    guide_margin=0.0,
    guide_relative=False,
    label_smoothing=0.0,
    queue: Tensor | None = None,  # (Q, D)
    queue_only=False,
    **pairing,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018): the mean over directions of the cross entropy of row i,
    target i, among row i's candidates; "xy" and "yx" are CLIP's two ways.

    The rows of y beyond those of x are negatives of every row.
    """
    if symmetric is not None:
        directions = ("xy", "yx") if symmetric else ("xy",)
    n, rows, cols = len(x), torch.arange(len(x)), torch.arange(len(y))
    matrix = closeness(x, y, **pairing)
    own = matrix.diagonal()  # (N,)
    bound = None if false_negatives is None else (own + false_negatives).detach()[:, None]
    names = {"x": rows if ids is None else ids, "y": cols if ids is None else ref_ids}
    if ids is not None and ref_ids is None:
        names["y"] = ids
    found = []
    for way in directions:
        anchors, others = (x if side == "x" else y for side in way)
        s = matrix if way == "xy" else matrix[:, :n].T if way == "yx" else None
        if s is None:
            s = closeness(anchors[:n], others, **pairing)
        is_candidate = rows[:, None] != torch.arange(len(others))
        counts = is_candidate & (names[way[0]][:n, None] != names[way[1]])
        if bound is not None:
            counts = counts & ~(s > bound)
        if guide is not None:
            unit = dict(zip("xy", (closeness_of(guide, k) for k in range(2)), strict=True))
            rated = unit[way[0]][:n] @ unit[way[1]].T
            bar = (unit["x"] * unit["y"][:n]).sum(1)
            bar = bar - (bar.abs() if guide_relative else 1) * guide_margin
            counts = counts & ~(rated > bar[:, None])
        z, target = s / temperature, own / temperature
        if log_q is not None and way in ("xy", "yy"):
            z = z - log_q
            target = target - log_q[:n] if way == "xy" else target
        parts = [(z, counts, is_candidate)]
        if way == "xy":
            parts = [] if queue_only else parts
            further = [] if own_negatives is None else [own_of(x, own_negatives, pairing)]
            further += [] if queue is None else [closeness(x, queue.detach(), **pairing)]
            for s in further:
                kept = torch.ones_like(s, dtype=torch.bool) if bound is None else ~(s > bound)
                parts.append((s / temperature, kept, torch.ones_like(kept)))
        found.append((*[torch.cat(part, 1) for part in zip(*parts, strict=True)], target))
    if partition == "joint":
        target = found[directions.index("xy") if "xy" in directions else 0][3]
        if "xy" not in directions:
            target = own / temperature
        joined = [torch.cat(part, 1) for part in list(zip(*found, strict=True))[:3]]
        return cross_entropy(*joined, target, label_smoothing)
    return torch.stack([cross_entropy(*one, label_smoothing) for one in found]).mean(0)


def closeness_of(guide: tuple[Tensor, Tensor], k: int) -> Tensor:
    unit = guide[k].double()
    return unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-12)


def own_of(x: Tensor, own_negatives: Tensor, pairing) -> Tensor:  # (N, K)
    if not len(x):
        return x.new_zeros(own_negatives.shape[:2])
    return torch.cat([closeness(x[[i]], own_negatives[i], **pairing) for i in range(len(x))])


def cross_entropy(z: Tensor, counts: Tensor, is_candidate: Tensor, target: Tensor, smoothing):
    """As torch's, with label smoothing over all candidates; what does not count adds nothing."""
    left = z.masked_fill(~counts, -torch.inf)
    above = left - target[:, None]
    # A tiny loss is more than a difference of large numbers; of a large one the power overflows.
    tiny = torch.log1p(torch.exp(above.clamp(max=80)).sum(1))
    zero = torch.zeros_like(target)[:, None]
    losses = torch.where((above > 80).any(1), torch.cat([zero, above], 1).logsumexp(1), tiny)
    log_sum = target + losses
    if not smoothing:
        return losses
    every = losses + torch.where(counts, log_sum[:, None] - z, 0).sum(1)
    classes = is_candidate.sum(1).to(z.dtype) + 1
    return (1 - smoothing) * losses + smoothing / classes * every
