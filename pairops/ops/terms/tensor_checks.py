"""Checks of arguments that are tensors, or may be: embeddings, values per row, learned numbers."""

import warnings

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .checks import LEAST, MOST, within_limits
from .plain_numbers import plain_float

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_storage(name: str, values: Tensor) -> None:
    """Refuse a tensor whose values do not lie side by side in memory of its own.

    A tensor of FakeTensorMode says that it is on the device that it stands for.
    """
    if values.is_nested:
        raise ValueError(
            f"{name} is a nested tensor, which is not served; write torch.cat({name}.unbind())"
        )
    if values.device.type == "meta":
        raise ValueError(f"{name} is on meta, where there are no values; it must be on a device")
    if values.layout is not torch.strided:
        raise ValueError(
            f"{name} has the layout {values.layout}, which is not served; write {name}.to_dense()"
        )
    if type(values).__name__ == "DTensor":
        raise TypeError(
            f"{name} is a DTensor, which is not served; write {name}.to_local(), with group= for "
            f"the rows of all ranks, or {name}.full_tensor()"
        )


def number(
    name: str,
    value: float | Tensor | None,
    *,
    positive: bool = False,
    default: float | None = None,
) -> float | Tensor:
    """Return a finite number or a 0-d tensor; a tensor's value is not read, which would wait.

    A tensor with one element is taken whatever its shape: `fully_shard` takes no 0-d parameter.

    positive: above 0, and so far that float32 holds its reciprocal.  default: what None stands for,
    where it may stand.
    """
    if type(value) is float and (LEAST if positive else -MOST) <= value <= MOST:
        return value
    if value is None and default is not None:
        return default
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.device.type == "meta":
            check_storage(name, value)
        if value.dtype not in FLOATS or value.numel() != 1:
            check_storage(name, value)
            raise ValueError(
                f"{name} is a {value.dtype} tensor of shape {tuple(value.shape)}; it must be a "
                "number, or a tensor with one element, float16, bfloat16, float32 or float64"
            )
        if value.ndim:
            value = value.reshape(())
        # A 16-bit tensor's own arithmetic, such as 1/τ, would round what the loss multiplies.
        return value if value.dtype in (torch.float32, torch.float64) else value.float()
    plain = plain_float(value)
    if plain is None:
        kind = type(value).__name__
        raise TypeError(f"{name} is {kind}; it must be a number or a tensor with one element")
    return within_limits(name, value, plain, positive)


def float_dtype(name: str, value: object) -> None:
    """Refuse a value that is no dtype of embeddings."""
    if not isinstance(value, torch.dtype) or value not in FLOATS:
        kind = value if isinstance(value, torch.dtype) else type(value).__name__
        names = ", ".join(map(str, FLOATS))
        raise TypeError(f"{name} is {kind}; it must be one of {names}")


