"""Engines: their registry, and the choice of one for each call.

To add an engine, write a module with the names of `protocol.Engine` and name it in ENGINES, in
order of preference; `_preferred` knows the exceptions.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

import torch

from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings.devices import capability
from pairops.ops.distributed.header import AMBIENT
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.picked import copied, of_rows
from pairops.ops.terms.checks import one_of
from pairops.ops.terms.term import Term

from . import cpu as cpu_engine
from . import dense, first_use
from .blockwise import engine as blockwise_engine
from .cuda import engine as cuda_engine
from .protocol import Engine, reason_against, terms_for_engine, tile_masks_shape
from .triton import chunked
from .triton import engine as triton_engine

__all__ = [
    "ENGINES",
    "Engine",
    "asks_cuda_first",
    "choose",
    "engine",
    "first_use",
    "set_engine",
    "terms_for_engine",
    "tile_masks_shape",
]

# In order of preference, where `_preferred` does not say otherwise.
_ENGINES: list[Engine] = [
    cpu_engine,
    cuda_engine,
    triton_engine,
    chunked,
    blockwise_engine,
    dense,
]
ENGINES: dict[str, Engine] = {engine.NAME: engine for engine in _ENGINES}

# Kernels for GPUs run on a CPU in tests alone, when they are asked for by name.
_ON_CPU = [engine.NAME for engine in _ENGINES if engine.DEVICE != "cuda"]

_ambient = threading.local()  # a ContextVar would break torch.compile(fullgraph=True)
_default = os.environ.get("PAIROPS_ENGINE", "auto")


def asked_for() -> str:
    """Return the engine that this thread asks for, or "auto"."""
    return getattr(_ambient, "engine", None) or _default


AMBIENT["engine"] = asked_for


def _known(name: str, source: str) -> str:
    if type(name) is not str or (name != "auto" and name not in ENGINES):
        one_of(source, name, ("auto", *ENGINES))
    return name


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Let calls of this thread take the named engine within a `with` block.

    A backward pass takes the engine of its forward pass.

    Args:
        name: the name of an engine, or "auto", which chooses again.

    Raises:
        ValueError: there is no engine of this name.
    """
    before = getattr(_ambient, "engine", None)
    _ambient.engine = _known(name, "name")
    try:
        yield
    finally:
        _ambient.engine = before


def set_engine(name: str) -> None:
    """Let calls of this process take the named engine, where no `with pairops.engine(...)` does.

    The environment variable PAIROPS_ENGINE, which is read once at import, does the same.

    Args:
        name: the name of an engine, or "auto", the default.

    Raises:
        ValueError: there is no engine of this name.
    """
    global _default
    _default = _known(name, "name")


def choose(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str:
    """Return the name of the engine that serves this call; ValueError if the named one cannot."""
    *_, (name, reason) = asked_in_turn(pairs, rows, cols)
    if reason is not None:
        raise ValueError(f"engine {name!r} cannot serve this call: {reason}")
    return name


def asked_in_turn(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> list[tuple[str, str | None]]:
    """List the engines that are asked to serve a call, each with why it declines, or None.

    The last one serves it, unless it is named by the caller and declines.
    """
    if pairs.relation.picked is not None:  # engines see copies of some rows, however many
        pairs, rows = copied(pairs, 0, 0), of_rows(rows, 0, 0)
    named = _known(asked_for(), "PAIROPS_ENGINE")
    asked: list[tuple[str, str | None]] = []
    for name in _preferred(pairs) if named == "auto" else [named]:
        reason = reason_against(ENGINES[name], pairs, rows, cols)
        asked.append((name, reason))
        if reason is None:
            break
    return asked


def asks_cuda_first(pairs: Pairs) -> bool:
    """Return whether a call with these pairs is asked of the engine `cuda` before any other that
    serves a GPU."""
    named = asked_for()
    if named != "auto" or pairs.x.device.type == "cpu":
        return named == cuda_engine.NAME
    names = [name for name in _preferred(pairs) if ENGINES[name].DEVICE != "cpu"]
    return names[0] == cuda_engine.NAME


def _preferred(pairs: Pairs) -> list[str]:
    """Return the engines in the order in which "auto" asks them."""
    if pairs.x.device.type == "cpu":
        return _ON_CPU
    names = list(ENGINES)
    first = cuda_engine if cuda_engine.declines(pairs, (), ()) is None else triton_engine
    if first is cuda_engine and _triton_is_faster(pairs):
        first = triton_engine
        names.remove(first.NAME)
        names.insert(names.index(cuda_engine.NAME), first.NAME)
    if chunked.missing() is None and first.prefers_chunks(pairs):
        names.remove(chunked.NAME)
        names.insert(names.index(first.NAME), chunked.NAME)
    return names


def _triton_is_faster(pairs: Pairs) -> bool:
    """Return whether Triton's sweeps are expected to take less time than those of `cuda`.

    By instructions a pair, counted for compute capability 9.0 (docs/engines/cuda.md) and **not
    measured yet**, 16-bit embeddings reach these parts of `torch.mm`'s rate: at D = 128 0.67 by
    Triton and 0.35 by the sm_80 path of `cuda`, at D = 256 0.71 and 0.33. Above, neither that path
    was counted, nor another GPU, nor float32. Of few rows the launches are expected to take longer
    than the sweeps, and `cuda` has fewest where it sorts rows itself; the compiler may not know how
    many there are. A results file of a GPU that says otherwise goes before this.
    """
    x = pairs.x
    if x.dtype.itemsize != 2 or x.shape[1] > 256 or not _runs_sm_80_path_on_9_0(x.device):
        return False
    return torch.compiler.is_compiling() or max(pairs.shape) > cuda_kernels.MOST_RELATED


def _runs_sm_80_path_on_9_0(device: torch.device) -> bool:
    """Return whether `cuda` serves a GPU that has `wgmma` without it: nobody turned it on."""
    if device.type != "cuda" or cuda_kernels.on_hopper(device):
        return False
    return capability(device) == (9, 0)


# Marked like `devices.capability`.
_runs_sm_80_path_on_9_0._dynamo_marked_constant = True  # type: ignore[attr-defined]
