"""A loss of one's own from terms and a formula over their statistics."""

from collections.abc import Callable

from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.checks import function
from pairops.ops.terms.tensor_checks import check_embeddings
from pairops.ops.terms.term import Term

from .objective.keywords import Labelled, Value
from .objective.objective import labelled
from .objective.registration import loss


@loss(registered=False)
def pair_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *terms: Term,
    combine: Callable[..., Tensor],
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = combine(R_1,i … R_K,i), where R_k is what the k-th term gathers of a row's pairs.

    The function is `row_stats` and a reduction. A loss whose windows depend on statistics (mining)
    calls `row_stats` itself, as `ms_loss` does.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        terms: K terms, made by `total`, `lse`, `lowest` and `highest`; with
            `function=pairops.Function(value)` of any elementwise value.
        combine: a function that takes K tensors (N,) and returns one, in torch that autograd can
            differentiate. An empty side comes as 0, −inf, +inf, −inf for total, lse, lowest,
            highest, and the loss of such an anchor is what `combine` makes of them.
    """
    if not terms or not all(isinstance(term, Term) for term in terms):
        kinds = ", ".join([type(term).__name__ for term in terms]) or "nothing"
        raise TypeError(f"terms are {kinds}; they must be one or more pairops.Term, as of lse(NEG)")
    function("combine", combine)
    if common.get("group") is not None:  # `row_stats` checks terms too late: the ranks have begun
        check_embeddings("x", x)
        references = common.get("ref_emb")
        partners = len(references) if isinstance(references, Tensor) else len(x)
        for term in terms:
            term.over(len(x), partners, x.dtype)
    objective = labelled(x, labels, common)
    losses = combine(*row_stats(objective.pairs, *terms))
    if not isinstance(losses, Tensor) or losses.shape != x.shape[:1]:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"combine returned {got}; it must return a tensor ({x.shape[0]},)")
    return objective.value(losses)
