"""Is it the rounding of one problem, or is it wrong nearby as well?"""

from collections.abc import Callable

import torch
from torch import Tensor

from fuzz.finding import Skipped

COUNT, LEAST = 12, 9


def confirmed(check: Callable[[list[Tensor]], None], tensors: list[Tensor]) -> None:
    """Raise what check(tensors) raises, if it does so for most of the neighbours too.

    Of thousands of small problems some are ones that dense torch rounds luckily in every order.
    A neighbour is the same rows with their features in another order and scaled by about 1, equal
    rows by equal numbers. By more than their rounding: dense torch rounds log(1 + z) to a multiple
    of ε, and where a loss is small, all of its next neighbours lie near the same multiple.
    """
    try:
        check(tensors)
    except AssertionError:
        off = sum(_is_off(check, _moved(tensors)) for _ in range(COUNT))
        if off >= LEAST:
            raise


def _moved(tensors: list[Tensor]) -> list[Tensor]:
    d = tensors[0].shape[1]
    turn = torch.randperm(d)
    by = max(2 * torch.finfo(tensors[0].dtype).eps, 2**-10)
    near = 1 + by * torch.randn(d, dtype=torch.float64)
    return [(z.double() * near).to(z.dtype)[:, turn] if z.dim() == 2 else z for z in tensors]


def _is_off(check: Callable[[list[Tensor]], None], tensors: list[Tensor]) -> bool:
    try:
        check(tensors)
    except AssertionError:
        return True
    except Skipped:
        return False
    return False
