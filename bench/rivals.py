"""The rivals: losses by hand over the N×N matrix, and those of pytorch-metric-learning.

The hand-written losses are what a careful user of torch would write: similarities once, masks as
booleans, 16-bit similarities widened before the exponential. They see the similarities of some
anchors to all candidates, so that the guard can also take their value a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

# ── pairing by label: similarities (B, N) and who is positive and negative for whom, both (B, N) ──


def ms(
    s: Tensor,
    positive: Tensor,
    negative: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """Multi-similarity with its miner. exp is safe: cosines keep it below e^(beta (1 - base))."""
    far = s.detach().masked_fill(~positive, inf).amin(1, keepdim=True)
    near = s.detach().masked_fill(~negative, -inf).amax(1, keepdim=True)
    positive = positive & (s < near + epsilon)
    negative = negative & (s > far - epsilon)
    pos = torch.where(positive, torch.exp(-alpha * (s - base)), 0).sum(1)
    neg = torch.where(negative, torch.exp(beta * (s - base)), 0).sum(1)
    return torch.log1p(pos) / alpha + torch.log1p(neg) / beta


def contrastive(
    s: Tensor,
    positive: Tensor,
    negative: Tensor,
    pos_margin: float = 1.0,
    neg_margin: float = 0.5,
) -> Tensor:
    pull = torch.where(positive, F.relu(pos_margin - s), 0)
    push = torch.where(negative, F.relu(s - neg_margin), 0)
    return (pull + push).sum(1)


def supcon(s: Tensor, positive: Tensor, negative: Tensor, temperature: float = 0.1) -> Tensor:
    logits = s / temperature
    everyone = logits.masked_fill(~(positive | negative), -inf).logsumexp(1)
    count = positive.sum(1)
    mean = torch.where(positive, logits, 0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, everyone - mean, 0)


def triplet(s: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.05) -> Tensor:
    """Batch-hard: the farthest positive against the nearest negative of each anchor."""
    far = s.masked_fill(~positive, inf).amin(1)
    near = s.masked_fill(~negative, -inf).amax(1)
    return F.relu(near - far + margin)


# ── pairing by index: similarities (B, N) and the column that belongs to each row, (B,) ──


def info_nce(s: Tensor, own: Tensor, temperature: float = 0.07) -> Tensor:
    """One way; the loss is the mean of both."""
    return F.cross_entropy(s / temperature, own, reduction="none")


def siglip(s: Tensor, own: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * s + bias
    ours = own[:, None] == torch.arange(s.shape[1], device=s.device)
    return -F.logsigmoid(torch.where(ours, logits, -logits)).sum(1)


LABELLED = {"ms": ms, "contrastive": contrastive, "supcon": supcon, "triplet": triplet}
PAIRED = {"info_nce": info_nce, "siglip": siglip}
BOTH_WAYS = {"info_nce"}


def similarities(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of rows that are already of length one, in fp32 at the least."""
    return (x @ y.T).to(torch.promote_types(x.dtype, torch.float32))


def sides(labels: Tensor, anchors: slice) -> tuple[Tensor, Tensor]:
    """Masks (B, N) of the positives and the negatives of the anchors; oneself is neither."""
    same = labels[anchors, None] == labels
    index = torch.arange(len(labels), device=labels.device)
    return same & (index[anchors, None] != index), ~same


def by_hand(loss: str) -> Callable[..., Tensor]:
    """The loss as one function `(x, labels or y, **learned)` that holds the N×N matrix."""
    if loss in LABELLED:

        def whole(x: Tensor, labels: Tensor) -> Tensor:
            unit = F.normalize(x)
            return LABELLED[loss](similarities(unit, unit), *sides(labels, slice(None))).mean()

        return whole
    if loss in PAIRED:

        def whole_of_two(x: Tensor, y: Tensor, **learned: Tensor) -> Tensor:
            s = similarities(F.normalize(x), F.normalize(y))
            own = torch.arange(len(x), device=x.device)
            value = PAIRED[loss](s, own, **learned).mean()
            if loss in BOTH_WAYS:
                value = (value + PAIRED[loss](s.T, own, **learned).mean()) / 2
            return value

        return whole_of_two
    raise NotImplementedError(f"bench/rivals.py has no {loss} written by hand")


def by_pytorch_metric_learning(loss: str) -> Callable[..., Tensor]:
    """Loss and miner of pytorch-metric-learning, with the reducer that gives our mean."""
    from pytorch_metric_learning import distances, miners, reducers
    from pytorch_metric_learning import losses as pml

    if loss == "ms":
        ms_loss, ms_miner = pml.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)
        return lambda x, labels: ms_loss(x, labels, ms_miner(x, labels))
    if loss == "contrastive":
        pairs = pml.ContrastiveLoss(
            1.0, 0.5, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer()
        )
        return lambda x, labels: pairs(x, labels) / len(x)
    if loss == "supcon":
        return pml.SupConLoss(0.1, reducer=reducers.MeanReducer())
    if loss == "triplet":
        cosine = distances.CosineSimilarity()
        hinge = pml.TripletMarginLoss(0.05, distance=cosine, reducer=reducers.SumReducer())
        hardest = miners.BatchHardMiner(distance=cosine)
        return lambda x, labels: hinge(x, labels, hardest(x, labels)) / len(x)
    if loss == "info_nce":
        # With one positive per row SupConLoss is InfoNCE; the library's own NTXentLoss would hold
        # (positives × negatives) numbers, which is N³ here.
        one_way = pml.SelfSupervisedLoss(
            pml.SupConLoss(0.07, reducer=reducers.MeanReducer()), symmetric=False
        )
        return lambda x, y: (one_way(x, y) + one_way(y, x)) / 2
    raise NotImplementedError(f"pytorch-metric-learning has no {loss}")
