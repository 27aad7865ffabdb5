"""Where the error rule is known not to be kept: the program that measures it sees it."""

import math

import torch

from support.cancelling_problems import one_reference, two_passes, widened
from support.error_rule import times_allowed
from support.loss_comparison import Call
from support.on_cpu import device as device
from support.rule_limits import problems, row, worst_of


def test_every_problem_can_be_measured() -> None:
    for what, maker, _ in problems():
        _, said, number, *cells, _ = row(what, maker, 1).split("|")
        assert said.strip() == what
        assert number.strip() == "1"
        assert len(cells) == 6
        assert all(float(cell) >= 0 for cell in cells[3:])


def test_two_passes_that_are_added_in_16_bits() -> None:
    """Where one call has both passes, or rows are float32, there is nothing to add."""

    def beyond(name: str, engine: str, wide: bool = False) -> bool:
        def problem() -> Call:
            return two_passes(name, torch.bfloat16, 0.03)

        found = worst_of((lambda: widened(problem)) if wide else problem, 4)
        return max(found[engine]).times > 1

    assert beyond("nt_xent_loss", "dense")
    assert not beyond("nt_xent_loss", "dense", wide=True)
    assert not beyond("nt_xent_loss", "cpu")


def test_a_gradient_that_should_be_0() -> None:
    assert max(worst_of(one_reference, 1)["cpu"]).times == math.inf


def test_multiples_of_what_is_allowed() -> None:
    truth = torch.tensor([1.0, -2.0], dtype=torch.float64)
    dense = [truth.float(), truth.float() + 1e-6]
    allowed = 2 * float((dense[1] - truth).abs().max()) + 8 * 2**-23
    for times in (0.0, 0.5, 3.0):
        ours = truth + torch.tensor([0.0, times * allowed])
        assert abs(times_allowed(ours.float(), dense, truth) - times) < 0.1
    exact = torch.zeros(2)
    assert times_allowed(exact, [exact], exact.double()) == 0
    assert times_allowed(exact + 1e-9, [exact], exact.double()) == math.inf
