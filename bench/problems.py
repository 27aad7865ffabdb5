"""The problems: a batch of clustered embeddings and the arguments of a loss, alike for everyone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import pairops

# Arguments a loss does not run without, learned in training and therefore leaves here too
# (the initial values of SigLIP).
LEARNED = {"siglip": {"scale": 10.0, "bias": -10.0}}

FAMILY = 16  # classes


def losses() -> list[str]:
    """Every loss of pairops, by the name its function carries before `_loss`."""
    return sorted(name.removesuffix("_loss") for name in pairops.losses.__all__)


def function(loss: str) -> Callable[..., Tensor]:
    return getattr(pairops, f"{loss}_loss")


def takes_labels(loss: str) -> bool:
    """Whether the loss pairs by label; if not, it takes two sets and pairs by index."""
    return "labels" in inspect.signature(function(loss)).parameters


@dataclass(frozen=True)
class Setting:
    """All that makes a problem, in types that travel to another process as JSON."""

    loss: str
    n: int
    d: int = 128
    per_class: int = 4
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Problem:
    """`function(setting.loss)(x, other, **learned)` is the loss that is asked for."""

    setting: Setting
    x: Tensor  # (N, D)
    other: Tensor  # labels (N,), or the second set (N, D)
    learned: dict[str, Tensor] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Tensor]:
        """What the backward pass owes a gradient to."""
        return [t for t in (self.x, self.other, *self.learned.values()) if t.requires_grad]

    def in_float64(self) -> Problem:
        """The same stored numbers in float64, where rounding no longer matters."""

        def wide(t: Tensor) -> Tensor:
            return t.detach().double().requires_grad_() if t.requires_grad else t

        learned = {name: wide(t) for name, t in self.learned.items()}
        return Problem(self.setting, wide(self.x), wide(self.other), learned)


def problem(setting: Setting) -> Problem:
    """The batch of a setting: the same numbers in every process that asks for it.

    A batch in the middle of training: positives lie near a cosine of 1/2; classes come in families,
    within which negatives lie near 1/4 and the hardest of them reach the easiest positives, so
    that mining keeps most positives and a few negatives of each anchor. Rows of a class do not
    stand together, as in a shuffled batch.
    """
    random = torch.Generator().manual_seed(0)
    n, d = setting.n, setting.d
    labels = (torch.arange(n) // setting.per_class)[torch.randperm(n, generator=random)]
    families, classes, rows = (torch.randn(n, d, generator=random) for _ in range(3))
    x = (families[labels // FAMILY] + classes[labels]) / 2**0.5 + rows
    other = labels if takes_labels(setting.loss) else x + torch.randn(n, d, generator=random)

    def leaf(t: Tensor) -> Tensor:
        return t.to(setting.device, getattr(torch, setting.dtype)).requires_grad_()

    # A learned scalar stays in fp32 where the embeddings have 16 bits, as an optimiser keeps it.
    wide = torch.promote_types(getattr(torch, setting.dtype), torch.float32)
    return Problem(
        setting,
        leaf(x),
        leaf(other) if other.is_floating_point() else other.to(setting.device),
        {
            name: torch.tensor(value, dtype=wide, device=setting.device, requires_grad=True)
            for name, value in LEARNED.get(setting.loss, {}).items()
        },
    )
