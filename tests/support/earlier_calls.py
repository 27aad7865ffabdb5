"""Calls whose terms refer to earlier ones, and the same calls one after the other."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Earlier, Pairs, Term, highest, lowest, lse, row_stats, total
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.terms.functions import Function, affine, softplus, softplus_from
from pairops.ops.terms.levels import numbered
from pairops.ops.terms.recipe import cpu_key, cuda_key
from support.engine_names import NARROW
from support.term_problems import DOUBLE, problem, results

Step = Callable[["Refers"], Term]

quotient = Function(lambda s, u: s / u, name="quotient_of_an_earlier_term")


class Refers:
    """How a step refers to the k-th term before it: by that term, or by a tensor."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found

    def window(self, k: int) -> Any:
        return self.found[k]

    def constant(self, k: int) -> Any:
        return self.found[k]

    def carried(self, k: int) -> Any:
        return Earlier(self.found[k], grad=True)


class InTurn(Refers):
    """An owner whose earlier statistic is infinite has no pairs; any number stands for it."""

    def __init__(self, found: list[Tensor]) -> None:
        super().__init__(found)
        self.missing = torch.zeros(len(found[0]) if found else 0, dtype=torch.bool)

    def constant(self, k: int) -> Any:
        return self.carried(k).detach()

    def carried(self, k: int) -> Any:
        absent = self.found[k].isinf()
        self.missing = self.missing | absent
        return torch.where(absent, 1.0, self.found[k])


def near(_: Refers) -> Term:
    return highest(POS, grad=False)


CALLS: dict[str, list[Step]] = {
    "windows": [
        lambda _: lowest(POS, 1.0, 0.1, function=affine, grad=False),
        lambda _: highest(NEG, 1.0, -0.1, function=affine, grad=False),
        lambda at: lse(NEG, 5.0, 0.1, above=at.window(0)),
        lambda at: lse(POS, -2.0, 0.1, below=at.window(1)),
    ],
    "constants": [
        near,
        lambda at: lse(NEG, 4.0, at.constant(0)),
        lambda at: total(POS, 4.0, at.constant(0)),
    ],
    "gradient": [
        near,
        lambda at: lse(NEG, 4.0, at.constant(0)),
        lambda at: total(POS, -4.0, at.constant(0), at.carried(1), function=softplus_from),
    ],
    "carried": [
        lambda _: lse(NEG, 4.0, 0.3),
        lambda at: total(POS, -4.0, 0.3, at.carried(0), function=softplus_from),
    ],
    "levels": [
        lambda _: lse(NEG, 2.0, 0.1),
        lambda at: lse(POS, 1.5, at.carried(0)),
        lambda at: total(NEG, at.carried(1), at.carried(0), function=softplus),
        lambda at: lse(ALL, at.carried(2), at.carried(0)),
        lambda at: total(POS, at.carried(0), at.carried(3)),
    ],
    "windows of what found no pair": [
        near,
        lambda at: highest(NEG, 2.0, at.constant(0), function=affine, grad=False),
        lambda at: lse(POS, -2.0, 0.1, below=at.window(1)),
        lambda at: total(NEG, 3.0, at.constant(2), function=softplus),
        lambda at: lse(NEG, 2.0, at.carried(3), above=at.window(0)),
        lambda at: highest(NEG, below=at.window(0)),
        lambda at: highest(NEG, below=at.window(1)),
        lambda at: lse(NEG, 2.0, 0.1, above=at.window(1)),
    ],
    "gradients of what has none": [
        near,
        lambda at: lse(NEG, 2.0, at.carried(0)),
        lambda at: lowest(POS, 1.0, at.carried(1), function=affine, grad=False),
        lambda at: lse(POS, 2.0, at.carried(2)),
    ],
    "an extreme with a gradient": [
        lambda _: lowest(POS),
        lambda at: highest(NEG, below=at.window(0)),
        lambda at: lse(NEG, 3.0, at.carried(0)),
        lambda at: total(POS, 1.0, at.carried(1)),
    ],
    "an extreme by an argument": [
        lambda _: lse(POS, 2.0, 0.1),
        lambda at: highest(NEG, 0.5, at.carried(0), function=affine),
        lambda at: lowest(ALL, at.constant(1), 0.1, function=affine, above=at.window(1)),
    ],
    "a quotient": [
        lambda _: lowest(POS),
        lambda at: total(NEG, at.carried(0), function=quotient),
        lambda at: lse(ALL, at.constant(0), function=quotient),
        lambda at: highest(NEG, at.carried(2), function=quotient),
    ],
}  # fmt: skip
OWNERS = ["mixed", "one class", "all distinct"]


def terms_of(name: str) -> list[Term]:
    terms: list[Term] = []
    for step in CALLS[name]:
        terms.append(step(Refers(terms)))
    return terms


