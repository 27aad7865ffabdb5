"""Translation of a pair function into Triton source: torch traces it, an operation is a line.

Derived slopes are traced like any others, so they are exact. The error names an operation without
translation; such a function still runs on `blockwise` and `dense`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pairops.ops.terms.functions import FUNCTIONS

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_LOGIC = {"logical_and": "&", "bitwise_and": "&", "logical_or": "|", "bitwise_or": "|"}
# `math.` is kernels/math.py, `tl.` is Triton's.
_CALLS = {
    **{name: f"tl.{name}" for name in ("abs", "exp", "exp2", "sqrt", "rsqrt", "sin", "cos", "erf")},
    **{name: f"math.{name}" for name in ("log", "log1p", "expm1", "tanh", "sigmoid", "relu")},
    **{name: f"math.{name}" for name in ("sign", "maximum", "minimum")},
    "where": "tl.where",
}
_SAME = ("alias", "clone", "detach", "expand", "lift_fresh_copy", "_to_copy", "copy")
_FILLED = {
    "full": 1,
    "full_like": 1,
    "scalar_tensor": 0,
}  # the index of the argument that is the number
_CONSTANT = {"zeros_like": "0.0", "ones_like": "1.0", "zeros": "0.0", "ones": "1.0"}
# Left by mutations: memory that is filled before it is read.
_CONSTANT |= dict.fromkeys(("empty", "empty_like", "empty_permuted", "empty_strided"), "0.0")
_LITERAL = {*_FILLED, *_CONSTANT}


class Untranslatable(ValueError):
    """Raised for an operation of a function that has no translation."""


@functools.cache
def reason_against(name: str) -> str | None:
    """Return why the function of this name cannot run in Triton, or None."""
    try:
        source(name)
    except Untranslatable as error:
        return str(error)
    except Exception as error:  # a trace may fail in ways unknown here
        return f"the function {name} has no Triton translation: {error!r}"
    return None


@functools.cache
def source(name: str) -> str:
    """Return the source of two functions of (s, a0, a1, …): `{name}_value`, in the shape of s, and
    `{name}_slopes`, a tuple."""
    function = FUNCTIONS[name]
    parameters = ", ".join(["s", *[f"a{k}" for k in range(function.arity)]])
    text = []
    for part, call in (("value", function.value), ("slopes", function.slopes)):
        lines, results, varies = _lines(f"{part} of the function {name}", call, function.arity)
        if part == "slopes" and len(results) != function.arity + 1:
            raise Untranslatable(
                f"the slopes of the function {name} are {len(results)}; there must be "
                f"{function.arity + 1}, by s and by each argument"
            )
        if part == "value" and not varies:
            results = [f"tl.zeros_like(s) + {results[0]}"]
        end = ", ".join(results) + ("," if part == "slopes" else "")
        text += [f"def {name}_{part}({parameters}):", *lines, f"    return {end}", ""]
    return "\n".join(text)


def literal(number: float) -> str:
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def _lines(what: str, call: Any, arity: int) -> tuple[list[str], list[str], bool]:
    """Return statements, expressions of the results, and whether the first varies with s."""
    graph = _trace(what, call, arity)
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    inputs = iter(["s", *[f"a{k}" for k in range(arity)]])
    varying: set[Any] = set()

    def said(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return literal(float(value))
        raise Untranslatable(f"{what} uses the constant {value!r}, which has no Triton translation")

    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = next(inputs)
            varying |= {node} if names[node] == "s" else set()
        elif node.op == "output":
            given = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
            return lines, [said(v) for v in given], given[0] in varying
        elif _is_shape(node):
            continue
        else:
            names[node] = f"t{len(lines)}"
            lines.append(f"    {names[node]} = {_expression(what, node, said)}")
            if varying.intersection(node.all_input_nodes) and _name(node) not in _LITERAL:
                varying.add(node)
    raise AssertionError("a graph ends in its output")


def _trace(what: str, call: Any, arity: int) -> fx.Graph:
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    # Constants, since random ones would advance the caller's generator.
    samples = [torch.full((3, 5), 0.5) for _ in range(arity + 1)]
    try:
        traced = make_fx(
            # Without mutations a node keeps its value.
            torch.func.functionalize(_as_plain(call), remove="mutations"),
            tracing_mode="symbolic",
            decomposition_table=dict(core_aten_decompositions().items()),
        )(*samples)
    except Exception as error:
        raise Untranslatable(f"the {what} cannot be traced by torch: {error}") from error
    traced.graph.eliminate_dead_code()
    return traced.graph


def _as_plain(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def plain(*inputs: Tensor) -> Any:
        found = call(*inputs)
        return tuple(found) if isinstance(found, Sequence) else found

    return plain


def _is_shape(node: fx.Node) -> bool:
    """Return whether the node is about extents only."""
    return not isinstance(node.meta.get("val"), Tensor)


def _name(node: fx.Node) -> str:
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else ""


def _is_bool(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return bool(value.meta["val"].dtype == torch.bool)
    return isinstance(value, bool)


def _expression(what: str, node: fx.Node, said: Callable[[Any], str]) -> str:
    name, args = _name(node), node.args

    def number(value: Any) -> str:
        """Write a value as a number: a truth value as 0 or 1."""
        return f"{said(value)}.to(tl.float32)" if _is_bool(value) else said(value)

    if name in _INFIX and not (set(node.kwargs) - {"alpha"}) and not _is_bool(node):
        scale = node.kwargs.get("alpha", 1)
        right = number(args[1]) if scale == 1 else f"{said(scale)} * {number(args[1])}"
        return f"{number(args[0])} {_INFIX[name]} {right}"
    if name in _COMPARE:
        return f"{number(args[0])} {_COMPARE[name]} {number(args[1])}"
    if name in _LOGIC and all(_is_bool(a) for a in args):
        return f"{said(args[0])} {_LOGIC[name]} {said(args[1])}"
    if name in ("logical_not", "bitwise_not") and _is_bool(args[0]):
        return f"{said(args[0])} == 0"
    if name == "neg":
        return f"-{number(args[0])}"
    if name == "reciprocal":
        return f"1.0 / {number(args[0])}"
    if name in _CALLS:
        first = said(args[0]) if name == "where" else number(args[0])
        return f"{_CALLS[name]}({', '.join([first, *[number(a) for a in args[1:]]])})"
    if name == "pow" and isinstance(args[1], (int, float)):
        return _power(number(args[0]), args[1])
    if name in ("clamp", "hardtanh"):
        unsaid = (None, None) if name == "clamp" else (-1.0, 1.0)
        bounds = [*args[1:], *unsaid[len(args) - 1 :]]
        result = number(args[0])
        for clamp, bound in zip(("math.maximum", "math.minimum"), bounds, strict=True):
            result = result if bound is None else f"{clamp}({result}, {number(bound)})"
        return result
    if name in _FILLED and not _is_bool(node):
        return said(args[_FILLED[name]])
    if name in _CONSTANT and not _is_bool(node):
        return _CONSTANT[name]
    if name in _SAME:
        held = args[1] if name == "copy" else args[0]
        if _is_bool(node) and _is_bool(held):
            return said(held)
        if node.meta["val"].dtype == torch.float32:
            return number(held)
    raise Untranslatable(
        f"the {what} uses {node.target}, which has no Triton translation; write it with "
        "arithmetic, comparisons, "
        f"{', '.join(sorted(_CALLS))}, clamp and powers, or use blockwise"
    )


def _power(base: str, exponent: float) -> str:
    whole, half = divmod(abs(exponent), 1)
    if exponent == 0:
        return "1.0"
    if half not in (0, 0.5) or (half and whole > 8):  # NaN for a negative base, as in torch
        return f"tl.exp({exponent} * math.log({base}))"
    if whole > 8:
        size = f"tl.exp({exponent} * math.log(tl.abs({base})))"
        return f"math.sign({base}) * {size}" if whole % 2 else size
    product = " * ".join([base] * int(whole) + ([f"tl.sqrt({base})"] if half else []))
    return product if exponent > 0 else f"1.0 / ({product})"
