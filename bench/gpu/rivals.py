"""The rivals on a GPU: libraries with kernels for one loss each, where they can be had."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contestants import Contestant, Loss


def _only(loss: str, *served: str) -> None:
    if loss not in served:
        raise NotImplementedError(f"it has no {loss}")


def linear_cross_entropy(loss: str) -> Loss:
    """torch's own chunked cross-entropy over a product: info_nce, once in each direction."""
    _only(loss, "info_nce")
    cross_entropy = F.linear_cross_entropy  # torch 2.13 is the first that has it
    if hasattr(F, "LinearCrossEntropyOptions"):  # with options it takes its chunked path
        cross_entropy = partial(cross_entropy, options=F.LinearCrossEntropyOptions())

    def both(x: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
        own = torch.arange(len(x), device=x.device)
        a, b = F.normalize(x), F.normalize(y)
        scaled = a / temperature, b / temperature
        return (cross_entropy(scaled[0], b, own) + cross_entropy(scaled[1], a, own)) / 2

    return both


def cut_cross_entropy(loss: str) -> Loss:
    """Apple's, without its gradient filter."""
    _only(loss, "info_nce")
    from cut_cross_entropy import linear_cross_entropy as cce

    exact = partial(cce, filter_eps=None)

    def both(x: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
        own = torch.arange(len(x), device=x.device)
        a, b = F.normalize(x), F.normalize(y)
        return (exact(a / temperature, b, own) + exact(b / temperature, a, own)) / 2

    return both


def inf_cl(loss: str) -> Loss:
    _only(loss, "info_nce")
    from inf_cl import cal_flash_loss

    def both(x: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
        a, b = F.normalize(x), F.normalize(y)
        scale = torch.tensor(1 / temperature, device=x.device)
        return (
            cal_flash_loss(a, b, scale=scale).mean() + cal_flash_loss(b, a, scale=scale).mean()
        ) / 2

    return both


def memeff(loss: str) -> Loss:
    """With the gradient of the loss, which is not its default."""
    _only(loss, "info_nce")
    from memeff import MemoryEfficientCLIPLoss

    def both(x: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
        return MemoryEfficientCLIPLoss(temperature, stable=False)(x, y)

    return both


def siglip_kernel(loss: str) -> Loss:
    _only(loss, "siglip")
    import siglip_kernel as package

    def whole(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return package.fused_siglip_loss(F.normalize(x), F.normalize(y), scale.log(), bias)

    return whole


RIVALS = {
    rival.key: rival
    for rival in (
        Contestant("linear_cross_entropy", "F.linear_cross_entropy", linear_cross_entropy),
        Contestant("cut_cross_entropy", "cut-cross-entropy", cut_cross_entropy),
        Contestant("inf_cl", "Inf-CL", inf_cl),
        Contestant("memeff", "memeff", memeff),
        Contestant("siglip_kernel", "siglip-kernel", siglip_kernel),
    )
}
