"""Checks of the numbers among a loss's arguments: plain ones, or tensors with one element."""

import math

import torch
from torch import Tensor

from pairops.ops.autograd.node import transforming
from pairops.ops.terms.plain_numbers import plain_float


def number(
    name: str,
    value: float | Tensor | None,
    *,
    positive: bool = False,
    default: float | None = None,
) -> float | Tensor:
    """Return a finite number as it is, or a tensor with one element as a 0-d tensor.

    The value of a tensor is not read, which would wait for its device. Every shape with one element
    is taken, since `fully_shard` takes no 0-d parameter.

    Args:
        name: the argument's name, for the message.
        value: a number or a tensor.
        positive: True refuses a number of 0 or below.
        default: the number that None stands for. None: the argument must not be None.
    """
    if type(value) is float and (0.0 if positive else -math.inf) < value < math.inf:
        return value
    if value is None and default is not None:
        return default
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(
                f"{name} is a {value.dtype} tensor of shape {tuple(value.shape)}; "
                "it must be a number or a floating-point tensor with one element"
            )
        if value.dim():
            value = value.reshape(())
        # 16-bit arithmetic, such as 1/τ, would round what the loss multiplies.
        return value if value.dtype in (torch.float32, torch.float64) else value.float()
    plain = plain_float(value)
    if plain is None:
        kind = type(value).__name__
        raise TypeError(f"{name} is {kind}; it must be a number or a tensor with one element")
    if not (0 if positive else -math.inf) < plain < math.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number{' above 0' * positive}")
    return plain


def readable(values: Tensor) -> bool:
    """Tell whether the values of a tensor may be read.

    Reading would wait for a device other than the CPU. Under torch.compile and vmap there are no
    values.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not transforming()
