"""(N, V, D): views of a row are rows with its label, as SupContrast takes them."""

from typing import Any

import pytest
import torch

import pairops
from support.gloo_ranks import Ranks
from support.named_cases import smooth
from support.rank_problems import Problem, assert_equal

LOSSES = ["supcon_loss", "nt_xent_loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_views_are_rows_with_the_label_of_their_row(name: str) -> None:
    loss = getattr(pairops, name)
    x = smooth(24, 5, torch.float64).view(8, 3, 5).requires_grad_()
    labels = torch.arange(8) // 2
    for of_rows, flat in ((labels, labels.repeat_interleave(3)), (None, torch.arange(24) // 3)):
        ours = loss(x, of_rows)
        theirs = loss(x.flatten(0, 1), flat)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert torch.autograd.grad(ours, x)[0].shape == x.shape
    several = torch.rand(8, 4) < 0.5
    torch.testing.assert_close(
        loss(x, several), loss(x.flatten(0, 1), several.repeat_interleave(3, 0)), rtol=0, atol=0
    )


def test_supcontrast() -> None:
    """Its formula, all views as anchors: −1/(NV) Σ 1/|P| Σ_p log softmax over all but oneself."""
    x = torch.nn.functional.normalize(smooth(24, 5, torch.float64).view(8, 3, 5), dim=2)
    labels = torch.arange(8) // 2
    rows = torch.cat(x.unbind(1))  # as its code has them: view after view
    logits = (rows @ rows.T / 0.07).fill_diagonal_(-torch.inf)
    same = labels.repeat(3)[:, None] == labels.repeat(3)
    same = same & ~torch.eye(24, dtype=torch.bool)
    log_share = torch.log_softmax(logits, 1)
    truth = -(torch.where(same, log_share, 0).sum(1) / same.sum(1)).mean()
    torch.testing.assert_close(
        pairops.supcon_loss(x, labels, temperature=0.07), truth, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"labels has shape \(24,\); it must be \(8,\), one for each"
    ):
        getattr(pairops, name)(torch.randn(8, 3, 5), torch.zeros(24).long())


@pytest.mark.parametrize(
    "given",
    [{"width": 1.0}, {"ref_emb": torch.randn(4, 5), "ref_labels": torch.arange(4)},
     {"ignore_index": 1}],
)  # fmt: skip
def test_labels_that_nobody_gave_are_compared_with_nothing_else(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is given and labels is None"):
        pairops.supcon_loss(torch.randn(8, 3, 5), None, **given)


@pytest.mark.xdist_group("ranks")
def test_views_without_labels_over_ranks(ranks: Ranks) -> None:
    problem = Problem("supcon_loss", {})
    views = torch.stack([problem.args[0], problem.args[0].flip(1)], 1)
    problem.args, problem.leaves = (views, None), [0]
    one = problem.one()
    found = ranks.run(2, "support.rank_functions:step", problem.shared([17, 7]))
    for got in found:
        assert_equal("value", got["value"], one["value"], 1e-12)
    assert_equal("gradient", problem.averaged(found)[0], one[0], 1e-12)
