"""A loss as a Module: it keeps arguments, shows them, moves and learns those that are tensors."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pairops.losses.objective.objective import Aux
from pairops.ops.pairs.signatures import refuse_unknown
from pairops.ops.terms.checks import plain_number

# These are learned by their logarithm, as CLIP does: they stay above 0, and a step is a factor.
_BY_LOGARITHM = ("temperature", "scale")


class LossModule(nn.Module):
    """Any loss function, with arguments that are given once: LossModule(my_loss, base=0.2).

    The classes of `pairops.nn` are made of it. Every keyword of the function may be given here or
    in a call; the call's goes first. An argument that is an `nn.Parameter` is learned, one that is
    another tensor is a buffer; all are attributes that may be set.

    Args:
        function: a loss, called as function(x, labels, ...) or function(x, y, ...).
        learn: names of arguments that are learned: each becomes a parameter with the value that is
            given, or with the function's default. A number is a parameter of shape (1,), since
            `fully_shard` takes none without dimensions. `temperature` and `scale` are learned by
            their logarithm, as the parameter `log_temperature` or `log_scale`.
        **arguments: keywords of the function.
    """

    if TYPE_CHECKING:  # nn.Module says Any

        def __call__(self, *tensors: Tensor, **keywords: Any) -> Tensor: ...

    def __init__(
        self, function: Callable[..., Any], *, learn: Sequence[str] = (), **arguments: Any
    ) -> None:
        super().__init__()
        _check_names(learn)
        self.register_load_state_dict_pre_hook(_with_dimensions)  # type: ignore[no-untyped-call]
        self.function = function
        self.logarithms = tuple(name for name in learn if name in _BY_LOGARITHM)
        defaults = _numbers(function) if learn else {}
        for name in learn:
            if name not in defaults and name not in arguments:
                known = ", ".join(defaults)
                raise ValueError(f"learn has {name!r}; it must hold names of numbers: {known}")
            value = arguments.pop(name, defaults.get(name))
            learned = _learned(name, value, name in self.logarithms)
            arguments[f"log_{name}" if name in self.logarithms else name] = learned
        self.names = tuple(name for name in arguments if name.removeprefix("log_") == name)
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """Collect the keywords that the function is called with."""
        given = {name: getattr(self, name) for name in self.names}
        for name in self.logarithms:
            given[name] = torch.exp(getattr(self, f"log_{name}"))
        return given

    def forward(self, *tensors: Tensor, **keywords: Any) -> Any:
        """Call the function; keywords go before those of the Module."""
        return self.function(*tensors, **{**self.arguments(), **keywords})

    def with_aux(self, *tensors: Tensor, **keywords: Any) -> tuple[Tensor, Aux]:
        """Call the function's `with_aux`: the loss, and what it saw of every anchor."""
        with_aux: Callable[..., Any] = self.function.with_aux  # type: ignore[attr-defined]
        found: tuple[Tensor, Aux] = with_aux(*tensors, **{**self.arguments(), **keywords})
        return found

    def extra_repr(self) -> str:
        learned = [f"log_{name}" for name in self.logarithms]
        shown = [f"{name}={_shown(getattr(self, name))}" for name in (*self.names, *learned)]
        if type(self) is LossModule:
            shown.insert(0, getattr(self.function, "__name__", repr(self.function)))
        return ", ".join(shown)


def check_arguments(
    function: Callable[..., Any], name: str, arguments: dict[str, Any], learn: Sequence[str]
) -> None:
    """Refuse what the function would refuse, by a call without rows."""
    parameters = inspect.signature(function).parameters
    known = frozenset(_keyword_only(function))
    refuse_unknown(name, arguments, known)
    _check_names(learn)
    refuse_unknown(name, learn, known)
    alone = {
        name: value
        for name, value in arguments.items()
        if name != "group" and not (isinstance(value, Tensor) and value.numel() != 1)
    }
    nothing = torch.zeros(0, 1, device="cpu")
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    stand_ins = {
        "labels": torch.zeros(0, dtype=torch.int64, device="cpu"),
        "positives": nothing.reshape(0, 1, 1),
        "proxies": torch.zeros(1, 1, device="cpu"),
    }
    with torch.no_grad():
        function(*[stand_ins.get(p.name, nothing) for p in positional], **alone)


def _check_names(learn: Sequence[str]) -> None:
    are_names = isinstance(learn, (list, tuple)) and all(isinstance(name, str) for name in learn)
    if not are_names:
        raise TypeError(f"learn is {learn!r}; it must be names of arguments, such as ['alpha']")


def _keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    return {name: p for name, p in parameters if p.kind is p.KEYWORD_ONLY}


def _numbers(function: Callable[..., Any]) -> dict[str, float]:
    """Find the arguments of a function that are floats by default."""
    defaults = {name: p.default for name, p in _keyword_only(function).items()}
    return {name: value for name, value in defaults.items() if type(value) is float}


def _learned(name: str, value: Any, by_logarithm: bool) -> nn.Parameter:
    if not isinstance(value, Tensor):
        value = torch.tensor([plain_number(name, value)])
    elif not value.is_floating_point():
        raise ValueError(f"{name} is {value.dtype}; it must be floating-point to be learned")
    value = value.detach().to(torch.get_default_dtype(), copy=True)
    value = value.reshape(1) if value.dim() == 0 else value
    if by_logarithm:
        if value.device.type != "meta" and not bool((value > 0).all()):
            raise ValueError(f"{name} is {value.tolist()}; it must be above 0 to be learned")
        value = value.log()
    return nn.Parameter(value)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):  # its value is on the device
        return f"{type(value).__name__}{tuple(value.shape)}"
    return repr(value)


def _with_dimensions(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load a number that was saved without dimensions into a parameter of shape (1,)."""
    for name, parameter in module.named_parameters(recurse=False):
        saved = state.get(prefix + name)
        if parameter.shape == (1,) and isinstance(saved, Tensor) and saved.dim() == 0:
            state[prefix + name] = saved.reshape(1)
