"""Dual softmax: references that are near to every query of a bank go back in the order."""

import math
from typing import Literal

import torch
from torch import Tensor

from pairops.ops.bindings.devices import widest_float
from pairops.ops.distributed.allocation import refusing
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import (
    apply_scale,
    at_least_float32,
    constant_inverse_norm,
    no_autocast,
)
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.checks import flag, plain_number
from pairops.ops.terms.tensor_checks import check_embeddings
from pairops.ops.terms.term import ALL, highest, lse

# Beyond these 1/β log mean_k e^{β s_kj} is the mean of s_kj or the highest, to within 1e-7.
_SCALES = 1e-7, 1e30


@refusing
@torch.no_grad()
def dual_softmax(
    x: Tensor, y: Tensor, bank: Tensor, *, scale: float = 3.0, dynamic: bool = False
) -> tuple[Tensor, Tensor]:
    """Make queries and references whose dot products rank by a softmax over a bank of queries.

    A reference that is near to many queries is a hub, and comes first where it should not. With
    cosines s, query i ranks reference j by

        e^{β s_ij} / Σ_k e^{β s_kj}, k in the bank, which is the order of
        s_ij − 1/β log mean_k e^{β s_kj}

    The second form is the dot product of what is returned: unit vectors with one number more.

        queries, references = dual_softmax(x, y, bank)
        evaluate(queries, labels, ref_emb=references, ref_labels=ref_labels, distance="dot")

    It takes K·M products, with `dynamic` N·M more, with a scale below 1 K·M more in float64, and
    one longer copy of each set; no matrix. The references may be one rank's part of all, against
    the whole bank, for `evaluate(group=)`. With `dynamic` they must be all.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the queries.
        y: (M, D) of the dtype of x, the references.
        bank: (K, D) of the dtype of x, queries that are known beforehand, as those of the training.
        scale: a number above 0, the β. The greater, the fewer queries make a hub.
        dynamic: True changes those queries alone whose nearest reference is the nearest one of some
            query of the bank (of several that are equally near, the first). Others rank by s_ij.

    Returns:
        (N, D + 1) and (M, D + 1) float32, or float64 for float64 embeddings, without gradient. They
        are other rows than x and y, so where x is compared with itself name the rows by `ids=`, or
        say `exclude_self=True`.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        Wang et al., Balance Act: Mitigating Hubness in Cross-Modal Retrieval with Query and Gallery
        Banks, EMNLP 2023 (DBNorm); Bogolin et al., Cross Modal Retrieval with Querybank
        Normalisation, CVPR 2022 (`dynamic`).

    Differs from:
        DBNorm's code holds all similarities, and multiplies by a second softmax, over a bank of
        references; its dynamic form looks at the k nearest of a query of the bank, here k is 1.
    """
    scale = plain_number("scale", scale, positive=True)
    flag("dynamic", dynamic)
    check_embeddings("x", x)
    check_embeddings("y", y, like=("x", x))
    check_embeddings("bank", bank, like=("x", x))
    if not len(bank):
        raise ValueError(f"bank has shape {tuple(bank.shape)}; it must have at least one row")
    scale = min(max(scale, _SCALES[0]), _SCALES[1])
    with no_autocast(x.device.type):
        known = _compared(bank, y, False)
        nearest = (highest(ALL, index=True),) if dynamic else ()
        means = lse(ALL, scale, 0.0)
        *seen, often = row_stats(known, *nearest, cols=[means])
        if scale < 1:  # the rounding of the logarithm is divided by it
            queries, references = (z.to(widest_float(z.device)) for z in (bank, y))
            (often,) = row_stats(_compared(queries, references, False), cols=[means])
        back = ((often - math.log(len(bank))) / scale).to(at_least_float32(x[:0]).dtype)
        changed = x.new_ones(len(x), 1, dtype=back.dtype)
        if dynamic:
            # The last place is that of a query that is near to none.
            hubs = torch.zeros(len(y) + 1, dtype=torch.bool, device=x.device)
            hubs[seen[0][1]] = True
            hubs[-1] = False
            (of_queries,) = row_stats(_compared(x, y, "auto"), *nearest)
            changed = hubs[of_queries[1]].to(back.dtype).unsqueeze(1)
        return torch.cat([_units(x), changed], 1), torch.cat([_units(y), -back.unsqueeze(1)], 1)


def _compared(rows: Tensor, references: Tensor, exclude_self: bool | Literal["auto"]) -> Pairs:
    """Make pairs of all rows with all references."""
    labels = [torch.zeros(len(z), dtype=torch.int64, device=z.device) for z in (rows, references)]
    return Pairs.of(
        rows, labels[0], ref_emb=references, ref_labels=labels[1] + 1, exclude_self=exclude_self
    )


def _units(z: Tensor) -> Tensor:
    return apply_scale(z, constant_inverse_norm(z), at_least_float32(z[:0]).dtype)
