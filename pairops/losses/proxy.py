"""Losses against proxies: one learned embedding per class stands for its members."""

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.distributed.group import Group
from pairops.ops.pairs.checks import as_index, ignored_label, is_number
from pairops.ops.pairs.distances import Distance
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.checks import plain_number
from pairops.ops.terms.tensor_checks import (
    check_classes,
    check_embeddings,
    number,
    readable,
    whole_numbers,
)
from pairops.ops.terms.term import NEG, POS, highest, lse, total

from .objective.keywords import Asked, Value
from .objective.objective import Objective, similar_only, split
from .objective.registration import loss

__all__ = ["arcface_loss", "proxy_anchor_loss", "proxy_nca_loss"]


class AgainstProxies(Asked, total=False):
    """The keywords that losses against proxies share."""

    ignore_index: int | None
    normalize: bool | None


@loss("proxies", "proxy_labels", "weight")
def proxy_anchor_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    proxies: Tensor,  # (C, D)
    *,
    proxy_labels: Tensor | None = None,  # (C,)
    alpha: float | Tensor = 32.0,
    margin: float | Tensor = 0.1,
    distance: Distance = "cosine",
    **common: Unpack[AgainstProxies],
) -> Value:
    """ℓ_c = C/C⁺ log(1 + Σ_{i∈P_c} e^{−α(s_ic − δ)}) + log(1 + Σ_{i∉P_c} e^{α(s_ic + δ)}).

    The loss has one number for each proxy c: the proxy is the anchor, and the batch its references.
    C⁺ proxies have a positive in the batch; so the mean over proxies is the paper's sum of two
    means. `weight`, and the result with reduction="none", have the shape (C,). With `group` every
    rank has all proxies, and its anchors are its share of them,
    `proxies.tensor_split(ranks)[rank]`.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers. A proxy with the same label is a positive, any other a negative.
        proxies: (C, D) floating point, cast to the dtype of x.
        proxy_labels: (C,) integers. None: 0 … C − 1.
        alpha: a number above 0 or a 0-d tensor with gradient: α.
        margin: a number or a 0-d tensor with gradient: δ.
        distance: "cosine" or "dot".

    Source:
        Kim et al., Proxy Anchor Loss, CVPR 2020. The loss equals the authors' code and
        pytorch-metric-learning's ProxyAnchorLoss.
    """
    alpha, margin = number("alpha", alpha, positive=True), number("margin", margin)
    asked, pairing = split(common, proxies, "proxies")
    proxies, proxy_labels = _checked(x, labels, proxies, proxy_labels, pairing)
    group = Group.of(asked.get("group"))
    if group is not None:  # each rank takes a part of the anchors
        proxies, proxy_labels = group.part(proxies), group.part(proxy_labels)
        if asked.get("weight") is not None:
            asked["weight"] = group.part(asked["weight"])
    pairs = Pairs.of(
        proxies, proxy_labels, ref_emb=x, ref_labels=labels, distance=distance, **pairing
    )
    similar_only("proxy_anchor_loss", pairs)
    objective = Objective.of(pairs, **asked)
    pos, neg = row_stats(pairs, lse(POS, -alpha, margin), lse(NEG, alpha, -margin))
    counts = torch.stack([pairs.relation.valid_x.sum(), (pairs.positives() > 0).sum()])
    anchors, with_positives = objective.total(counts).to(pos.dtype)
    losses = log1p_exp(pos) * (anchors / with_positives.clamp(min=1)) + log1p_exp(neg)
    return objective.value(losses, positive=pos, negative=neg)


@loss("proxies", "proxy_labels")
def proxy_nca_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    proxies: Tensor,  # (C, D)
    *,
    proxy_labels: Tensor | None = None,  # (C,)
    scale: float | Tensor = 1.0,
    smoothing: float = 0.0,
    distance: Distance = "sqeuclidean",
    **common: Unpack[AgainstProxies],
) -> Value:
    """ℓ_i = log Σ_c e^{−γ d_ic} − (1 − ε) log Σ_{c∈P_i} e^{−γ d_ic} + ε/|N_i| Σ_{c∈N_i} γ d_ic.

    A row without a proxy of its label contributes 0; without another proxy nothing is smoothed.
    With a similarity s, d is −s. With `group` each rank has all proxies, and compares its rows with
    them.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers. A proxy with the same label is a positive, any other a negative.
        proxies: (C, D) floating point, cast to the dtype of x.
        proxy_labels: (C,) integers. None: 0 … C − 1.
        scale: a number above 0 or a 0-d tensor with gradient: γ.
        smoothing: a number from 0 to below 1: ε, the smoothing of the label.
        distance: how a row and a proxy are compared, as in `Pairs.of`.

    Source:
        Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, ICCV 2017. With
        scale=3 and smoothing=0.1 the loss is the code of dichotomies/proxy-nca, and with
        reduction="mean_nonzero" pytorch-metric-learning's ProxyNCALoss.

    Differs from:
        The paper's denominator leaves the own proxy out; here it is in, as in the code that people
        use.
    """
    scale = number("scale", scale, positive=True)
    smoothing = plain_number("smoothing", smoothing)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1")
    asked, pairing = split(common, x)
    proxies, proxy_labels = _checked(x, labels, proxies, proxy_labels, pairing)
    pairs, objective = _of_proxies(x, labels, proxies, proxy_labels, distance, asked, pairing)
    near = highest(POS, grad=False)
    terms = [near, lse(POS, scale, near), lse(NEG, scale, near)]
    if smoothing:
        terms.append(total(NEG, scale, near))
    _, pos, neg, *sums = row_stats(pairs, *terms)
    positives, negatives = pairs.counts()
    losses = log1p_exp(torch.where(positives > 0, neg - pos, -torch.inf))
    for z in sums:
        moved = smoothing * (pos - z / negatives.clamp(min=1))
        losses = losses + torch.where((positives > 0) & (negatives > 0), moved, 0)
    sides = {"positive": lse(POS, scale, 0.0), "negative": lse(NEG, scale, 0.0)}
    return objective.value(losses, **sides)


