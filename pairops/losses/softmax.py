"""The softmax family, one-way and two-way, and its sigmoid sibling."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..functions import softplus
from ..pairs import Pairing, Pairs
from ..stats import row_stats
from ..terms import ALL, NEG, POS, lse, total
from .reduction import Reduction, check_reduction, number, reduce


def supcon_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.1,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    **pairing: Unpack[Pairing],
) -> Tensor:
    """ℓ_i = log Σ_{j≠i} e^{s_ij/τ} − 1/|P_i| Σ_p s_ip/τ, 0 for an anchor without positives.

    temperature: τ above 0; a number or a 0-d tensor with gradient. Other arguments, errors and the
    returned dtype: as in `ms_loss`.

    Source: Khosla et al., Supervised Contrastive Learning, 2020. SupContrast multiplies by τ/τ_base
    (1.43 at its defaults of another τ); here there is no such factor. "mean" counts anchors without
    positives, as SupContrast does; "mean_nonzero" leaves them out, as pytorch-metric-learning does,
    which also returns 0 for a batch without negatives.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    pairs = Pairs.of(x, labels, **pairing)
    check_reduction(reduction, weight, pairs)
    positives = pairs.positives()
    everyone, pos = row_stats(pairs, lse(ALL, scale, 0.0), total(POS, scale, 0.0))
    losses = torch.where(positives > 0, everyone - pos / positives.clamp(min=1), 0)
    return reduce(losses, pairs, weight, reduction)


def info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """ℓ_i = ½ (log Σ_j e^{s_ij/τ} + log Σ_j e^{s_ji/τ}) − s_ii/τ: x_i finds y_i, and y_i finds x_i.

    x, y: embeddings; y_i is the one positive of x_i.  temperature: τ above 0; a number or a 0-d
    tensor with gradient.  normalize: compare by cosine.  weight: (N,) per pair (i, i).  reduction:
    see `pairops.losses.reduction`.  Errors and the returned dtype: as in `ms_loss`.

    Source: van den Oord et al., 2018; two-way as in CLIP (Radford et al., 2021), equal to
    open_clip's ClipLoss with logit_scale = 1/τ.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    pairs = Pairs.paired(x, y, normalize=normalize)
    check_reduction(reduction, weight, pairs)
    rows, pos, cols = row_stats(
        pairs, lse(ALL, scale, 0.0), total(POS, scale, 0.0), cols=[lse(ALL, scale, 0.0)]
    )
    return reduce((rows + cols) / 2 - pos, pairs, weight, reduction)


def siglip_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    normalize: bool = True,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """ℓ_i = Σ_j log(1 + exp(−z_ij (t s_ij + b))), z_ii = 1 and z_ij = −1 elsewhere.

    scale, bias: t and b; numbers or 0-d tensors with gradient, at the start 10 and −10. Other
    arguments: as in `info_nce_loss`.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023; equal to open_clip's
    SigLipLoss with logit_scale = t.
    """
    scale, bias = number("scale", scale), number("bias", bias)
    pairs = Pairs.paired(x, y, normalize=normalize)
    check_reduction(reduction, weight, pairs)
    pos, neg = row_stats(
        pairs,
        total(POS, -scale, -bias, function=softplus),
        total(NEG, scale, bias, function=softplus),
    )
    return reduce(pos + neg, pairs, weight, reduction)
