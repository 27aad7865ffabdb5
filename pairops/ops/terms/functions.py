"""Functions of one pair: each as a value and its slopes, written for one scalar.

A built-in function consists of arithmetic and a few functions of torch, so that one source serves
every engine written in Python: torch traces it, and a kernel language replaces each function.
`csrc/math/functions.h` holds the twins for C++ and CUDA; a test holds the two together.
"""

import functools
import hashlib
import inspect
import re
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import detach, exp, log1p, relu

from .checks import flag, function, signature_of

__all__ = [
    "affine",
    "attended",
    "circle_pull",
    "circle_push",
    "gated",
    "hinge",
    "identity",
    "one",
    "sigmoid",
    "softplus",
    "softplus_from",
]

FUNCTIONS: dict[str, "Function"] = {}  # by name: a recipe names its functions, never a callable


@dataclass(frozen=True, eq=False)
class Function:
    """A pair function `value(s, *args)` with `slopes(s, *args) = (d/ds, d/darg_1, ...)`.

    `s` is one similarity and each argument one number; torch calls them on whole tiles,
    elementwise.

    A second function of the same name gets a name of its own, so a recipe always means one
    function. Functions are kept for good, so make them once, at module level. A copy of a function
    is the function itself, and so is a pickle of it that is read in the same process; in another
    process the pickle becomes the function of the same `value`, or else a function of its own.

    Args:
        value: a function of torch tensors, taken one by one: s, and the arguments.
        slopes: a function of the same arguments that returns a tuple of slopes. None: torch derives
            them from `value`, once, when the function is made.
        name: ASCII letters, digits and underscores; other characters become underscores, and none
            begins with a digit. "": the name of `value`.
        is_derivative: False takes the first slope as given although it is not the derivative, and
            holds it constant (a detached weight, as in circle loss), on every engine.
        finite: True promises a finite value and slope for every finite s, which spares a selection.

    Raises:
        TypeError: `value` does not tell its arguments, or uses a tensor that requires grad.
        ValueError: `slopes` is None and the slopes cannot be derived.
    """

    value: Callable[..., Any]
    slopes: Callable[..., Any] | None = None
    name: str = ""
    is_derivative: bool = True
    finite: bool = False
    arity: int = field(init=False, default=0)  # arguments besides s; read off `value`
    _given: Callable[..., Any] | None = field(init=False, repr=False, default=None)  # slopes, if so

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name is {type(self.name).__name__}; it must be a str")
        function("value", self.value, "a function of (s, *arguments)")
        if self.slopes is not None:
            function("slopes", self.slopes, "a function of (s, *arguments) or None")
        flag("is_derivative", self.is_derivative)
        flag("finite", self.finite)
        parameters = (signature := signature_of("value", self.value)).parameters.values()
        if not parameters or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
            raise TypeError(
                f"value must take (s, *arguments) one by one, but its signature is {signature}"
            )
        captured = inspect.getclosurevars(self.value) if inspect.isfunction(self.value) else None
        for where in (captured.nonlocals, captured.globals) if captured else ():
            for variable, held in where.items():
                if isinstance(held, torch.Tensor) and held.requires_grad:
                    raise TypeError(
                        f"value uses the tensor {variable}, which requires grad and would get "
                        "none; it must be an argument of value, and be given to the term"
                    )
        object.__setattr__(self, "arity", len(parameters) - 1)
        stem = self.name or getattr(self.value, "__name__", type(self.value).__name__)
        # Engines write the name into sources, where Python would read "ﬁ" as "fi".
        stem = re.sub(r"^(?=\d)|[^a-zA-Z0-9_]", "_", stem)
        name, copies = stem, 1
        while name in FUNCTIONS:
            copies += 1
            name = f"{stem}_{copies}"
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_given", self.slopes)
        if self.slopes is None:
            object.__setattr__(self, "slopes", _derive(self.value, self.arity))
        FUNCTIONS[name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        # Another function may have this name in the process that reads the pickle.
        origin = next((key for key, known in _ORIGINS.items() if known is self), None)
        if origin is None:
            origin = uuid.uuid4().hex
            _ORIGINS[origin] = self
        rest = self.name, self.is_derivative, self.finite
        return _from_pickle, (origin, self.value, self._given, *rest)


_ORIGINS: dict[str, Function] = {}  # by their names in pickles, of this process or another


def _from_pickle(
    origin: str,
    value: Callable[..., Any],
    slopes: Callable[..., Any] | None,
    name: str,
    is_derivative: bool,
    finite: bool,
) -> Function:
    if origin not in _ORIGINS:
        wanted = value, slopes, is_derivative, finite
        for known in FUNCTIONS.values():
            if (known.value, known._given, known.is_derivative, known.finite) == wanted:
                return known
        _ORIGINS[origin] = Function(value, slopes, name, is_derivative, finite)
    return _ORIGINS[origin]


@functools.cache
def source_of(function: Function) -> str:
    """Return a text that identifies the function in every process that runs the same program."""
    value = function.value
    digest = hashlib.sha256(_content(value, ()).encode()).hexdigest()
    return f"{getattr(value, '__qualname__', type(value).__qualname__)}#{digest[:8]}"


def _content(held: Any, within: tuple[Any, ...]) -> str:
    """Return code and its constants without all that differs between processes: addresses, paths,
    names of modules. within: the functions that contain it."""
    if any(held is outer for outer in within):
        return "itself"
    within = (*within, held)
    if isinstance(held, Function):
        return _content(held.value, within)
    if isinstance(held, types.CodeType):
        constants = [_content(constant, within) for constant in held.co_consts]
        return f"{held.co_code.hex()} {held.co_names} {constants}"
    if isinstance(held, types.FunctionType):
        cells = [cell.cell_contents for cell in held.__closure__ or ()]
        parts = held.__code__, *(held.__defaults__ or ()), *cells
        return str([_content(part, within) for part in parts])
    if isinstance(held, (tuple, list)):
        return str([_content(part, within) for part in held])
    if isinstance(held, functools.partial):
        keywords = sorted(held.keywords.items())
        return str([_content(part, within) for part in (held.func, held.args, keywords)])
    if isinstance(held, (bool, int, float, str, type(None))):
        return repr(held)
    return str(getattr(held, "__qualname__", type(held).__qualname__))


def _derive(value: Callable[..., Any], arity: int) -> Callable[..., Any]:
    """Derive slopes of `value` as a graph of plain operations.

    A graph, not a call into autograd: an op's body runs below autograd under `torch.compile`.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def slopes(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, *pullback = torch.func.vjp(value, *inputs)
        return tuple(pullback[0](torch.ones_like(output)))

    # Constants, since random ones would advance the caller's generator.
    samples = [torch.full((3, 5), 0.5) for _ in range(arity + 1)]
    try:
        graph = make_fx(slopes, tracing_mode="symbolic")(*samples)
    except Exception as error:
        name = getattr(value, "__name__", repr(value))
        raise ValueError(
            f"the slopes of {name} cannot be derived ({error}); pass slopes=, a function "
            "of the same arguments that returns (d/ds, d/darg_1, ...)"
        ) from error

    def derived(s: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
        spread = [torch.as_tensor(a, dtype=s.dtype, device=s.device).expand_as(s) for a in args]
        result: tuple[torch.Tensor, ...] = graph(s, *spread)
        return result

    return derived


def _identity(s):  # type: ignore[no-untyped-def]
    """s"""
    return s


def _identity_slopes(s):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return (1.0,)


def _one(s):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """1: pairs are counted."""
    return 1.0


def _one_slopes(s):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return (0.0,)


def _affine(s, scale, base):  # type: ignore[no-untyped-def]
    """scale · (s − base)"""
    return scale * (s - base)


def _affine_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    return scale, s - base, -scale


def _hinge(s, scale, base):  # type: ignore[no-untyped-def]
    """[scale · (s − base)]₊"""
    return relu(scale * (s - base))


def _hinge_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    z = scale * (s - base)
    active = (z > 0) + 0.0 * z  # 0 or 1, and NaN for NaN: a bare comparison would hide it
    return active * scale, active * (s - base), active * -scale


def _sigmoid(s, scale, base):  # type: ignore[no-untyped-def]
    """1 / (1 + e^{−scale · (s − base)})"""
    return torch.sigmoid(scale * (s - base))


def _sigmoid_slopes(s, scale, base):  # type: ignore[no-untyped-def]
    z = scale * (s - base)
    slope = torch.sigmoid(z) * torch.sigmoid(-z)  # 1 - sigmoid(z) has no digits at a large z
    return slope * scale, slope * (s - base), slope * -scale


def _softplus(s, scale, bias):  # type: ignore[no-untyped-def]
    """log(1 + e^{scale · s + bias})"""
    z = scale * s + bias
    above = relu(z)
    return above + log1p(exp(z - 2 * above))


def _softplus_slopes(s, scale, bias):  # type: ignore[no-untyped-def]
    share = torch.sigmoid(scale * s + bias)
    return share * scale, share * s, share


def _softplus_from(s, scale, base, bias):  # type: ignore[no-untyped-def]
    """log(1 + e^{scale · (s − base) + bias})"""
    z = scale * (s - base) + bias
    above = relu(z)
    return above + log1p(exp(z - 2 * above))


def _softplus_from_slopes(s, scale, base, bias):  # type: ignore[no-untyped-def]
    share = torch.sigmoid(scale * (s - base) + bias)
    return share * scale, share * (s - base), -share * scale, share


def _circle_pull(s, gamma, margin):  # type: ignore[no-untyped-def]
    """−γ [1 + m − s]₊ (s − 1 + m), with [·]₊ held constant"""
    return -gamma * detach(relu(1 + margin - s)) * (s - (1 - margin))


def _circle_pull_slopes(s, gamma, margin):  # type: ignore[no-untyped-def]
    weight = detach(relu(1 + margin - s))
    return -gamma * weight, -weight * (s - (1 - margin)), -gamma * weight


def _circle_push(s, gamma, margin):  # type: ignore[no-untyped-def]
    """γ [s + m]₊ (s − m), with [·]₊ held constant"""
    return gamma * detach(relu(s + margin)) * (s - margin)


def _circle_push_slopes(s, gamma, margin):  # type: ignore[no-untyped-def]
    weight = detach(relu(s + margin))
    return gamma * weight, weight * (s - margin), -gamma * weight


def _attended(s, scale, shift):  # type: ignore[no-untyped-def]
    """(s − shift / scale) e^{scale · s − shift}, with the power held constant"""
    return (s - shift / scale) * detach(exp(scale * s - shift))


def _attended_slopes(s, scale, shift):  # type: ignore[no-untyped-def]
    weight = detach(exp(scale * s - shift))
    return weight, shift / (scale * scale) * weight, -weight / scale


def _gated(s, t, scale, bar):  # type: ignore[no-untyped-def]
    """scale · s where t ≤ bar, else −∞; t is `between(u, v)`"""
    z = (t - bar) + 0.0 * s
    return torch.where(z <= 0, scale * s, torch.where(z > 0, -torch.inf, z))


def _gated_slopes(s, t, scale, bar):  # type: ignore[no-untyped-def]
    z = (t - bar) + 0.0 * s
    flat = torch.where(z > 0, 0.0, z)  # NaN for NaN, if it is used
    by_gate = torch.where(z <= 0, 0.0, flat)
    return torch.where(z <= 0, scale, flat), by_gate, torch.where(z <= 0, s, flat), by_gate


# s
identity = Function(_identity, _identity_slopes, "identity", finite=True)
# scale (s - base)
affine = Function(_affine, _affine_slopes, "affine", finite=True)
# max(0, scale (s - base)), with slope 0 at the kink
hinge = Function(_hinge, _hinge_slopes, "hinge", finite=True)
# 1 / (1 + exp(−scale (s - base))): Σ counts the pairs above base, softly
sigmoid = Function(_sigmoid, _sigmoid_slopes, "sigmoid", finite=True)
# log(1 + exp(scale s + bias)); a bias, not a base, because a learned scale may pass through 0
softplus = Function(_softplus, _softplus_slopes, "softplus", finite=True)
# log(1 + exp(scale (s - base) + bias)): exact where s and base are large and near
softplus_from = Function(_softplus_from, _softplus_from_slopes, "softplus_from", finite=True)
# 1: Σ counts the pairs inside the window, of which a NaN is one
one = Function(_one, _one_slopes, "one", finite=True)
# −gamma [1 + margin − s]₊ (s − (1 − margin)), the weight [·]₊ held constant: circle's positives
circle_pull = Function(_circle_pull, _circle_pull_slopes, "circle_pull", finite=True)
# gamma [s + margin]₊ (s − margin), [·]₊ held constant: circle loss's negatives
circle_push = Function(_circle_push, _circle_push_slopes, "circle_push", finite=True)
# s exp(scale s − shift), the exponential held constant: with the log-sum-exp of scale s as shift,
# Σ is the mean of s − shift / scale under a softmax without gradient, where shift is the log Σ exp:
# s lies near shift / scale, so that what the weights are off by is multiplied with little
attended = Function(_attended, _attended_slopes, "attended")
# scale s where t ≤ bar, else −inf: a log-sum-exp leaves out what a guide, t, rates above the bar
gated = Function(_gated, _gated_slopes, "gated")
