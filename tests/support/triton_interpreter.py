"""Makes Triton's interpreter multiply as a GPU does, and do once what it does again and again."""

import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterOptions, TensorHandle


def prepare() -> None:
    interpreter.InterpreterBuilder.create_dot = _dot
    # It computes what is not selected, and infinities on the way.
    np.seterr(all="ignore")
    # Whether each sum and product overflows is computed for an assertion that is never made.
    assert not InterpreterOptions().debug
    interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    # `tl` is told once how it is run, and not at every launch and call.
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _: SimpleNamespace(restore=lambda: None)
    InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    # Shapes are few, and were looked at number by number for every result.
    interpreter._get_np_dtype = _numbers
    tl.block_type.__init__ = _block_type
    tl.tensor.__init__ = _tensor
    TritonSemantic.broadcast_impl_value = _broadcast


def _dot(_builder: Any, a: TensorHandle, b: TensorHandle, sums: TensorHandle, *_: Any) -> Any:
    """One product after another. The interpreter's own goes to a BLAS whose last bits depend on the
    place in a tile, and a pair's s would differ from pass to pass."""
    total = sums.data.copy()
    left, right = (np.ascontiguousarray(z, total.dtype) for z in (a.data.T, b.data))
    products = np.empty_like(total)
    for column, row in zip(left[:, :, None], right, strict=True):
        total += np.multiply(column, row, out=products)
    return TensorHandle(total, sums.dtype.scalar)


_block_type_as_it_was = tl.block_type.__init__
_broadcast_as_it_was = TritonSemantic.broadcast_impl_value
_NUMBERS = {
    t.name: interpreter._get_np_dtype(t)
    for t in vars(tl).values()
    if isinstance(t, tl.dtype) and not t.is_ptr() and t.name != "void"
}


def _numbers(dtype: Any) -> Any:
    scalar = dtype.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else _NUMBERS[scalar.name]


@functools.cache
def _shape(lengths: tuple[int, ...]) -> tuple[Any, ...]:
    """What types of blocks have of their shape."""
    known = tl.block_type.__new__(tl.block_type)
    _block_type_as_it_was(known, tl.int32, list(lengths))
    return known.shape, known.numel, str(known.shape), _extent(lengths)


@functools.cache
def _extent(lengths: tuple[int, ...]) -> tuple[Any, ...]:
    """What tensors have of it."""
    return tl.constexpr(math.prod(lengths)), tl.tuple([tl.constexpr(n) for n in lengths])


def _block_type(self: Any, element_ty: Any, shape: Any) -> None:
    lengths = tuple([n.value if isinstance(n, tl.constexpr) else n for n in shape])
    self.shape, self.numel, name, self.of_tensors = _shape(lengths)
    self.element_ty, self.name = element_ty, f"<{name}, {element_ty}>"


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = type.of_tensors if type.is_block() else _extent(())


def _broadcast(self: Any, lhs: Any, rhs: Any) -> Any:
    if getattr(lhs.type, "shape", None) is getattr(rhs.type, "shape", None):
        return lhs, rhs
    return _broadcast_as_it_was(self, lhs, rhs)