def readable(values: Tensor) -> bool:
    """Tell whether values may be looked at. Elsewhere than on the CPU that would synchronise, and
    under torch.compile and vmap there is nothing to see."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active()


def check_embeddings(name: str, x: Tensor, like: tuple[str, Tensor] | None = None) -> None:
    if type(x) is not Tensor and type(x) is not Parameter:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} is {type(x).__name__}; it must be a tensor (N, D){_hint(name, x)}"
            )
        check_storage(name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} is {x.dtype}; it must be float16, bfloat16, float32 or float64")
    if x.layout is not torch.strided or x.device.type == "meta" or x.ndim != 2:
        check_storage(name, x)
        hint = ""
        if x.ndim == 3:
            views = x.shape[1]
            hint = (
                f"; of (B, views, D) write {name}.flatten(0, 1), and of what has B entries "
                f"labels.repeat_interleave({views})"
            )
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (N, D){hint}")
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
            refused = f"{name} has {what} {mine}; it must be {theirs} as in {other_name}"
            if what != "dtype":
                raise ValueError(refused)
            widest = torch.promote_types(x.dtype, other.dtype)
            casts = [
                f"{n}.to({widest})"
                for n, z in ((other_name, other), (name, x))
                if z.dtype != widest
            ]
            raise TypeError(f"{refused}; write {' and '.join(casts)}, say")


def whole_numbers(name: str, values: Tensor, owner: str, x: Tensor) -> Tensor:
    """Return integers as int64 on the device of x; of uint64 the same bits, see `one_key`."""
    known = type(values) is Tensor and values.dtype == torch.int64 and values.device == x.device
    if known and values.shape == x.shape[:1] and values.layout is torch.strided:
        return values.contiguous()
    check_integers(name, values)
    wrapped = type(values) is not Tensor and is_traceable_wrapper_subclass(values)
    if wrapped and not is_traceable_wrapper_subclass(x):
        raise TypeError(
            f"{name} is {type(values).__name__}, which has no memory of its own; it must be a "
            f"plain tensor, as {owner} is"
        )
    check_one_each(name, values, owner, x)
    if values.device != x.device:
        warnings.warn(
            f"{name} is on {values.device} and {owner} on {x.device}: it is copied at every call",
            stacklevel=4,
        )
    return values.to(x.device, torch.int64).contiguous()


def check_one_each(name: str, values: Tensor, owner: str, x: Tensor) -> None:
    """Refuse any shape but (N,), one value for each row of x."""
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; it must be ({x.shape[0]},), "
            f"one for each row of {owner}"
        )


def check_integers(name: str, values: Tensor, shape: str = "(N,)") -> None:
    """Refuse a tensor without integers. shape: of the right tensor, for the message alone."""
    if not isinstance(values, Tensor):
        kind = type(values).__name__
        raise TypeError(
            f"{name} is {kind}; it must be an integer tensor {shape}{_hint(name, values)}"
        )
    if values.is_floating_point() or values.is_complex() or values.is_quantized:
        hint = " (and without requires_grad)" if values.requires_grad else ""
        raise TypeError(f"{name} is {values.dtype}; it must be an integer tensor{hint}")
    check_storage(name, values)


def check_factors(name: str, values: Tensor, like: tuple[str, Tensor]) -> None:
    """Refuse factors other than one ≥ 0 for each row, where values can be read without waiting.

    A NaN may belong to a row that does not count: see `check_finite`.
    """
    owner, x = like
    n = x.shape[0]
    if not isinstance(values, Tensor) or values.dtype not in FLOATS:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"{name} is {kind}; it must be a floating-point tensor ({n},){_hint(name, values)}"
        )
    check_storage(name, values)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; it must be ({n},)")
    if values.device != x.device:
        raise ValueError(f"{name} is on {values.device}; it must be on {x.device}, as {owner} is")
    if readable(values) and bool((below := values < 0).any()):
        raise ValueError(f"{name} has the value {float(values[below][0])}; none may be below 0")


def check_finite(name: str, values: Tensor, counted: Tensor | None) -> None:
    """Refuse NaN and infinity, where values can be read without waiting.

    counted: (N,) the rows that matter; None: all of them.
    """
    if not readable(values):
        return
    bad = ~values.isfinite()
    if counted is not None:
        bad &= counted
    if bool(bad.any()):
        raise ValueError(f"{name} has the value {float(values[bad][0])}; it must be finite")


def check_bools(name: str, values: Tensor, n: int) -> None:
    """Refuse anything but one bool for each of n rows."""
    if not isinstance(values, Tensor) or values.dtype != torch.bool:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} is {kind}; it must be a bool tensor ({n},){_hint(name, values)}")
    check_storage(name, values)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; it must be ({n},)")


def check_real(name: str, values: Tensor) -> None:
    """Refuse a tensor without real numbers."""
    if not isinstance(values, Tensor) or values.is_complex() or values.is_quantized:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} is {kind}; it must be a real tensor{_hint(name, values)}")
    if values.layout is not torch.strided or values.device.type == "meta" or values.ndim > 1:
        check_storage(name, values)


def check_classes(name: str, values: Tensor, classes: int, known: str) -> None:
    """Refuse an int64 class beyond `classes`, where values can be read without waiting.

    known: words of the message that stand before the number of classes, such as "beta has".
    """
    if not values.numel() or not readable(values):
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} go from {low} to {high} and {known} {classes} classes; they must be from 0 "
            f"to {classes - 1}"
        )


def _hint(name: str, values: object) -> str:
    """Say what to write instead of a list or an array."""
    if isinstance(values, Tensor):
        return ""
    numbers = isinstance(values, (list, tuple, range)) or hasattr(values, "__array__")
    return f"; write {name}=torch.as_tensor({name})" if numbers else ""
