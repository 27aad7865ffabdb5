"""bfloat16 rows that nearly coincide: what weights of one part lose, and few rows keep."""

from collections.abc import Iterator

import pytest
import torch

import pairops
from pairops.ops.engines import weight_parts
from support.error_rule import Dense, assert_within_rule
from support.near_duplicates import (
    PROBLEMS,
    SPREADS,
    Problem,
    gradients,
    gradients_of_oracle,
    in_one_part,
    proxies,
)


@pytest.fixture
def many_rows() -> Iterator[None]:
    """Every set counts as one of many rows."""
    with in_one_part():
        yield


def check(problem: Problem, engine: str) -> None:
    """The gradients, by the error rule."""
    truth = gradients_of_oracle(problem, torch.float64)
    dense = Dense(lambda: gradients_of_oracle(problem, torch.float32))
    with pairops.engine(engine):
        found = gradients(problem)
    for k, (ours, right) in enumerate(zip(found, truth, strict=True)):
        assert_within_rule(f"{engine}: {('dx', 'dy')[k]}", ours, dense.result(k), right)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_near_duplicates_among_few_rows(problem: str, gpu_engine: str) -> None:
    for spread in SPREADS:
        check(PROBLEMS[problem](spread), gpu_engine)


@pytest.mark.usefixtures("many_rows")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_one_part_is_not_enough_for_them(problem: str, gpu_engine: str) -> None:
    """Else a second part of few rows' weights would be for nothing."""
    with pytest.raises(AssertionError, match="dense torch has"):
        check(PROBLEMS[problem](min(SPREADS)), gpu_engine)


@pytest.mark.usefixtures("many_rows")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_weights_of_float16_rows_have_two_parts_anyway(problem: str, gpu_engine: str) -> None:
    tensors, *losses = PROBLEMS[problem](min(SPREADS))
    check(Problem([z.half() for z in tensors], *losses), gpu_engine)


@pytest.mark.parametrize(("rows", "classes"), [(20, 3), (3, 20)])
def test_few_rows_of_one_set_are_enough(
    rows: int, classes: int, gpu_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_parts, "FEW", 3)
    check(proxies(0.001, rows, classes), gpu_engine)
    monkeypatch.setattr(weight_parts, "FEW", 2)
    with pytest.raises(AssertionError, match="dense torch has"):
        check(proxies(0.001, rows, classes), gpu_engine)
