"""Makes Triton's interpreter multiply as a GPU does, and do once what it does again and again."""

import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

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
    interpreter._patch_attr = _patch_attr
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda _: SimpleNamespace(restore=lambda: None)
    InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    # Shapes are few, and were looked at number by number for every result.
    interpreter._get_np_dtype = _numbers
    tl.block_type.__init__ = _block_type
    tl.block_type.with_element_ty = _with_element_type
    tl.tensor.__init__ = _tensor
    TritonSemantic.broadcast_impl_value = _broadcast
    TritonSemantic.binary_op_type_checking_impl = _operands
    TritonSemantic.cast = _cast
    tl.core._unwrap_if_constexpr = _unwrapped
    TensorHandle.__post_init__ = lambda _: None  # it compares the sizes of two dtypes


class TensorCore(NamedTuple):
    """How a GPU adds products of float16, by Khattak & Mikaitis (arXiv:2512.07004)."""

    products: int  # that it adds in one step, to one number that is there
    extra_bits: int  # that it keeps of them beyond float32's 24 while it adds


AMPERE, HOPPER = TensorCore(8, 1), TensorCore(16, 2)
# The tests have the one that loses more.
TENSOR_CORE = AMPERE
_FIELD, _BIAS = 255, 127  # of a float32's exponent


def _dot(_builder: Any, a: TensorHandle, b: TensorHandle, sums: TensorHandle, *_: Any) -> Any:
    """float16 as a tensor core multiplies it, float32 one product after another. The interpreter's
    own goes to a BLAS whose last bits depend on the place in a tile, and a pair's s would differ
    from pass to pass."""
    left, right = (np.ascontiguousarray(z, np.float32) for z in (a.data.T, b.data))
    if a.data.dtype == b.data.dtype == np.float16:
        return TensorHandle(truncated_dot(left, right, sums.data), sums.dtype.scalar)
    total = sums.data.copy()
    products = np.empty_like(total)
    for column, row in zip(left[:, :, None], right, strict=True):
        total += np.multiply(column, row, out=products)
    return TensorHandle(total, sums.dtype.scalar)


def truncated_dot(left: Any, right: Any, total: Any, core: TensorCore | None = None) -> Any:
    """Return total + leftᵀ right, of float32 arrays that hold float16 numbers.

    Each step truncates what it adds toward zero to 2^(E − 23 − extra bits), E the exponent of the
    largest, adds that exactly, and truncates the sum to 24 bits.
    """
    core = core or TENSOR_CORE
    for k in range(0, len(left), core.products):
        pieces = zip(
            left[k : k + core.products, :, None], right[k : k + core.products], strict=True
        )
        products = [column * row for column, row in pieces]
        largest = np.abs(total)
        for product in products:
            np.maximum(largest, np.abs(product), out=largest)  # NaN if there is one
        exponent = (largest.view(np.int32) >> 23) & _FIELD
        # The unit must be a number: sums below 2^−102 are rounded to 2^−127.
        steps = 23 + core.extra_bits + _BIAS - exponent
        up = np.ldexp(np.float32(1), np.minimum(steps, _BIAS))
        whole = (total * up).astype(np.int32)  # toward zero
        for product in products:
            whole += (product * up).astype(np.int32)
        wide = whole.astype(np.float64)
        wide.view(np.int64)[...] &= -1 << 29  # 24 bits of float64's 53 are left
        found = (wide / up).astype(np.float32)
        unbounded = exponent == _FIELD
        if unbounded.any():
            found = np.where(unbounded, total + sum(products), found)
        total = found
    return total


_block_type_as_it_was = tl.block_type.__init__
_broadcast_as_it_was = TritonSemantic.broadcast_impl_value
_operands_as_they_were = TritonSemantic.binary_op_type_checking_impl
_cast_as_it_was = TritonSemantic.cast
_unwrapped_as_it_was = tl.core._unwrap_if_constexpr
# Of two operands of one of these types neither is converted, whatever the operation.
_NEVER_CONVERTED = {t.name for t in (tl.float32, tl.float64, tl.int32, tl.int64, tl.int1)}
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


_block_types: dict[tuple[int, int], Any] = {}


def _with_element_type(self: Any, element_ty: Any) -> Any:
    """A type that is kept keeps the two objects that it is found by."""
    key = (id(element_ty), id(self.shape))
    found = _block_types.get(key)
    if found is None:
        found = _block_types[key] = tl.block_type(element_ty, self.shape)
    return found


def _tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = type.of_tensors if type.is_block() else _extent(())


def _broadcast(self: Any, lhs: Any, rhs: Any) -> Any:
    if getattr(lhs.type, "shape", None) is getattr(rhs.type, "shape", None):
        return lhs, rhs
    return _broadcast_as_it_was(self, lhs, rhs)


_constants: dict[tuple[Any, ...], Any] = {}


def _operands(self: Any, lhs: Any, rhs: Any, *flags: Any, **named: Any) -> Any:
    """Return both in one type and shape. A number becomes a block once for each of these."""
    if not isinstance(lhs, tl.tensor):
        return _operands_as_they_were(self, lhs, rhs, *flags, **named)
    if isinstance(rhs, tl.tensor):
        if lhs.dtype is rhs.dtype and lhs.dtype.name in _NEVER_CONVERTED:
            return self.broadcast_impl_value(lhs, rhs)
    elif isinstance(rhs, (int, float)):
        key = (rhs, type(rhs), lhs.dtype.name, id(lhs.shape), flags, *named.items())
        if key in _constants:
            return lhs, _constants[key]
        converted, constant = _operands_as_they_were(self, lhs, rhs, *flags, **named)
        if converted is lhs:
            constant.handle.data.flags.writeable = False
            _constants[key] = constant
        return converted, constant
    return _operands_as_they_were(self, lhs, rhs, *flags, **named)


def _cast(self: Any, given: Any, to: Any, *rounding: Any, **named: Any) -> Any:
    if given.type.scalar is to.scalar:
        return given
    return _cast_as_it_was(self, given, to, *rounding, **named)


def _patch_attr(obj: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
    """As it was, but without a look at whether an interpreter is given."""
    function = getattr(member, "__wrapped__", member)

    def call(*args: Any, **named: Any) -> Any:
        named["_semantic"] = interpreter.interpreter_semantic
        return function(*args, **named)

    scope.set_attr(obj, name, call)


def _unwrapped(given: Any) -> Any:
    """What is asked of most things is whether they are a list."""
    if isinstance(given, tl.constexpr):
        return given.value
    if isinstance(given, (list, tuple, tl.tuple)):
        return _unwrapped_as_it_was(given)
    return given
