"""The gradient of a lowest or highest: it goes to one pair per owner, at O(N·D) and no sweep."""

from typing import Any

import torch
from torch import Tensor

from pairops.ops.terms.arguments import Argument, Partner, Table
from pairops.ops.pairs.indexing import add_rows
from pairops.ops.terms.term import Term


def weigh_extreme(
    term: Term, owners: Tensor, partners: Tensor, argument: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients by owners, by partners and by the term's tensor arguments.

    owners, partners: scaled embeddings.  argument: (N,) the partner that attained the extreme, or
    −1. Differentiable: plain torch throughout.
    """
    found = argument >= 0
    at = argument.clamp(min=0)
    if partners.shape[0] == 0:  # nothing to index; every argument is −1
        by_vector = [torch.zeros_like(v) for v in term.vectors()]
        return torch.zeros_like(owners), torch.zeros_like(partners), by_vector

    def select(values: Any) -> Tensor:
        """0 where there is no pair, whatever stands there: 0·NaN would carry it on."""
        return torch.where(found if values.dim() == 1 else found.unsqueeze(1), values, 0)

    owner, partner = select(owners), select(partners.index_select(0, at))
    s = (owner * partner).sum(1)
    args = [_of_pairs(a, at) for a in term.args]
    slope, *slopes = term.slopes(s, *args)
    weight = select(cotangent * slope).unsqueeze(1)
    by_vector = []
    for k, a in enumerate(term.args):
        if isinstance(a, Partner):
            by_vector.append(add_rows(a.values, at, select(cotangent * slopes[k])))
        elif isinstance(a, Tensor):
            by_vector.append(select(cotangent * slopes[k]))
    return weight * partner, add_rows(partners, at, weight * owner), by_vector


def _of_pairs(argument: Argument, at: Tensor) -> Any:
    """One value per owner, for the pair of each with the partner at `at`."""
    if isinstance(argument, Table):
        return argument.values[argument.owners, argument.partners[at]]
    return argument.values[at] if isinstance(argument, Partner) else argument
