"""The engines, who serves a call, and why another does not.

To add an engine, write a module with the names of `engine.Engine` and name it in ENGINES, in order
of preference; `_preferred` knows the exceptions.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from pairops.ops.distributed.header import AMBIENT
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.checks import one_of
from pairops.ops.terms.term import Term

from . import cpu as cpu_engine
from . import dense
from .blockwise import engine as blockwise_engine
from .cuda import engine as cuda_engine
from .engine import Engine, as_taken, bits_shape, reason_against
from .triton import chunked
from .triton import engine as triton_engine

__all__ = ["ENGINES", "Engine", "as_taken", "bits_shape", "choose", "use"]

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

# On a CPU kernels for GPUs run in tests alone, for who asks for them by name.
_ON_CPU = [engine.NAME for engine in _ENGINES if engine.DEVICE != "cuda"]

_ambient = threading.local()  # a ContextVar would break torch.compile(fullgraph=True)
_default = os.environ.get("PAIROPS_ENGINE", "auto")


def asked_for() -> str:
    """The engine that this thread asks for, or "auto"."""
    return getattr(_ambient, "engine", None) or _default


AMBIENT["engine"] = asked_for


def _known(name: str, source: str) -> str:
    if type(name) is not str or (name != "auto" and name not in ENGINES):
        one_of(source, name, ("auto", *ENGINES))
    return name


@contextlib.contextmanager
def use(engine: str) -> Iterator[None]:
    """Let calls of this thread take the named engine within a `with` block.

    Outside of it PAIROPS_ENGINE decides, read once at import; without it, "auto". A backward pass
    takes the engine of its forward pass.

    Args:
        engine: the name of an engine, or "auto", which chooses again.

    Raises:
        ValueError: there is no engine of this name.
    """
    before = getattr(_ambient, "engine", None)
    _ambient.engine = _known(engine, "engine")
    try:
        yield
    finally:
        _ambient.engine = before


def choose(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str:
    """The name of the engine that serves this call; ValueError if the named one cannot."""
    named = _known(asked_for(), "PAIROPS_ENGINE")
    if named != "auto":
        reason = reason_against(ENGINES[named], pairs, rows, cols)
        if reason is not None:
            raise ValueError(f"engine {named!r} cannot serve this call: {reason}")
        return named
    for name in _preferred(pairs):
        if reason_against(ENGINES[name], pairs, rows, cols) is None:
            return name
    raise AssertionError("dense serves every call")


def _preferred(pairs: Pairs) -> list[str]:
    """The engines in the order in which "auto" asks them."""
    if pairs.x.device.type == "cpu":
        return _ON_CPU
    names = list(ENGINES)
    first = cuda_engine if cuda_engine.declines(pairs, (), ()) is None else triton_engine
    if chunked.missing() is None and first.prefers_chunks(pairs):
        names.remove(chunked.NAME)
        names.insert(names.index(first.NAME), chunked.NAME)
    return names
