"""Small problems whose gradients are differences of numbers that nearly cancel."""

from collections.abc import Callable

import torch
from torch import Tensor

from support.loss_comparison import Call, call_and_formula, of_two_sets
from support.loss_parameters import ONE_SET, TWO_SETS, parameters
from support.named_cases import Case


def near(rows: int, d: int, spread: float) -> Tensor:
    """Rows of about one direction, which differ by `spread` of their norm."""
    return torch.randn(1, d) + spread * torch.randn(rows, d)


def two_passes(name: str, dtype: torch.dtype, spread: float) -> Call:
    """Sixteen rows of four classes against as many."""
    both = near(32, 16, spread).to(dtype)
    x, y = both[:16], both[16:]
    if name in TWO_SETS:
        return of_two_sets(name, parameters(name)[0], x, y)
    labels = torch.arange(16) % 4
    other = {} if name in ONE_SET else {"ref_emb": y, "ref_labels": labels}
    return call_and_formula(name, parameters(name)[0], Case(x, labels, other))


def widened(maker: Callable[[], Call]) -> Call:
    """The same with `.float()` before the loss."""
    tensors, ours, formula = maker()
    return tensors, lambda *z: ours(*[each.float() for each in z]), formula


def behind() -> Call:
    """64 anchors, each of them nearest to the positive of another."""
    y = torch.randn(64, 32)
    x = y.roll(1, 0) + 0.1 * torch.randn(64, 32)
    return of_two_sets("info_nce_loss", {}, x, y)


def ten_pairs() -> Call:
    return of_two_sets("hard_negative_info_nce_loss", {}, near(10, 3, 0.1), torch.randn(10, 3))


def one_reference() -> Call:
    """Three pairs whose second rows are the same."""
    x, y = torch.randn(3, 9), torch.randn(1, 9).repeat(3, 1)
    return of_two_sets("info_nce_loss", {"symmetric": False}, x, y)


def ranked(compared: str, temperature: float) -> Call:
    """At most 24 rows of three classes."""
    n = int(torch.randint(4, 25, ()))
    d = (2, 5, 9, 16)[int(torch.randint(0, 4, ()))]
    case = Case(torch.randn(n, d), torch.randint(0, 3, (n,)))
    given = {"temperature": temperature, "distance": compared}
    return call_and_formula("smooth_ap_loss", given, case)


def attended(compared: str, temperature: float) -> Call:
    """18 pairs of four labels, all of whose rows are about one."""
    d = (4, 16, 32)[int(torch.randint(0, 3, ()))]
    given = {"temperature": temperature, "distance": compared}
    x, y = near(36, d, 0.1).view(2, 18, d)
    return of_two_sets("tal_loss", given, x, y, torch.randint(0, 4, (18,)))


def attended_by_snr() -> Call:
    d, temperature = int(torch.randint(2, 10, ())), 0.015 * (0.13 / 0.015) ** float(torch.rand(()))
    x, y = torch.randn(2, 16, d)
    given = {"temperature": temperature, "distance": "snr"}
    return of_two_sets("tal_loss", given, x, y, torch.randint(0, 4, (16,)))