def in_turn(pairs: Pairs, name: str, cols: bool = False) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for step in CALLS[name]:
        at = InTurn(found)
        term = step(at)
        (value,) = row_stats(pairs, cols=[term]) if cols else row_stats(pairs, term)
        if len(at.missing):
            value = torch.where(at.missing, term.monoid.neutral, value)
        found.append(value)
    return tuple(found)


def at_once(pairs: Pairs, name: str, cols: bool = False) -> tuple[Tensor, ...]:
    terms = terms_of(name)
    return row_stats(pairs, cols=terms) if cols else row_stats(pairs, *terms)


def need(engine: str, name: str, distance: str = "cosine") -> None:
    """Skip what the engine does not serve."""
    terms = numbered(terms_of(name), (), "rows")
    if engine == "cpu":
        served = cpu_engine.SERVED.issuperset(map(cpu_key, terms))
    elif engine == "cuda":
        served = distance in ("cosine", "dot") and set(cuda_kernels.installed().kinds).issuperset(
            map(cuda_key, terms)
        )
    else:
        served = True
    if not served:
        pytest.skip(f"{engine} does not serve it")


def batch(owners: str = "mixed", m: int = 0, n: int = 40) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Of "mixed" owners some have no positives, and some are ignored. Of "columns of a further
    class" some have no positives, and all rows have."""
    x, labels, other = problem(n, m, d=5, classes=6)
    labels[[1, n - 3]], labels[7] = torch.tensor([90, 91]), -100
    if owners == "one class":
        labels = torch.zeros_like(labels)
        other = other and {**other, "ref_labels": torch.zeros(m, dtype=torch.int64)}
    if owners == "all distinct":
        labels = torch.arange(n)
        other = other and {**other, "ref_labels": n + torch.arange(m)}
    if owners == "columns of a further class":
        labels = torch.arange(n) % 5
        other = {**other, "ref_labels": torch.arange(m) % 6}
    return x, labels, other


def found_by(
    engine: str, run: Any, name: str, given: tuple[Any, ...], dtype: torch.dtype, **keywords: Any
) -> list[Tensor]:
    """Statistics and gradients."""
    x, labels, other = given
    cols = keywords.pop("cols", False)
    leaves = [x.to(dtype).requires_grad_()]
    if other:
        leaves.append(other["ref_emb"].to(dtype).requires_grad_())
        other = {**other, "ref_emb": leaves[1]}

    def found() -> tuple[Tensor, ...]:
        statistics: tuple[Tensor, ...] = run(
            Pairs.of(leaves[0], labels, **other, **keywords), name, cols
        )
        return statistics

    with pairops.engine(engine):
        return results(found, leaves)


def compare(engine: str, name: str, given: tuple[Any, ...], **keywords: Any) -> None:
    dtype = torch.float32 if engine in NARROW else DOUBLE
    ours = found_by(engine, at_once, name, given, dtype, **keywords)
    theirs = found_by("dense", in_turn, name, given, DOUBLE, **keywords)
    bound = 3e-4 if dtype == torch.float32 else 1e-10
    for one, other in zip(ours, theirs, strict=True):
        assert not bool(one.isnan().any())
        other = other.detach()
        size = float(other[other.isfinite()].abs().max()) if bool(other.isfinite().any()) else 1.0
        torch.testing.assert_close(one.double(), other, rtol=bound, atol=bound * max(1, size))


def on_a_rank(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """Statistics of this rank's rows, gradients, and second derivatives."""
    x, y = [z.clone().requires_grad_() for z in (given["x"], given["y"])]
    with mock.patch("pairops.ops.row_stats.ring_blocks.GATHERED", given["gathered"]):
        pairs = Pairs.of(
            x, given["labels"], ref_emb=y, ref_labels=given["ref_labels"], group=group,
            distance=given["distance"],
        )  # fmt: skip
        statistics = at_once(pairs, given["name"], given["cols"])
        return _derived(statistics, [x, y])


def on_a_rank_of_one_set(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """The same of terms of rows and of columns in one call, where a column is a row."""
    x = given["x"].clone().requires_grad_()
    with mock.patch("pairops.ops.row_stats.ring_blocks.GATHERED", given["gathered"]):
        pairs = Pairs.of(x, given["labels"], group=group, distance=given["distance"])
        rows, cols = terms_of(given["name"]), terms_of(given["of_columns"])
        return _derived(row_stats(pairs, *rows, cols=cols), [x])


def _derived(statistics: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    live = [torch.where(r.isinf(), 0, r) for r in statistics if r.requires_grad]
    total = torch.stack([r.square().sum() for r in live]).sum()
    g = torch.autograd.grad(total, leaves, create_graph=True)
    second = torch.autograd.grad(sum((z**2).sum() for z in g), leaves)
    return [z.detach() for z in (*statistics, *g, *second)]
