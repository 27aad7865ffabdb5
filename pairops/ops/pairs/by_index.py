"""Pairs by index: y_i is the one positive of x_i."""

from dataclasses import replace

from torch import Tensor

from pairops.ops.distributed.group import Group
from pairops.ops.terms.tensor_checks import check_embeddings

from .by_label import fingerprint, sort_by_label
from .checks import compares_units
from .distances import Distance, centred
from .indexing import arange
from .pairs import Pairs
from .shards import Shards
from .similarity import at_least_float32


def pairs_by_index(
    x: Tensor,
    y: Tensor,
    *,
    distance: Distance = "cosine",
    normalize: bool | None = None,
    group: Group | None = None,
) -> Pairs:
    """Make `Pairs.paired` for a loss that has checked x and agreed with the other ranks."""
    check_embeddings("y", y, like=("x", x))
    if y.shape[0] < x.shape[0]:
        raise ValueError(
            f"y has {y.shape[0]} rows; it must have at least {x.shape[0]}, one for each of x"
        )
    unit = compares_units(distance, normalize)
    if distance == "snr":
        x, y = centred("x", x, None, None, unit), centred("y", y, None, None, unit)
    elif distance in ("l2", "sqeuclidean") and not unit:
        x, y = at_least_float32(x), at_least_float32(y)
    # Columns without a partner need a permutation of their own, as labels give.
    apart = x.shape[0] != y.shape[0]
    of_x, of_y = (arange(x), arange(y)) if apart else (None, None)
    known = sort_by_label(x, y, of_x, of_y, None, False, unit and distance != "snr")
    pairs = Pairs(x, y, *known, complete=True)
    if group is not None:
        shards = Shards.by_index(group, fingerprint(x, y, distance, unit), x, y)
        pairs = replace(pairs, shards=shards)
    return pairs.measured(distance)
