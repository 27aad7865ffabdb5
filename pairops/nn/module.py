"""A loss as a Module: it keeps arguments, shows them, moves and learns those that are tensors."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pairops.losses.objective.objective import Aux
from pairops.ops.distributed.group import check_group
from pairops.ops.engines import engine
from pairops.ops.pairs.signatures import refuse_unknown
from pairops.ops.terms.checks import plain_number, shown

# These are learned by their logarithm, as CLIP does: they stay above 0, and a step is a factor.
_BY_LOGARITHM = ("temperature", "scale")


class LossModule(nn.Module):
    """Any loss function, with arguments that are given once: LossModule(my_loss, base=0.2).

    The classes of `pairops.nn` are made of it. Every keyword of the function may be given here or
    in a call; the call's goes first. An argument that is an `nn.Parameter` is learned, one that is
    another tensor is a buffer. All are attributes that may be read and set, given or not.

    Args:
        function: a loss, called as function(x, labels, ...) or function(x, y, ...).
        learn: names of arguments that are learned: each becomes a parameter with the value that is
            given, or with the function's default. A number is a parameter of shape (1,), since
            `fully_shard` takes none without dimensions. `temperature` and `scale` are learned by
            their logarithm, as the parameter `log_temperature` or `log_scale`.
        arguments: keywords of the function.
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
        self.names: tuple[str, ...] = ()
        self.defaults = _defaults(function)
        for name in {*self.defaults, *arguments} & set(dir(self)):
            raise ValueError(f"{name} is an argument of the function, and a name of every Module")
        for name in learn:
            if name not in arguments and not isinstance(self.defaults.get(name), (float, Tensor)):
                raise ValueError(f"learn has {name!r}; it must be given as a number or a tensor")
            value = arguments.pop(name, self.defaults.get(name))
            learned = _learned(name, value, name in self.logarithms)
            arguments[f"log_{name}" if name in self.logarithms else name] = learned
        for name, value in arguments.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        known = self.__dict__.get("defaults", ())
        if known and name in self.logarithms:
            raise AttributeError(f"{name} is learned; set log_{name}, its logarithm")
        if name in known and name not in self.names:
            self.names = (*self.names, name)
        if name in known and type(value) is Tensor and name not in self._buffers:
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("defaults", ()) and name not in self.names:
            if name in self.logarithms:
                return torch.exp(getattr(self, f"log_{name}"))
            return self.defaults[name]
        return super().__getattr__(name)

    def arguments(self) -> dict[str, Any]:
        """Collect the keywords that the function is called with."""
        given = {name: getattr(self, name) for name in self.names}
        for name in self.logarithms:
            given[name] = torch.exp(getattr(self, f"log_{name}"))
        return given

    def forward(self, *tensors: Tensor, **keywords: Any) -> Any:
        """Call the function; keywords go before those of the Module.

        Args:
            tensors: what the function takes by position.
            keywords: keywords of the function.
        """
        return self.function(*tensors, **{**self.arguments(), **keywords})

    def with_aux(self, *tensors: Tensor, **keywords: Any) -> tuple[Tensor, Aux]:
        """Call the function's `with_aux`: the loss, and what it saw of every anchor.

        Args:
            tensors: what the function takes by position.
            keywords: keywords of the function.
        """
        with_aux: Callable[..., Any] = self.function.with_aux  # type: ignore[attr-defined]
        found: tuple[Tensor, Aux] = with_aux(*tensors, **{**self.arguments(), **keywords})
        return found

    def extra_repr(self) -> str:
        learned = [f"log_{name}" for name in self.logarithms]
        parts = [f"{name}={_shown(getattr(self, name))}" for name in (*self.names, *learned)]
        if type(self) is LossModule:
            parts.insert(0, getattr(self.function, "__name__", repr(self.function)))
        return ", ".join(parts)


def _holds_tensors(value: object) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(part, Tensor) for part in parts)


def check_arguments(
    function: Callable[..., Any], name: str, arguments: dict[str, Any], learn: Sequence[str]
) -> None:
    """Refuse what the function would refuse, by a call without rows."""
    parameters = inspect.signature(function).parameters
    known = frozenset(_keyword_only(function))
    refuse_unknown(name, arguments, known)
    _check_names(learn)
    refuse_unknown(name, learn, known)
    for key in learn:
        if "Tensor" not in str(parameters[key].annotation):
            raise ValueError(f"learn has {key!r}; {name}() takes no tensor for it")
    for key, value in arguments.items():
        if isinstance(value, Tensor) and "Tensor" not in str(parameters[key].annotation):
            raise TypeError(f"{key} is a tensor; {name}() takes none for it")
    check_group(arguments.get("group"))
    nothing = torch.zeros(0, 1, device="cpu")
    if type(nothing) is not Tensor:  # in a mode without values
        return
    # Tensors are for a batch that is not here, or on another device.
    alone = {k: v for k, v in arguments.items() if k != "group" and not _holds_tensors(v)}
    positional = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    classes = torch.zeros(0, dtype=torch.int64, device="cpu")
    if alone.get("positive_weight", "equal") != "equal":  # which is of several labels
        classes = torch.zeros(0, 1, dtype=torch.bool, device="cpu")
    stand_ins = {
        "labels": classes,
        "partner_labels": classes,
        "positives": nothing.reshape(0, 1, 1),
        "proxies": torch.zeros(1, 1, device="cpu"),
        "queue": torch.zeros(1, 1, device="cpu"),
        "scores": torch.zeros(0, device="cpu"),
        "values": torch.zeros(0, device="cpu"),
        "predictions": torch.zeros(0, device="cpu"),
    }
    with torch.no_grad(), engine("auto"):
        function(*[stand_ins.get(p.name, nothing) for p in positional], **alone)


def _check_names(learn: Sequence[str]) -> None:
    are_names = isinstance(learn, (list, tuple)) and all(isinstance(name, str) for name in learn)
    if not are_names:
        raise TypeError(
            f"learn is {shown(learn)}; it must be names of arguments, such as ['alpha']"
        )


def _keyword_only(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.items()
    return {name: p for name, p in parameters if p.kind is p.KEYWORD_ONLY}


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Find the arguments of a function that have a name and a default."""
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if p.default is not p.empty}


def _learned(name: str, value: Any, by_logarithm: bool) -> nn.Parameter:
    if isinstance(value, nn.Parameter) and not by_logarithm:
        return value
    if not isinstance(value, Tensor):
        value = torch.tensor([plain_number(name, value)])
    elif not value.is_floating_point():
        raise ValueError(f"{name} is {value.dtype}; it must be floating-point to be learned")
    value = value.detach().clone()
    value = value.reshape(1) if value.dim() == 0 else value
    if by_logarithm:
        readable = type(value) is Tensor and value.device.type == "cpu"
        if readable and not bool((value > 0).all()):
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
