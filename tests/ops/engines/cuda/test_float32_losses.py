"""float32 at "highest" on the CUDA kernels: every loss that they serve, by the error rule, in every
shape of tiles, on a machine that truncates sums as tensor cores do."""

import functools

import pytest
import torch

import oracle
import pairops
from support.exhaustive import exhaustive_but
from support.loss_comparison import case_for, check, compare, fits
from support.loss_parameters import LABELLED, THOROUGH, TWO_SETS, parameters
from support.named_cases import Case, smooth

DIMENSIONS = [48, 104, 308]  # Split64, Split128, SplitAny
SERVED = {"ms_loss", "supcon_loss", "n_pair_loss", "contrastive_loss", "triplet_loss"}


@pytest.mark.parametrize("d", exhaustive_but(DIMENSIONS, lambda d: d == 48))
def test_losses_by_labels(d: int) -> None:
    n = 140 if d <= 64 else 75  # three tiles of rows and two
    labels = torch.randint(0, 9, (n,))
    labels[[3, n // 2, n - 1]] = -100
    served = set()
    for name in LABELLED:
        params = parameters(name)[0]
        case = case_for(name, params, lambda make: Case(make(n, d), labels), torch.float32)
        if fits(name, params, case) and compare(name, params, case, ["cuda"]):
            served.add(name)
    assert served >= SERVED


@pytest.mark.parametrize("d", exhaustive_but(DIMENSIONS, lambda d: d == 48))
def test_losses_of_two_sets(d: int) -> None:
    n = 140 if d <= 64 else 75
    for name in (name for name in TWO_SETS if name in THOROUGH):
        given = parameters(name)[0]
        ours = functools.partial(getattr(pairops, name), **given, reduction="none")
        formula = functools.partial(getattr(oracle, name), **given)
        assert check([smooth(n, d), smooth(n, d)], ours, formula, ["cuda"]) == ["cuda"]
