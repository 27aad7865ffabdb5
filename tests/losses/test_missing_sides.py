"""Derivatives of losses over rows that are ignored, and over rows that miss a side."""

from typing import Any

import pytest
import torch

import pairops
from support.loss_parameters import LABELLED, ONE_SET, variants

# An ignored row, one whose label is among the references alone, rows of every reference's label.
RELATIONS = {
    "one_set": ([-100, 0, 0, 1, 1, 2, 3], None),
    "two_sets": ([-100, 0, 0, 1, 1, 2, 3], [0, 0, 2, -100, 9]),
    "no_negatives_of_some": ([0, 0, 1], [0, 0, 0]),
    "one_class": ([4, 4, 4, 4], [4, 4]),
    "strangers": ([0, 1, 2], [3, 3]),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("name", "params"), variants(LABELLED))
def test_first_and_second_derivatives_are_finite_and_those_of_dense(
    name: str, params: dict[str, Any], relation: str
) -> None:
    mine, theirs = RELATIONS[relation]
    if theirs is not None and name in ONE_SET:
        return
    leaves = [torch.randn(len(mine), 4, dtype=torch.float64, requires_grad=True)]
    other: dict[str, Any] = {}
    if theirs is not None:
        leaves.append(torch.randn(len(theirs), 4, dtype=torch.float64, requires_grad=True))
        other = {"ref_emb": leaves[1], "ref_labels": torch.tensor(theirs)}
    found = []
    for engine in ("dense", "blockwise"):
        with pairops.engine(engine):
            loss = getattr(pairops, name)(leaves[0], torch.tensor(mine), **other, **params)
        first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        length = torch.stack([(z * z).sum() for z in first]).sum()
        # A constant gradient has no second one.
        second = (
            torch.autograd.grad(length, leaves, materialize_grads=True)
            if length.requires_grad
            else [torch.zeros_like(z) for z in leaves]
        )
        found.append([loss, *first, *second])
    for ours, truth in zip(*found, strict=True):
        assert bool(torch.isfinite(truth).all())
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("wide_engine")
@pytest.mark.parametrize("labels", [[-100, 0, 1], [0, 0, 1], [-100, -100, -100], [2, 2, 2]])
def test_tal_is_finite_also_where_a_direction_is_missing(labels: list[int]) -> None:
    """exp((s − lse)/τ) of a negative is beyond float32, and so is that of a row without pairs."""
    leaves = [(4 * torch.randn(3, 4)).requires_grad_() for _ in "xy"]
    loss = pairops.tal_loss(*leaves, torch.tensor(labels), distance="dot")
    for gradient in torch.autograd.grad(loss, leaves):
        assert bool(torch.isfinite(gradient).all())
        ignored = torch.tensor(labels) == -100
        assert bool((gradient[ignored] == 0).all())
