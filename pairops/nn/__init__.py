"""The losses as Modules: one class for each function of `pairops`, with its arguments and defaults.

`MSLoss(alpha=3.0)` is `pairops.ms_loss` with alpha=3.0; its call takes what the function takes.
The classes are to the functions what `torch.nn` is to `torch.nn.functional`. The classes of
pytorch-metric-learning, with their defaults, are in `pairops.compat.pml`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pairops.losses import LOSSES

from .classes import ELSEWHERE, RENAMED, class_of
from .module import LossModule as LossModule

_CLASSES = {cls.__name__: cls for cls in map(class_of, LOSSES.values())}
globals().update(_CLASSES)

if not TYPE_CHECKING:  # a type checker asks __getattr__
    __all__ = ["LossModule", *sorted(_CLASSES)]


def __getattr__(name: str) -> Callable[..., LossModule]:
    if name in ELSEWHERE:
        raise AttributeError(
            f"pairops.nn has no {name}, whose defaults in pytorch-metric-learning are not those of "
            f"a function here. Write pairops.compat.pml.{name} for that library's class, or "
            f"pairops.nn.{ELSEWHERE[name]} for the same numbers"
        )
    if name in RENAMED:
        raise AttributeError(
            f"pairops.nn has no {name}, whose defaults in pytorch-metric-learning are others. "
            f"Write pairops.nn.{RENAMED[name]}; docs/coming_from.md has the arguments for the same "
            "numbers"
        )
    raise AttributeError(f"pairops.nn has no {name}; it has {', '.join(_CLASSES)}")
