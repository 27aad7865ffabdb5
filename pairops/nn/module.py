"""What every Module does with its arguments: keeps them, shows them, passes them on."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict

from torch import Tensor, nn

from pairops.losses.objective.keywords import Asked, Value
from pairops.ops.distributed.group import Given


class Common(TypedDict, total=False):
    """Further arguments of every Module: see `Pairs.of`, and of the last two `losses.objective`."""

    normalize: bool | None
    ignore_index: int | None
    return_aux: bool
    group: Given


class Call(Asked, total=False):
    """Further arguments of a call; they go before those of the Module."""

    ids: Tensor | None
    ref_ids: Tensor | None
    exclude_self: bool | Literal["auto"]
    ignore_index: int | None


class Arguments(nn.Module):
    """A function of pairops and what it is called with besides embeddings and labels.

    An argument that is an `nn.Parameter` is learned, one that is another tensor is a buffer, and
    both may be set as attributes; so may the others.
    """

    def __init__(self, function: Callable[..., Value], **arguments: Any) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_with_dimensions)  # type: ignore[no-untyped-call]
        self.function = function
        self.names = tuple(arguments)
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def of(self, *tensors: Tensor, **further: Any) -> Value:
        """The function of `tensors`. further: arguments that go before those of the Module."""
        stored = {name: getattr(self, name) for name in self.names}
        return self.function(*tensors, **{**stored, **further})

    def extra_repr(self) -> str:
        shown = [getattr(self.function, "__name__", repr(self.function))]
        for name in self.names:
            value = getattr(self, name)
            tensor = isinstance(value, Tensor)  # its value is on the device
            known = f"{type(value).__name__}{tuple(value.shape)}" if tensor else repr(value)
            shown.append(f"{name}={known}")
        return ", ".join(shown)


def _with_dimensions(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A number that was saved without dimensions is loaded into a parameter of shape (1,)."""
    for name, parameter in module.named_parameters(recurse=False):
        saved = state.get(prefix + name)
        if parameter.shape == (1,) and isinstance(saved, Tensor) and saved.dim() == 0:
            state[prefix + name] = saved.reshape(1)


def no_tuples(indices_tuple: object) -> None:
    if indices_tuple is not None:
        raise ValueError(
            f"indices_tuple is a {type(indices_tuple).__name__}; it must be None, since a list of "
            "pairs is as long as the matrix is large. A loss mines while it looks at the pairs: "
            "MultiSimilarityLoss(epsilon=0.1) for MultiSimilarityMiner(0.1), "
            'TripletMarginLoss(mining="hard") for BatchHardMiner, and CrossBatchMemory of pairops '
            "makes no list"
        )
