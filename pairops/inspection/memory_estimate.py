"""What a loss will take in memory, before anything is allocated: here, and in dense torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pairops import losses
from pairops.ops import engines
from pairops.ops.engines import ENGINES
from pairops.ops.terms.checks import count, function, one_of, signature_of
from pairops.ops.terms.tensor_checks import float_dtype

from .memory_trace import TensorTrace

__all__ = ["Memory", "estimate_memory"]

_MOST = 2**31  # rows, or dimensions: two of them multiplied are still a number of bytes
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
# What is given of each row, and with references of each of these too.
_OF_ROWS = ("labels", "values", "predictions", "teacher")


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank; `str` of it is a line to be read.

    Args:
        n: rows of x.
        m: rows of the other set. None: as n.
        d: dimensions.
        dtype: the dtype of the embeddings.
        inputs: embeddings, labels, and what else the loss is given.
        pairops: at the peak of forward and backward, besides the inputs; gradients are a part of
            it.
        dense: likewise, by whole matrices under autograd.
    """

    n: int
    m: int | None
    d: int
    dtype: torch.dtype
    inputs: int  # embeddings, labels, and what else the loss is given
    pairops: int  # at the peak of forward and backward, besides; gradients are a part of it
    dense: int  # likewise, by whole matrices under autograd

    def __str__(self) -> str:
        columns = self.n if self.m is None else self.m
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.n:,} × {columns:,}, D = {self.d:,}, {dtype}: "
            f"pairops {_readable(self.pairops)}, dense torch {_readable(self.dense)}"
        )