@loss("proxies", "proxy_labels")
def arcface_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    proxies: Tensor,  # (C, D)
    *,
    proxy_labels: Tensor | None = None,  # (C,)
    margin: float | Tensor = 0.5,
    cosine_margin: float | Tensor = 0.0,
    scale: float | Tensor = 64.0,
    distance: Distance = "cosine",
    **common: Unpack[AgainstProxies],
) -> Value:
    """ℓ_i = log(1 + Σ_{c∉P_i} e^{γ (s_ic − t_i)}), t_i = cos(θ_i + m) − m', cos θ_i = max_P s_ip.

    A softmax over classes whose weights are the proxies. The angle θ_i between a row and its own
    proxy counts as m more than it is; where that is beyond π, t_i = cos θ_i − m sin m − m'. A row
    without a proxy of its label contributes 0. Products of 16-bit embeddings are those of float32
    copies. With `group` each rank has all proxies, and compares its rows with them.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers. A proxy with the same label is a positive, any other a negative.
        proxies: (C, D) floating point, cast to the dtype of x: the weights of a linear layer.
        proxy_labels: (C,) integers. None: 0 … C − 1.
        margin: a number from 0 to below π, in radians, or a 0-d tensor with gradient: m.
        cosine_margin: a number or a 0-d tensor with gradient: m'.
        scale: a number above 0 or a 0-d tensor with gradient: γ.
        distance: "cosine", or "dot" of unit vectors.

    Source:
        Deng et al., ArcFace, CVPR 2019. With margin=0 and cosine_margin=0.35 the loss is CosFace
        (Wang et al., CVPR 2018). With margin=math.radians(28.6) it equals pytorch-metric-learning's
        ArcFaceLoss.

    Differs from:
        The gradient is finite where a row and its proxy have one direction.
    """
    scale = number("scale", scale, positive=True)
    margin, cosine_margin = number("margin", margin), number("cosine_margin", cosine_margin)
    if not isinstance(margin, Tensor) and not 0 <= margin < math.pi:
        raise ValueError(f"margin is {margin}; it must be from 0 to below pi, in radians")
    asked, pairing = split(common, x)
    proxies, proxy_labels = _checked(x, labels, proxies, proxy_labels, pairing)
    pairs, objective = _of_proxies(x, labels, proxies, proxy_labels, distance, asked, pairing)
    similar_only("arcface_loss", pairs)
    # Of 16-bit rows the gradients of both calls, which may nearly cancel, would be rounded apart.
    pairs = pairs.widened()
    (cosine,) = row_stats(pairs, highest(POS))
    with_positive = pairs.positives() > 0
    target = _turned(torch.where(with_positive, cosine, 0), margin) - cosine_margin
    (neg,) = row_stats(pairs, lse(NEG, scale, target))
    losses = log1p_exp(torch.where(with_positive, neg, -torch.inf))
    sides = {"positive": lse(POS, scale, 0.0), "negative": lse(NEG, scale, 0.0)}
    return objective.value(losses, **sides)


def _turned(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """Return cos(arccos s + m), and s − m sin m where the angle would pass π: that falls with s."""
    trigonometry: Any = torch if isinstance(margin, Tensor) else math
    of_margin, sine = trigonometry.cos(margin), trigonometry.sin(margin)
    # At ±1 the root has slope 0, not infinity.
    square = (1 - cosine * cosine).clamp(min=torch.finfo(cosine.dtype).tiny)
    turned = cosine * of_margin - square.sqrt() * sine
    return torch.where(cosine < -of_margin, cosine - margin * sine, turned)


def _of_proxies(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    distance: Distance,
    asked: dict[str, Any],
    pairing: dict[str, Any],
) -> tuple[Pairs, Objective]:
    """Compare rows with all proxies, on every rank with its own rows."""
    pairs = Pairs.of(
        x, labels, ref_emb=proxies, ref_labels=proxy_labels, distance=distance,
        **pairing | {"group": None},
    )  # fmt: skip
    objective = Objective.of(pairs, **asked)
    if objective.group is not None:  # the only exchange: a rank compares with all proxies
        objective.group.agree({})
    else:
        objective.warn_without_positives()
    return pairs, objective


def _checked(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor | None,
    pairing: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    check_embeddings("x", x)
    check_embeddings("proxies", proxies)
    proxies = proxies.to(x.dtype)
    check_embeddings("proxies", proxies, like=("x", x))
    whole_numbers("labels", labels, "x", x)  # by this name: to `Pairs` they may be others
    if proxy_labels is not None:
        whole_numbers("proxy_labels", proxy_labels, "proxies", proxies)
        return proxies, proxy_labels
    ignored = ignored_label(pairing.get("ignore_index", -100))
    if readable(labels):
        used = labels if ignored is None else labels[~is_number(labels, ignored)]
        check_classes("labels", as_index(used), len(proxies), "without proxy_labels there are")
    return proxies, torch.arange(len(proxies), device=proxies.device)
