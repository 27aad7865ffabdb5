"""Makes Triton's interpreter multiply as a GPU does, and call functions at half the cost."""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, TensorHandle


def prepare() -> None:
    interpreter.InterpreterBuilder.create_dot = _dot
    InterpretedFunction.__call__ = _call
    # It computes what is not selected, and infinities on the way.
    np.seterr(all="ignore")


def _dot(_builder: Any, a: TensorHandle, b: TensorHandle, sums: TensorHandle, *_: Any) -> Any:
    """One product after another. The interpreter's own goes to a BLAS whose last bits depend on the
    place in a tile, and a pair's s would differ from pass to pass."""
    total = sums.data.copy()
    left, right = (z.data.astype(total.dtype) for z in (a, b))
    for k in range(left.shape[1]):
        total += left[:, k, None] * right[k]
    return TensorHandle(total, sums.dtype.scalar)


_standard: set[int] = set()  # modules of Triton's own functions that know how they are run


def _call(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """As it is, but a kernel's launch has told `tl` how it is run; it is not told at every call."""
    known = self.fn.__globals__
    if known.get("tl") is not tl and id(known) not in _standard:
        interpreter._patch_lang(self.fn)
        _standard.add(id(known))
    return self.rewrite()(*args, **kwargs)
