"""What every engine owes: each term that it serves, on every named case, as dense torch has it."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pairops
from pairops import Pairs, row_stats
from pairops.ops import engines
from pairops.ops.terms.term import NEG, POS, Term, highest, lowest
from support.engine_comparison import assert_as_dense
from support.engine_names import DEVICE, HERE, NARROW, TRITON, WIDE
from support.exhaustive import exhaustive_but
from support.named_cases import CASES, Case, smaller, smooth
from support.term_problems import (
    PRODUCTS,
    WITHOUT_PRODUCTS,
    any_problem,
    every_kind_of_term,
    of_gpus,
    results,
    served_terms,
)

ENGINES = [name for name in HERE if name != "dense"]
# The cases that differ in what a sweep is told; the others differ in numbers.
UNLIKE = ("ragged", "one_row", "no_rows", "no_references", "named_by_ids", "ignored_rows")
OPEN = [name for name in ENGINES if name not in ("cpu", "cuda")]  # they take any function


@pytest.fixture(autouse=True)
def _small(small_tiles: None, small_triton_tiles: None) -> None:
    """Many tiles of few rows, on every engine whose tiles can be chosen."""


def terms_of(
    engine: str, u: Tensor, v: Tensor, t: Tensor, turn: int = 0, sums: bool | None = None
) -> list[Term]:
    """Every term that is compiled for the engine; of one that takes any, one of each kind.

    sums: of the CPU's, the sums alone, or all but them.
    """
    if engine == "cpu":
        names = [z for z in WITHOUT_PRODUCTS if sums is None or z.startswith("sum:") == sums]
        return served_terms(u, v, t, turn=turn, names=names)
    if engine == "cuda":
        return of_gpus(served_terms(u, v, t, turn=turn))
    return every_kind_of_term(u, v, t)


def compare(
    engine: str,
    case: Case,
    dtype: torch.dtype = torch.float32,
    *,
    every_function: bool = False,
    sums: bool | None = None,
    **further: Any,
) -> list[Tensor]:
    """All terms at once, over rows and over columns, with gradients by every tensor."""
    n = len(case.x)
    y = case.keywords.get("ref_emb")
    m = n if y is None else len(y)
    t = torch.tensor(1.3)
    leaves = [case.x, torch.rand(n) + 0.5, torch.rand(m) + 0.5]
    if y is not None:
        leaves.append(y)

    def run(x: Tensor, u: Tensor, v: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        given = {**case.keywords, **further, **({"ref_emb": y[0]} if y else {})}
        pairs = Pairs.of(x, case.labels, **given)
        if every_function:
            rows, cols = served_terms(u, v, t), served_terms(v, u, t, turn=1)
        else:
            rows, cols = terms_of(engine, u, v, t, 0, sums), terms_of(engine, v, u, t, 1, sums)
        found = row_stats(pairs, *rows, cols=cols)
        if sums or not (engine == "cpu" or (every_function and engine not in TRITON)):
            return found
        rows, cols = [served_terms(*z, t, names=PRODUCTS) for z in ((u, v), (v, u))]
        return found + row_stats(pairs, *rows, cols=cols)

    return assert_as_dense(engine, run, *leaves, dtype=dtype)


def interpreted(engine: str) -> bool:
    """The interpreter of Triton's kernels is slow."""
    return engine in TRITON and DEVICE == "cpu"


def slow(engine: str) -> bool:
    """So are CUDA's, executed by a CPU."""
    return engine in NARROW and DEVICE == "cpu"


def case_of(name: str, engine: str) -> Case:
    """Several tiles, the last ones ragged, in rows, columns and dimensions."""
    if interpreted(engine):
        return smaller(CASES[name](smooth), 40, 50, 37)
    return smaller(CASES[name](smooth))


@pytest.mark.parametrize(
    ("engine", "case"),
    exhaustive_but(
        itertools.product(ENGINES, CASES),
        lambda engine, case: not slow(engine) or case in UNLIKE,
    ),
)
def test_named_cases(engine: str, case: str) -> None:
    compare(engine, case_of(case, engine))