def estimate_memory(
    n: int,
    d: int,
    m: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    loss: str | Callable[..., Any] = "ms_loss",
    engine: str = "auto",
    world_size: int = 1,
) -> Memory:
    """Estimate by how much forward and backward of a loss raise the peak of memory, in bytes.

    The estimate is what the loss itself takes, gradients by embeddings among it. What an encoder
    keeps for its own backward pass is no part of it, and is most often more: see `cached_step`.

    Nothing is computed: the loss runs on tensors without memory, and those alive at a time are
    added up. What an engine allocates within a call is a formula; see `pairops.ops.engines.memory`.

    Peaks of 8 MiB and more, measured on a CPU, were 0.92 to 1.05 of the estimate with `cpu`, on
    one rank and on several, 1.01 to 1.2 with `blockwise`, 0.99 to 1.01 with `dense`. For `cuda`,
    `triton` and `chunked` the estimate is derived, **not measured yet**, and not checked whether
    they serve the loss. No row is taken to be ignored: `n_pair_loss`, which ignores most, takes
    less. Pages that an allocator keeps for later, CUDA's context and libraries come on top.

    `Memory.dense` is the same formula by the engine "dense". Losses written by hand were measured
    to take 0.6 to 1.1 of it. One of several ranks is taken to hold its rows of the matrices, the
    embeddings of all, and gradients by these.

    Args:
        n: rows of x.
        d: dimensions of the embeddings.
        m: rows of the other set, be it y, references or proxies, which get a gradient too; of
            `multi_positive_loss` the number of positives, m / n for each row; of `nnclr_loss` the
            rows of the queue, and y has n. None: x is compared with itself, or y has n rows, and
            the queue too.
        dtype: the dtype of the embeddings.
        loss: a name in `pairops.losses`, a function that is called as these are, such as a
            `functools.partial` with options, or a Module without proxies.
        engine: as in `pairops.engine`; "auto" is that of the GPU if torch sees one, else the
            CPU's.
        world_size: ranks among which n and m, but not proxies, are shared evenly.

    Returns:
        The `Memory` of one rank.

    Raises:
        TypeError: the message names the argument, what it was and must be.
        ValueError: likewise; or the answer lies in the labels: `smooth_ap_loss`, `triplet_loss`
            with mining="semihard" or "all" and `lifted_structure_loss` with form="original" make a
            row of every positive pair, O(K) for K of them.
    """
    n = count("n", n, 0, _MOST)
    d = count("d", d, 1, _MOST)
    m = None if m is None else count("m", m, 0, _MOST)
    world_size = count("world_size", world_size, 1, _MOST)
    float_dtype("dtype", dtype)
    one_of("engine", engine, ("auto", *ENGINES))
    called = _function(loss)
    step = partial(_followed, called, d, dtype)
    _, dense = step(n, m, "dense", 1)
    rows, others = -(-n // world_size), m
    if world_size > 1:
        dense = -(-dense // world_size) + 2 * (n if m is None else m) * d * dtype.itemsize
        if m is not None and "proxies" not in _parameters(called):
            others = -(-m * rows // max(n, 1))
    inputs, peak = step(rows, others, engine, world_size)
    return Memory(n, m, d, dtype, inputs, dense if engine == "dense" else peak, dense)


def _function(loss: str | Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(loss, str):
        one_of("loss", loss, sorted(losses.LOSSES))
        found: Callable[..., Any] = getattr(losses, loss)
        return found
    function("loss", loss, "a name or a function")
    return loss.forward if isinstance(loss, torch.nn.Module) else loss


def _parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """By name, the first one's is x: is it required? Those that `**common` stands for are in it."""
    result: dict[str, bool] = {}
    for name, parameter in signature_of("loss", function).parameters.items():
        if parameter.kind == parameter.VAR_KEYWORD:
            keywords_type = getattr(parameter.annotation, "__args__", (None,))[0]
            result |= dict.fromkeys(
                getattr(keywords_type, "__optional_keys__", ("ref_emb",)), False
            )
        elif parameter.kind != parameter.VAR_POSITIONAL:
            result[name if result else "x"] = parameter.default is parameter.empty
    return result


def _followed(
    function: Callable[..., Any],
    d: int,
    dtype: torch.dtype,
    n: int,
    m: int | None,
    engine: str,
    ranks: int,
) -> tuple[int, int]:
    """Bytes of what the function is given, and by how much more its step raises them."""
    # Slow to load, and seldom asked for.
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    if engine == "auto" and torch.cuda.is_available():
        engine = next(
            name for name, e in ENGINES.items() if e.DEVICE != "cpu" and e.missing() is None
        )
    # Where there is no GPU, what serves anything stands in for its engines.
    on_gpu = engine in ENGINES and ENGINES[engine].DEVICE == "cuda"
    served = "blockwise" if on_gpu else engine
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        given = _given(_parameters(function), n, m, d, dtype)
        tensors = list(given.values())
        leaves = [z for z in tensors if z.requires_grad]
        trace = TensorTrace(tensors, engine if served != engine else None, ranks)
        try:
            with engines.engine(served), trace:
                value = function(given.pop("x"), **given)
                value = value[0] if isinstance(value, tuple) else value
                trace.adds_in_place = True
                torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ValueError(
                "loss makes rows of positive pairs, or reads values otherwise; what it takes "
                "depends on the labels, and must be measured"
            ) from error
    return sum(z.nbytes for z in tensors), trace.peak


def _given(
    parameters: dict[str, bool], n: int, m: int | None, d: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Every argument that the function must have, on the CPU."""

    def rows(*extents: int) -> Tensor:
        return torch.empty(*extents, d, dtype=dtype, device="cpu", requires_grad=True)

    def vector(length: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(length, dtype=dtype, device="cpu")

    def numbers(length: int) -> Tensor:
        return vector(length, torch.float32)

    def constant(length: int) -> Tensor:
        return rows(length).detach()

    second = n if m is None else m
    queued = "queue" in parameters
    known: dict[str, Callable[[], Tensor]] = {
        "x": lambda: rows(n),
        "y": lambda: rows(n if queued else second),
        "gate": lambda: rows(n),
        "positives": lambda: rows(n, second // n if n else 1),
        "proxies": lambda: rows(second),
        "ref_emb": lambda: rows(second),
        "labels": lambda: vector(n),
        "partner_labels": lambda: vector(n),
        "proxy_labels": lambda: vector(second),
        "ref_labels": lambda: vector(second),
        "scores": lambda: numbers(n),
        "values": lambda: numbers(n),
        "ref_values": lambda: numbers(second),
        "predictions": lambda: numbers(n),
        "ref_predictions": lambda: numbers(second),
        "teacher": lambda: constant(n),
        "ref_teacher": lambda: constant(second),
        "teacher_x": lambda: constant(n),
        "teacher_y": lambda: constant(second),
        "queue": lambda: constant(second),
    }
    wanted = [name for name, required in parameters.items() if required]
    unknown = [name for name in wanted if name not in known]
    if unknown or "x" not in wanted:
        raise TypeError(
            f"loss requires ({', '.join(wanted)}); it must require embeddings, and else only what "
            f"is named {', '.join([name for name in known if name != 'x'])}"
        )
    if "proxies" in wanted:
        if m is None:
            raise ValueError("m is None; of a loss with proxies it must be how many there are")
        if "proxy_labels" in parameters:  # without them the values of labels are read
            wanted.append("proxy_labels")
    elif "positives" in wanted:
        if second % max(n, 1):
            raise ValueError(f"m is {second} and n is {n}; m must be a multiple of n")
    elif m is not None and "y" not in wanted:
        if "ref_emb" not in parameters:
            raise ValueError(f"m is {m}; of a loss without a second set it must be None")
        wanted += ["ref_emb"]
        wanted += [f"ref_{name}" for name in _OF_ROWS if name in wanted]
    return {name: known[name]() for name in wanted}


def _readable(size: int) -> str:
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.{0 if size >= 10 * unit else 1}f} {name}"
    return f"{size} bytes"
