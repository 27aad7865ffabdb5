"""Small problems for the primitive, and terms of every kind to put to them."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pairops import ALL, NEG, POS, Pairs, between, highest, lowest, lse, partner, row_stats, total
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.terms import functions
from pairops.ops.terms.arguments import Argument, Between, Partner
from pairops.ops.terms.functions import hinge, softplus
from pairops.ops.terms.recipe import cuda_key, unpack
from pairops.ops.terms.term import Term

DOUBLE = torch.float64


def problem(
    n: int = 60, m: int = 0, d: int = 7, classes: int = 8
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    x, labels = torch.randn(n, d, dtype=DOUBLE), torch.randint(0, classes, (n,))
    if not m:
        return x, labels, {}
    y, ref_labels = torch.randn(m, d, dtype=DOUBLE), torch.randint(0, classes, (m,))
    return x, labels, {"ref_emb": y, "ref_labels": ref_labels}


def any_problem(
    n: int, m: int, d: int, classes: int, same: bool, named: bool
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Also of no rows; some are ignored. named: by ids, of which some are in both sets."""
    x, labels, other = problem(n, 0 if same else m, d, classes)
    if not same and m == 0:
        other = {"ref_emb": x[:0].clone(), "ref_labels": labels[:0]}
    if not same and named:
        other |= {"ids": torch.randint(0, 60, (n,)), "ref_ids": torch.randint(0, 60, (m,))}
    return x, torch.where(torch.rand(n) < 0.1, -100, labels), other


def every_kind_of_term(u: Tensor, v: Tensor, t: float | Tensor = 1.0) -> list[Term]:
    """u, v: one value per owner and per partner.  t: a number for all."""
    bound = u.detach()
    return [
        lse(POS, -2.0, 0.5),
        lse(NEG, 5.0, u, above=bound - 0.5),
        lse(ALL, u, partner(v), below=bound),
        total(NEG, 3.0, u, function=softplus, above=bound - 0.9, below=bound),
        total(POS, partner(v), 0.2, function=hinge),
        total(ALL, t, 0.0),
        lowest(POS),
        highest(NEG),
        highest(ALL, below=bound),
        lowest(ALL, u, partner(v), function=functions.affine, above=bound - 0.5),
        lowest(NEG, grad=False),
    ]


# A call with a product of further embeddings takes one set for two, so these have calls apart.
PRODUCTS = frozenset(name for name in cpu_engine.SERVED if "(b" in name)
WITHOUT_PRODUCTS = cpu_engine.SERVED - PRODUCTS


def served_terms(
    u: Tensor,
    v: Tensor,
    t: Tensor,
    *,
    above: Tensor | None = None,
    below: Tensor | None = None,
    names: Iterable[str] = WITHOUT_PRODUCTS,
    turn: int = 0,
) -> list[Term]:
    """A term for every name in csrc/recipes.h, so that one added later is tested by existing.

    u, v: one value per owner and per partner; t: 0-d. Where a term takes a value per owner it gets
    u, t and a number in turns; `turn` begins elsewhere. Products are of embeddings made of u and v.
    above, below: windows, by default of u.
    """
    terms = []
    for k, name in enumerate(sorted(names)):
        (pattern,), _ = unpack(name, [0.0] * 3, [u] * 5)
        given: list[Argument] = [u, t, 0.7]
        product = between(*[torch.stack([z, 1 - z], 1).detach() for z in (u, v)])
        args = [
            partner(v)
            if isinstance(a, Partner)
            else product
            if isinstance(a, Between)
            else given[(turn + k + place) % 3]
            for place, a in enumerate(pattern.args)
        ]
        pattern = replace(pattern, args=tuple(args))
        if pattern.above is not None:
            pattern = replace(pattern, above=u.detach() - 0.9 if above is None else above)
        if pattern.below is not None:
            pattern = replace(pattern, below=u.detach() if below is None else below)
        terms.append(pattern)
    return terms


