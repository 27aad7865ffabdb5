"""Losses as people write them by hand in torch over the whole matrix: the rivals of small batches.

They are what a good engineer writes without profiling, and are not tuned. x, y: (N, D); labels:
(N,). `bench.rivals` has others, which see some anchors at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sides(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (N, N): positives, negatives, oneself."""
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = labels[:, None] == labels
    return same & ~own, ~same, own


def ms(
    x: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T
    pos, neg, _ = sides(labels)
    far = torch.where(pos, s, torch.inf).amin(1).detach()
    near = torch.where(neg, s, -torch.inf).amax(1).detach()
    p, n = pos & (s - epsilon < near[:, None]), neg & (s + epsilon > far[:, None])
    a = torch.where(p, torch.exp(-alpha * (s - base)), 0).sum(1)
    b = torch.where(n, torch.exp(beta * (s - base)), 0).sum(1)
    return (torch.log1p(a) / alpha + torch.log1p(b) / beta).mean()


def supcon(x: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T / temperature
    pos, _, own = sides(labels)
    everyone = s.masked_fill(own, -torch.inf).logsumexp(1)
    return (everyone - (s * pos).sum(1) / pos.sum(1).clamp(min=1)).mean()


def nt_xent(x: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T / temperature
    pos, neg, _ = sides(labels)
    r = s.masked_fill(~neg, -torch.inf).logsumexp(1)
    return (F.softplus(r[:, None] - s) * pos).sum() / len(x)


def info_nce(x: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
    s = F.normalize(x) @ F.normalize(y).T / temperature
    own = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2


def siglip(x: Tensor, y: Tensor, scale: float = 10.0, bias: float = -10.0) -> Tensor:
    z = F.normalize(x) @ F.normalize(y).T * scale + bias
    return -F.logsigmoid(z * (2 * torch.eye(len(x), device=x.device) - 1)).sum() / len(x)


def contrastive(
    x: Tensor, labels: Tensor, pos_margin: float = 1.0, neg_margin: float = 0.5
) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T
    pos, neg, _ = sides(labels)
    return ((F.relu(pos_margin - s) * pos).sum(1) + (F.relu(s - neg_margin) * neg).sum(1)).mean()


def contrastive_l2(
    x: Tensor, labels: Tensor, pos_margin: float = 0.0, neg_margin: float = 1.0
) -> Tensor:
    z = F.normalize(x)
    d = torch.cdist(z, z)
    pos, neg, _ = sides(labels)
    return ((F.relu(d - pos_margin) * pos).sum(1) + (F.relu(neg_margin - d) * neg).sum(1)).mean()


def triplet_l2(x: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    z = F.normalize(x)
    d = torch.cdist(z, z)
    pos, neg, _ = sides(labels)
    far = torch.where(pos, d, -torch.inf).amax(1)
    near = torch.where(neg, d, torch.inf).amin(1)
    return F.relu(far - near + margin).mean()


def margin_l2(x: Tensor, labels: Tensor, beta: float = 1.2, margin: float = 0.2) -> Tensor:
    z = F.normalize(x)
    d = torch.cdist(z, z)
    pos, neg, _ = sides(labels)
    pull, push = F.relu(d - beta + margin) * pos, F.relu(beta - d + margin) * neg
    return (pull.sum(1) + push.sum(1)).mean()
