"""InfoNCE with weighted negatives: every sum as its paper writes it, in ordinary numbers."""

import torch
from torch import Tensor

from oracle.info_nce import own_of
from oracle.rows import closeness

__all__ = ["hard_negative_info_nce_loss"]


def hard_negative_info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    *,
    temperature=0.05,
    hardness=None,
    hardened="all",
    concentration=None,
    debias=0.0,
    directions=("xy",),
    partition="joint",
    own_negatives: Tensor | None = None,  # (N, K, D)
    ids: Tensor | None = None,  # (N,)
    ref_ids: Tensor | None = None,  # (M,)
    **pairing,
) -> Tensor:
    """log(1 + R e^{-s_ii / T}). R is sum e^{s / T + alpha s} with alpha s held constant (LLaVE and
    EmbeddingGemma, 2025), or the reweighted and debiased sum of Robinson et al. 2021."""
    n, kappa = len(x), 1 / temperature
    own = closeness(x, y, **pairing).diagonal()
    rows, cols = torch.arange(n), torch.arange(len(y))
    names = (
        {"x": rows, "y": cols}
        if ids is None
        else {"x": ids, "y": ids if ref_ids is None else ref_ids}
    )
    found = []
    for way in directions:
        anchors, others = (x if side == "x" else y for side in way)
        if way == "yx":
            s = closeness(x, y, **pairing)[:, :n].T
        else:
            s = closeness(anchors[:n], others, **pairing)
        counts = rows[:, None] != torch.arange(len(others))
        counts = counts & (names[way[0]][:n, None] != names[way[1]])
        found.append(
            (s, counts, torch.full_like(s, way == "xy" and hardened in ("all", "in_batch")))
        )
        if way == "xy" and own_negatives is not None:
            s = own_of(x, own_negatives, pairing)
            hard = torch.full_like(s, hardened in ("all", "own"))
            found.append((s, torch.ones_like(s, dtype=torch.bool), hard))
            if partition == "separate":
                a, b = found[-2:]
                found[-2:] = [tuple(torch.cat(part, 1) for part in zip(a, b, strict=True))]
    if partition == "joint":
        found = [tuple(torch.cat(part, 1) for part in zip(*found, strict=True))]
    of_parts = []
    for s, counts, hard in found:
        alpha = 0 if hardness is None else hardness * hard
        beta = 1.0 if concentration is None else concentration

        def summed(z: Tensor, counts: Tensor = counts) -> Tensor:
            # Relative to the positive, since e^{s / T} overflows.
            return torch.where(counts, torch.exp(z), 0).sum(1)

        if hardness is not None:
            ratio = summed(kappa * (s - own[:, None]) + alpha * s.detach())
        else:
            number = counts.sum(1)
            c = own.detach()[:, None]
            hardest = summed((1 + beta) * kappa * (s - c)) / summed(beta * kappa * (s - c)).clamp(
                min=torch.finfo(s.dtype).tiny
            )
            most = kappa * (own - own.detach())
            ratio = (number * hardest - debias * number * torch.exp(most)) / (1 - debias)
            ratio = torch.maximum(ratio, number * torch.exp(-kappa * (1 + own.detach())))
            ratio = ratio * torch.exp(-most)
        of_parts.append(torch.log1p(ratio))
    return torch.stack(of_parts).mean(0)