def of_gpus(terms: Iterable[Term]) -> list[Term]:
    """Of these, those that the CUDA kernels are compiled for."""
    return [term for term in terms if cuda_key(term) in cuda_kernels.installed().kinds]


def gpu_problem(m: int) -> tuple[list[Tensor], Callable[..., tuple[Tensor, ...]]]:
    """200 rows, against m others if there are any, and every term that is compiled for GPUs over
    rows and over columns: what it is called with, and the call."""
    n = 200
    x, labels, other = problem(n=n, m=m, d=16, classes=12)
    labels[[5, 20, 150]] = -100
    if m:
        other["ref_labels"][7] = -100
        other |= {"ids": torch.randint(0, 300, (n,)), "ref_ids": torch.randint(0, 300, (m,))}
    leaves = [x, torch.rand(n) + 0.5, torch.rand(m or n) + 0.5, torch.tensor(1.3)]
    if m:
        leaves.append(other.pop("ref_emb"))

    def run(x: Tensor, u: Tensor, v: Tensor, t: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        pairs = Pairs.of(x, labels, **{**other, **({"ref_emb": y[0]} if y else {})})
        rows, columns = served_terms(u, v, t), served_terms(v, u, t, turn=1)
        return row_stats(pairs, *of_gpus(rows), cols=of_gpus(columns))

    return leaves, run


def terms_for(engine: str, n: int, m: int) -> list[Term]:
    """Terms of every kind that the engine serves."""
    u, v = torch.rand(n, dtype=DOUBLE), torch.rand(m, dtype=DOUBLE)
    if engine != "cpu":
        return every_kind_of_term(u, v)
    return served_terms(u, v, torch.tensor(1.3, dtype=DOUBLE))


def all_statistics(pairs: Pairs, engine: str = "blockwise") -> tuple[Tensor, ...]:
    torch.manual_seed(7)  # the same terms at every call
    n, m = pairs.shape
    return row_stats(pairs, *terms_for(engine, n, m), cols=terms_for(engine, m, n))


def results(run: Callable[[], tuple[Tensor, ...]], leaves: list[Tensor]) -> list[Tensor]:
    """Statistics, with infinities named, and gradients of a fixed combination of them."""
    statistics = run()
    live = [torch.where(r.isinf(), 0, r) for r in statistics if r.requires_grad]
    weighted = sum((r * torch.linspace(-1, 2, len(r))).sum() for r in live)
    return [*statistics, *torch.autograd.grad(weighted, leaves)]  # type: ignore[arg-type]


def sparse(
    n: int, m: int, dtype: torch.dtype = torch.float32
) -> tuple[Pairs, list[Term], list[Term]]:
    """Windowed terms of rows and of columns, of which most tiles keep no pair."""
    labels = torch.arange(n) // 5
    centre = torch.randn(max(60, n), 16)
    x = (centre[labels] + 0.3 * torch.randn(n, 16)).to(dtype)
    other = {}
    if m:
        ref_labels = torch.randint(0, 60, (m,))
        y = (centre[ref_labels] + 0.3 * torch.randn(m, 16)).to(dtype)
        other = {"ref_emb": y, "ref_labels": ref_labels}
    pairs = Pairs.of(x, labels, **other)
    return pairs, *windowed(pairs)


def windowed(pairs: Pairs) -> tuple[list[Term], list[Term]]:
    """Terms of rows and of columns whose windows keep pairs of close classes alone."""
    n, m = pairs.shape
    rows = [
        lse(NEG, 50.0, 0.5, above=torch.full((n,), 0.7)),
        total(POS, 1.0, 0.0, below=torch.full((n,), 0.8)),
    ]
    cols = [lse(NEG, 20.0, 0.5, above=torch.full((m,), 0.6))]
    return [t.over(n, m, torch.float32) for t in rows], [t.over(m, n, torch.float32) for t in cols]
