"""Steps that a rank takes one after the other, whatever becomes of each of them."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import pairops
from pairops.ops.engines import blockwise_engine
from pairops.ops.row_stats import ring_blocks


def take(group: Any, given: dict[str, Any]) -> list[Any]:
    """What each step gave: a value's number, "done", or the name and text of an exception.

    given: x, labels.  steps: expressions over x, labels, group, the values of the steps before
    (`v[k]`, of which a step that failed has none), and the functions of this module.  gathered: as
    of `rank_functions`.
    """
    x = given["x"].clone().requires_grad_()
    found: list[Any] = []
    values: dict[int, Any] = {}
    names = {
        **globals(), "x": x, "labels": given["labels"], "group": group, "v": values,
        "ms": pairops.ms_loss, "supcon": pairops.supcon_loss,
    }  # fmt: skip
    with (
        mock.patch("pairops.ops.row_stats.ring_blocks.GATHERED", given.get("gathered", 0)),
        pairops.engine("blockwise"),
    ):
        for k, step in enumerate(given["steps"]):
            try:
                values[k] = eval(step, names)
                scalar = isinstance(values[k], Tensor) and values[k].dim() == 0
                found.append(float(values[k].detach()) if scalar else "done")
            except Exception as error:
                found.append((type(error).__name__, str(error)))
    return found


def back(value: Tensor, times: int = 1) -> None:
    for _ in range(times):
        value.sum().backward(retain_graph=True)


def slope(value: Tensor, *inputs: Tensor) -> None:
    """The gradient, which can be differentiated again."""
    torch.autograd.grad(value, inputs, create_graph=True)


def seen(loss: Any, *args: Any, **keywords: Any) -> Tensor:
    with torch.no_grad():
        value: Tensor = loss(*args, **keywords)
    return value


def under(context: Any, loss: Any, *args: Any, **keywords: Any) -> Tensor:
    with context:
        value: Tensor = loss(*args, **keywords)
    return value


@contextlib.contextmanager
def half() -> Iterator[None]:
    """float32 is multiplied otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def second_fails(values: Tensor) -> Tensor:
    """A formula of which one rank alone has an error."""
    if dist.get_rank() == 1:
        raise ArithmeticError("of one")
    return values


def second_lost(x: Tensor, labels: Tensor, **further: Any) -> Tensor:
    """The same of a loss."""
    value: Tensor = pairops.ms_loss(second_fails(x), labels, **further)
    return value


# Bytes that there is no room for.
SIZE = {"pack": 3 << 20, "forward": 4 << 20, "backward": 5 << 20}


@contextlib.contextmanager
def failing_blocks(what: str) -> Iterator[None]:
    """There is no memory for forward or backward of the first block, or to pack it for others."""
    where, name = (ring_blocks, "_packed") if what == "pack" else (blockwise_engine, what)

    def without_memory(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"can't allocate memory: you tried to allocate {SIZE[what]} bytes.")

    with mock.patch.object(where, name, without_memory):
        yield
