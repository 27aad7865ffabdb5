"""The engines, who serves a call, and why another does not.

An engine is a module with `gather(pairs, rows, cols)`, the statistics of a call, `weigh`, its
gradient, and `declines(pairs, rows, cols)`, a reason or None. `dense` has no `weigh`: torch
differentiates it. To add an engine, write the module and name it in ENGINES, in order of
preference; `_preferred` knows the exceptions.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType

from torch import Tensor

from pairops.ops.distributed.header import AMBIENT
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term

from . import cpu as cpu_engine
from . import dense
from .blockwise import engine as blockwise_engine
from .cuda import engine as cuda_engine
from .triton import chunked
from .triton import engine as triton_engine

__all__ = ["ENGINES", "choose", "prepared", "use"]

# In order of preference, where `_preferred` does not say otherwise.
ENGINES: dict[str, ModuleType] = {
    "native": cpu_engine,
    "cuda": cuda_engine,
    "triton": triton_engine,
    "chunked": chunked,
    "blockwise": blockwise_engine,
    "dense": dense,
}

_ambient = threading.local()  # a ContextVar would break torch.compile(fullgraph=True)
_default = os.environ.get("PAIROPS_ENGINE", "auto")


def _named() -> str:
    """The engine that this thread asks for."""
    return getattr(_ambient, "engine", None) or _default


AMBIENT["engine"] = _named


def _known(name: str, source: str) -> str:
    if name != "auto" and name not in ENGINES:
        names = ", ".join(["auto", *ENGINES])
        raise ValueError(f"{source} is {name!r}; it must be one of {names}")
    return name


@contextlib.contextmanager
def use(engine: str) -> Iterator[None]:
    """Within this context, calls of this thread take the named engine; "auto" chooses again.

    Outside of it PAIROPS_ENGINE decides, read once at import; without it, "auto". A backward pass
    takes the engine of its forward pass.
    """
    before = getattr(_ambient, "engine", None)
    _ambient.engine = _known(engine, "engine")
    try:
        yield
    finally:
        _ambient.engine = before


def choose(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str:
    """The name of the engine that serves this call; ValueError if the named one cannot."""
    named = _known(_named(), "PAIROPS_ENGINE")
    if named != "auto":
        reason = ENGINES[named].declines(pairs, rows, cols)
        if reason is not None:
            raise ValueError(f"engine {named!r} cannot serve this call: {reason}")
        return named
    for name in _preferred(pairs):
        if ENGINES[name].declines(pairs, rows, cols) is None:
            return name
    raise AssertionError("dense serves every call")


def prepared(name: str, pairs: Pairs) -> list[Tensor]:
    """What this engine makes of the embeddings, once for all its calls with these pairs."""
    return cuda_engine.prepared(pairs) if name == "cuda" else []


def _preferred(pairs: Pairs) -> list[str]:
    """The engines in the order in which "auto" asks them."""
    names = list(ENGINES)
    if pairs.x.device.type == "cpu":
        # There kernels for GPUs run in tests alone, for who asks for them by name.
        return [name for name in names if name not in ("cuda", "triton", "chunked")]
    name = "cuda" if cuda_engine.declines(pairs, (), ()) is None else "triton"
    if triton_engine.MISSING is None and ENGINES[name].prefers_chunks(pairs):
        names.remove("chunked")
        names.insert(names.index(name), "chunked")
    return names
