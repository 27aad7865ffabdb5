"""Numbers among a loss's arguments: checked, whether Python's own or tensors without dimensions."""

import math

import torch
from torch import Tensor

from pairops.ops.autograd.node import transforming
from pairops.ops.pairs.pairs import Pairs


def number(
    name: str,
    value: float | Tensor | None,
    *,
    positive: bool = False,
    default: float | None = None,
) -> float | Tensor:
    """`value`, a finite number or a 0-d tensor; a tensor's value is not read: that would wait.

    default: what None stands for, where it may stand.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, Tensor):
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} is a {value.dtype} tensor of shape {tuple(value.shape)}; "
                "it must be a number or a 0-d floating-point tensor"
            )
        # A 16-bit tensor's own arithmetic, such as 1/τ, would round what the loss multiplies.
        return value if value.dtype in (torch.float32, torch.float64) else value.float()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {type(value).__name__}; it must be a number or a 0-d tensor")
    if not (0 if positive else -math.inf) < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number{' above 0' * positive}")
    return float(value)


def threshold(value: float | Tensor, pairs: Pairs) -> Tensor:
    """A number as the window of a term; no gradient reaches it there."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=pairs.dtype, device=pairs.x.device)


def readable(values: Tensor) -> bool:
    """May values be looked at? Elsewhere than on the CPU that would synchronise, and under
    torch.compile and vmap there is nothing to see."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not transforming()
