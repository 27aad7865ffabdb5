"""Losses with parameters of their own: margins per class, proxies, temperatures.

A number that is learned is a parameter of shape (1,): `fully_shard` takes none without dimensions.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pairops.losses import (
    info_nce_loss,
    margin_loss,
    proxy_anchor_loss,
    proxy_nca_loss,
    siglip_loss,
)
from pairops.losses.objective.keywords import Asked, Reduction, Value
from pairops.ops.pairs.distances import Distance
from pairops.ops.terms.plain_numbers import plain_float, plain_int

from .labelled import LabelledLoss, Number
from .module import Arguments, Common, no_tuples


class MarginLoss(LabelledLoss):
    """`pairops.margin_loss`, whose β can be learned.

    beta: a number, or a tensor (num_classes,).  num_classes: one β for each class.  learn_beta: β
    is the parameter `beta`. It has no penalty on β (pytorch-metric-learning's `nu`, by default 0).
    """

    def __init__(
        self,
        margin: Number = 0.2,
        *,
        beta: Number = 1.2,
        learn_beta: bool = False,
        num_classes: int | None = None,
        triplets: bool = True,
        distance: Distance = "l2",
        reduction: Reduction = "mean_pairs",
        **common: Unpack[Common],
    ) -> None:
        if num_classes is not None:
            _at_least_one("num_classes", num_classes)
            if not isinstance(beta, Tensor):
                beta = torch.full((num_classes,), _number("beta", beta))
            elif beta.shape != (num_classes,):
                raise ValueError(f"beta has shape {tuple(beta.shape)}; it must be ({num_classes},)")
        if learn_beta:
            if not isinstance(beta, Tensor):
                beta = torch.tensor([_number("beta", beta)])
            beta = beta.detach().to(torch.get_default_dtype(), copy=True)
            beta = nn.Parameter(beta.reshape(1) if beta.dim() == 0 else beta)
        super().__init__(
            margin_loss,
            margin=margin,
            beta=beta,
            triplets=triplets,
            distance=distance,
            reduction=reduction,
            **common,
        )


class _AgainstProxies(Arguments):
    """proxies: (num_classes, embedding_size), the one parameter."""

    def __init__(
        self,
        function: Callable[..., Value],
        num_classes: int,
        embedding_size: int,
        initialize: Callable[[Tensor], Any],
        **arguments: Any,
    ) -> None:
        _at_least_one("num_classes", num_classes)
        _at_least_one("embedding_size", embedding_size)
        super().__init__(function, **arguments)
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        initialize(self.proxies)

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        indices_tuple: None = None,
        **call: Unpack[Asked],
    ) -> Value:
        """The function of embeddings, labels and the proxies.

        indices_tuple: None.  Further keywords: those of every loss.
        """
        no_tuples(indices_tuple)
        return self.of(embeddings, labels, self.proxies, **call)

    def extra_repr(self) -> str:
        classes, size = self.proxies.shape
        return f"num_classes={classes}, embedding_size={size}, {super().extra_repr()}"


class ProxyAnchorLoss(_AgainstProxies):
    """`pairops.proxy_anchor_loss` with a proxy for each of the labels 0 … num_classes − 1."""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: Number = 0.1,
        alpha: Number = 32.0,
        *,
        distance: Distance = "cosine",
        reduction: Reduction = "mean",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            proxy_anchor_loss,
            num_classes,
            embedding_size,
            partial(nn.init.kaiming_normal_, mode="fan_out"),
            margin=margin,
            alpha=alpha,
            distance=distance,
            reduction=reduction,
            **common,
        )


class ProxyNCALoss(_AgainstProxies):
    """`pairops.proxy_nca_loss` with a proxy for each of the labels 0 … num_classes − 1."""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        softmax_scale: Number = 1.0,
        *,
        smoothing: float = 0.0,
        distance: Distance = "sqeuclidean",
        reduction: Reduction = "mean_nonzero",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            proxy_nca_loss,
            num_classes,
            embedding_size,
            nn.init.normal_,
            scale=softmax_scale,
            smoothing=smoothing,
            distance=distance,
            reduction=reduction,
            **common,
        )


class InfoNCELoss(Arguments):
    """`pairops.info_nce_loss` with a learned temperature, τ = exp(−logit_scale).

    CLIP keeps the parameter at most log 100: `loss.logit_scale.data.clamp_(max=math.log(100))`
    after each step.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        symmetric: bool = True,
        distance: Distance = "cosine",
        reduction: Reduction = "mean",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            info_nce_loss, symmetric=symmetric, distance=distance, reduction=reduction, **common
        )
        self.logit_scale = nn.Parameter(torch.tensor([-_logarithm("temperature", temperature)]))

    def forward(
        self,
        x: Tensor,  # (N, D)
        y: Tensor,  # (M, D)
        **call: Unpack[Asked],
    ) -> Value:
        """The function of x and y. Further keywords: those of every loss."""
        return self.of(x, y, temperature=torch.exp(-self.logit_scale), **call)


class SigLIPLoss(Arguments):
    """`pairops.siglip_loss` with learned scale and bias, t = exp(logit_scale), b = logit_bias."""

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        *,
        distance: Distance = "cosine",
        reduction: Reduction = "mean",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(siglip_loss, distance=distance, reduction=reduction, **common)
        self.logit_scale = nn.Parameter(torch.tensor([_logarithm("scale", scale)]))
        self.logit_bias = nn.Parameter(torch.tensor([_number("bias", bias)]))

    def forward(
        self,
        x: Tensor,  # (N, D)
        y: Tensor,  # (N, D)
        **call: Unpack[Asked],
    ) -> Value:
        """The function of x and y. Further keywords: those of every loss."""
        scale, bias = torch.exp(self.logit_scale), self.logit_bias
        return self.of(x, y, scale=scale, bias=bias, **call)


def _at_least_one(name: str, value: int) -> None:
    whole = plain_int(value)
    if whole is None or whole < 1:
        raise ValueError(f"{name} is {value!r}; it must be an int of at least 1")


def _logarithm(name: str, value: float) -> float:
    plain = plain_float(value)
    if plain is None or not 0 < plain < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
    return math.log(plain)


def _number(name: str, value: object) -> float:
    plain = plain_float(value)
    if plain is None or not math.isfinite(plain):
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    return plain