@pytest.mark.parametrize("engine", HERE)
def test_who_attained_an_extreme(engine: str) -> None:
    """Of rows and of columns, and −1 for an owner without a pair, as the matrix has it."""
    x, y = torch.randn(40, 8), torch.randn(60, 8)
    labels, ref_labels = torch.arange(40) // 4, torch.arange(60) // 5  # two classes of y alone
    pairs = Pairs.of(x, labels, ref_emb=y, ref_labels=ref_labels, distance="dot")
    rows = [lowest(POS).over(40, 60, pairs.dtype), highest(NEG).over(40, 60, pairs.dtype)]
    cols = [lowest(POS).over(60, 40, pairs.dtype)]
    with torch.no_grad():
        _, found, _ = engines.ENGINES[engine].forward(pairs, rows, cols)
    s = (x.double() @ y.double().T).cpu()
    positive = (labels[:, None] == ref_labels).cpu()
    nearest_positive = torch.where(positive.T, s.T, torch.inf).min(1)
    expected = [
        torch.where(positive, s, torch.inf).argmin(1),
        torch.where(positive, -torch.inf, s).argmax(1),
        torch.where(nearest_positive.values == torch.inf, -1, nearest_positive.indices),
    ]
    assert int((expected[2] < 0).sum()) == 10
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("engine", "case"),
    exhaustive_but(
        itertools.product(ENGINES, ["square", "ragged"]),
        lambda engine, case: not interpreted(engine) or case == "square",
    ),
)
def test_dtypes(engine: str, case: str, dtype: torch.dtype) -> None:
    if dtype != torch.float64 or engine in WIDE:
        compare(engine, case_of(case, engine), dtype)


@pytest.mark.parametrize(
    ("engine", "case"),
    exhaustive_but(
        itertools.product(OPEN, ["square", "ragged"]),
        lambda engine, case: not interpreted(engine) or (engine, case) == ("triton", "square"),
    ),
)
def test_the_functions_of_every_loss(engine: str, case: str) -> None:
    """The other engines have had all that they serve."""
    compare(engine, case_of(case, engine), every_function=True)


@pytest.mark.parametrize(
    ("engine", "distance"),
    exhaustive_but(
        [
            (engine, distance)
            for engine in [*OPEN, "cpu"]
            for distance in ("l2", "sqeuclidean", "snr")
            if engine != "triton" or distance == "l2"  # "chunked" has the same text of them
        ],
        lambda engine, distance: (
            not interpreted(engine) or (engine, distance) == ("chunked", "sqeuclidean")
        ),
    ),
)
def test_distances_under_every_kind_of_term(engine: str, distance: str) -> None:
    compare(engine, case_of("ragged", engine), distance=distance)


@pytest.mark.parametrize(
    ("case", "distance"),
    exhaustive_but(
        [  # of one number, normalised, the gradient is what rounding leaves
            pytest.param(case, distance, id=f"{case}-{distance}")
            for case, distance in itertools.product(CASES, ["l2", "sqeuclidean", "snr"])
            if case != "one_dimension"
        ],
        lambda _, distance: distance == "l2",
    ),
)
def test_compiled_distances(case: str, distance: str) -> None:
    """Sums apart, whose gradients are so large that a sum of all would say nothing of the rest."""
    for sums in (True, False):
        compare("cpu", case_of(case, "cpu"), sums=sums, distance=distance, normalize=True)


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize("case", UNLIKE)
def test_compiled_distances_of_rows_as_they_are(case: str, distance: str) -> None:
    """Of lengths about 1, so that no exponential is below the least normal number."""
    found = case_of(case, "cpu")
    near: dict[str, Any] = {"x": found.x / 6}
    if "ref_emb" in found.keywords:
        near["keywords"] = {**found.keywords, "ref_emb": found.keywords["ref_emb"] / 6}
    for sums in (True, False):
        compare("cpu", replace(found, **near), sums=sums, distance=distance, normalize=False)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 80),
    m=st.integers(0, 80),
    d=st.integers(2, 70),  # of one number, normalised, the gradient is what rounding leaves
    classes=st.integers(1, 30),
    same=st.booleans(),
    named=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_anything_equals_dense(
    engine: str, n: int, m: int, d: int, classes: int, same: bool, named: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    if engine in TRITON:
        n, m, d = n // 2, m // 2, d // 4 + 2
    dtype, bound = (torch.float64, 1e-10) if engine in WIDE else (torch.float32, 1e-3)
    x, labels, other = any_problem(n, m, d, classes, same, named)
    leaves = [x, torch.rand(n), torch.rand(n if same else m), torch.tensor(1.3)]
    found = []
    for which, kind in (("dense", torch.float64), (engine, dtype)):
        given = {k: z.to(kind) if k == "ref_emb" else z for k, z in other.items()}
        x, u, v, t = mine = [z.to(kind).requires_grad_() for z in leaves]

        def run() -> tuple[Tensor, ...]:
            terms = terms_of(engine, u, v, t), terms_of(engine, v, u, t, turn=1)  # noqa: B023
            return row_stats(Pairs.of(x, labels, **given), *terms[0], cols=terms[1])  # noqa: B023

        with pairops.engine(which):
            found.append(results(run, mine))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b.double(), a.double(), rtol=bound, atol=bound)
