"""What every engine owes: each term that it serves, on every named case, as dense torch has it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pairops import Pairs, row_stats
from pairops.ops.engines.triton import tile_configs
from pairops.ops.terms.term import Term
from support.engine_comparison import assert_as_dense
from support.engine_names import HERE, NARROW
from support.named_cases import CASES, Case, smaller, smooth
from support.term_problems import every_kind_of_term, of_gpus, served_terms

ENGINES = [name for name in HERE if name != "dense"]
DISTANCES = ("l2", "sqeuclidean", "snr")
# The terms of all losses see these; the interpreter of Triton's kernels is slow.
ALL_FUNCTIONS = ("square", "ragged")


@pytest.fixture(autouse=True)
def _small(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """Many tiles of few rows, on Triton's interpreter too."""
    row = tile_configs.Row(float("inf"), 32, 16, 16, 2, False, 4, 1)
    monkeypatch.setattr(tile_configs, "INTERPRETED", row)


def terms_of(engine: str, u: Tensor, v: Tensor, t: Tensor, turn: int = 0) -> list[Term]:
    """Every term that is compiled for the engine; of one that takes any, one of each kind."""
    if engine == "native":
        return served_terms(u, v, t, turn=turn)
    if engine == "cuda":
        return of_gpus(served_terms(u, v, t, turn=turn))
    return every_kind_of_term(u, v)


def compare(
    engine: str,
    case: Case,
    dtype: torch.dtype = torch.float32,
    *,
    every_function: bool = False,
    **further: Any,
) -> list[Tensor]:
    """All terms at once, over rows and over columns, with gradients by every tensor."""
    n = len(case.x)
    y = case.keywords.get("ref_emb")
    m = n if y is None else len(y)
    leaves = [case.x, torch.rand(n) + 0.5, torch.rand(m) + 0.5, torch.tensor(1.3)]
    if y is not None:
        leaves.append(y)

    def run(x: Tensor, u: Tensor, v: Tensor, t: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        given = {**case.keywords, **further, **({"ref_emb": y[0]} if y else {})}
        pairs = Pairs.of(x, case.labels, **given)
        if every_function:
            return row_stats(pairs, *served_terms(u, v, t), cols=served_terms(v, u, t, turn=1))
        rows, cols = terms_of(engine, u, v, t), terms_of(engine, v, u, t, turn=1)
        return row_stats(pairs, *rows, cols=cols)

    return assert_as_dense(engine, run, *leaves, dtype=dtype)


def case_of(name: str, engine: str) -> Case:
    case = CASES[name](smooth)
    return smaller(case) if engine in NARROW else case


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_named_cases(engine: str, case: str) -> None:
    """And the same call twice gives the same bits."""
    torch.manual_seed(3)
    first = compare(engine, case_of(case, engine))
    torch.manual_seed(3)
    again = compare(engine, case_of(case, engine))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
