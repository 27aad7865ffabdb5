"""Keywords that losses share: a weight per anchor, a reduction, a group, and those of `Pairs`."""

from typing import Any, Literal, TypeAlias, TypedDict

from torch import Tensor

from pairops.ops.distributed.group import Given
from pairops.ops.pairs.pairs import Comparing, Pairing, Relating

__all__ = ["Asked"]

# A Tensor, or with `with_aux` a tuple (Tensor, Aux).
Value: TypeAlias = Any

Reduction = Literal["mean", "mean_nonzero", "mean_pairs", "sum", "none"]


class Asked(TypedDict, total=False):
    """The keywords that every loss has; `Objective.of` documents them."""

    weight: Tensor | None
    reduction: Reduction
    group: Given


class RelatedBy(TypedDict, total=False):
    """The keywords of positives by a width or a list, in place of equal labels; `registration`
    documents them."""

    width: float | None
    positives: tuple[Tensor, Tensor] | None


class Labelled(Pairing, RelatedBy, Asked, total=False):
    """The keywords of a loss over labels."""


class LabelledApart(Relating, RelatedBy, Asked, total=False):
    """The keywords of a loss over labels with its own default of `distance`."""

    normalize: bool | None


class UnlabelledApart(Relating, Asked, total=False):
    """The keywords of `LabelledApart` for a loss that asks labels for nothing but ignored rows."""

    normalize: bool | None


class Numbered(Comparing, Asked, total=False):
    """The keywords of a loss over numbers."""

    ref_emb: Tensor | None
    ref_values: Tensor | None
    ids: Tensor | None
    ref_ids: Tensor | None
    exclude_self: bool | Literal["auto"]


class ClassesApart(Relating, Asked, total=False):
    """The keywords of `LabelledApart` for a loss over classes, not over numbers or lists."""

    normalize: bool | None


class LabelledAlone(Comparing, Asked, total=False):
    """The keywords of a loss over labels that takes no references and leaves nobody out."""

    ignore_index: int | None


class LabelledAloneApart(Asked, total=False):
    """The keywords of `LabelledAlone` for a loss with its own default of `distance`."""

    normalize: bool | None
    ignore_index: int | None


class Paired(Comparing, Asked, total=False):
    """The keywords of a loss over two sets that belong together row by row."""


class PairedApart(Asked, total=False):
    """The keywords of `Paired` for a loss with its own default of `distance`."""

    normalize: bool | None
