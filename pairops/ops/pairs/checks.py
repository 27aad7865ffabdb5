"""What is checked of embeddings and of integers that go with them, before anything is computed."""

import warnings

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(name: str, x: Tensor, like: tuple[str, Tensor] | None = None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}; it must be a tensor (N, D)")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} is {x.dtype}; it must be float16, bfloat16, float32 or float64")
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (N, D)")
    if x.shape[1] == 0 and x.shape[0] > 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; D must be at least 1")
    if like is None:
        return
    other_name, other = like
    for what, mine, theirs in (
        ("dtype", x.dtype, other.dtype),
        ("device", x.device, other.device),
        ("D", x.shape[1], other.shape[1]),
    ):
        if mine != theirs:
            kind = TypeError if what == "dtype" else ValueError
            raise kind(f"{name} has {what} {mine}; it must be {theirs} as in {other_name}")


def whole_numbers(name: str, values: Tensor, owner: str, x: Tensor) -> Tensor:
    """`values` as int64 on the device of x, checked."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is {type(values).__name__}; it must be an integer tensor (N,)")
    if values.is_floating_point() or values.is_complex():
        hint = " (and without requires_grad)" if values.requires_grad else ""
        raise TypeError(f"{name} is {values.dtype}; it must be an integer tensor{hint}")
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; it must be ({x.shape[0]},), "
            f"one for each row of {owner}"
        )
    if values.device != x.device:
        warnings.warn(
            f"{name} is on {values.device} and {owner} on {x.device}: it is copied at every call",
            stacklevel=4,
        )
    return values.to(x.device, torch.int64).contiguous()
