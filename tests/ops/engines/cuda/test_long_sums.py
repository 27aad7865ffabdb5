"""float32 at "highest" over many columns and many numbers, where tensor cores truncate their sums.

The machine that executes the kernels truncates as they do, so that one sum over all columns is tens
to hundreds of times as wrong as dense torch's; signs that do not cancel are the worst.
"""

import pytest
import torch

from pairops.ops.bindings import devices
from support.cuda_in_one_sum import edited_text
from support.cuda_on_host import build
from support.cuda_truncation import (
    COLUMNS,
    SIGNS,
    errors,
    of_16_bits,
    statistics_beyond_the_rule,
)  # fmt: skip
from support.engine_names import DEVICE
from support.exhaustive import exhaustive, exhaustive_but

on_the_host = pytest.mark.skipif(DEVICE != "cpu", reason="it is about the kernels of a CPU")


@pytest.fixture(autouse=True)
def one_block_takes_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many rows; a GPU may have more blocks for few."""
    if DEVICE == "cpu":
        monkeypatch.setattr(devices, "processors", lambda _: 1)


@pytest.mark.parametrize(
    ("m", "signs"),
    exhaustive_but([(m, signs) for m in COLUMNS for signs in SIGNS], lambda m, _: m == COLUMNS[0]),
)
def test_many_columns(m: int, signs: str) -> None:
    _, (ours, dense) = errors(signs, 16, m, 64)
    assert ours <= 2 * dense, f"{ours:.2g} of the gradient, dense torch has {dense:.2g}"


@pytest.mark.parametrize("signs", SIGNS)
def test_many_numbers(signs: str) -> None:
    """Similarities are sums, too."""
    (ours, dense), _ = errors(signs, 16, 70, 700)
    assert ours <= 2 * dense + torch.finfo().eps / 2, f"{ours:.2g}, dense torch has {dense:.2g}"


@on_the_host
def test_values_of_16_bits_of_one_sign_are_beyond_the_rule() -> None:
    """They keep one sum."""
    _, error, times, *_ = of_16_bits(512)
    assert 1e-6 < error < 1e-4
    assert times > 1


@on_the_host
def test_one_sum_is_an_edit_away() -> None:
    """What is measured beside two levels is compiled from this text."""
    right = (build.ROOT / "csrc" / "cuda" / "tile" / "mma.h").read_text()
    assert edited_text() != right


@on_the_host
@exhaustive
def test_a_hinge_that_few_pairs_reach() -> None:
    count, beyond = statistics_beyond_the_rule(1)
    assert count > 60
    assert len(beyond) == 1
    assert 1 < beyond[0] < 2
