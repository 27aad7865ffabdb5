"""The weights of pairs that a loss gives, and the pairs that it mines."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import pair_weights
from support.loss_parameters import LABELLED, parameters
from support.named_cases import smooth

DOUBLE = torch.float64
SEVERAL = ["decoupled_contrastive_loss", "multi_positive_loss"]


def labels_of(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 5


@pytest.mark.parametrize("name", [name for name in LABELLED if name != "margin_loss"])
def test_weights_times_embeddings_are_the_gradient(name: str) -> None:
    x = (smooth(40, 9, DOUBLE) / 3).requires_grad_()
    loss, labels = getattr(pairops, name), labels_of(x)
    for params in parameters(name):
        if params.get("distance", "dot") != "dot" or "normalize" in params:
            continue
        given = {**params, "distance": "dot"}
        weights = pair_weights(loss, x, labels, **given)
        (gradient,) = torch.autograd.grad(loss(x, labels, **given), x)
        torch.testing.assert_close((weights + weights.T) @ x.detach(), gradient)


@pytest.mark.parametrize("name", ["info_nce_loss", "siglip_loss", "sms_loss"])
def test_weights_of_two_sets(name: str) -> None:
    x, y = (smooth(30, 9, DOUBLE) / 3).requires_grad_(), smooth(30, 9, DOUBLE) / 3
    given: dict[str, Any] = {**parameters(name)[0], "distance": "dot"}
    weights = pair_weights(getattr(pairops, name), x, y, **given)
    (gradient,) = torch.autograd.grad(getattr(pairops, name)(x, y, **given), x)
    torch.testing.assert_close(weights @ y, gradient)


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("name", ["contrastive_loss", "triplet_loss", "lifted_structure_loss"])
def test_weights_of_distances(name: str, distance: str) -> None:
    """∂L/∂x_i = Σ_j (w_ij + w_ji) ∂d_ij/∂x_i."""
    x = smooth(30, 9, DOUBLE).requires_grad_()
    given: dict[str, Any] = {"distance": distance, "normalize": False}
    loss, labels = getattr(pairops, name), labels_of(x)
    weights = pair_weights(loss, x, labels, **given)
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    d = d if distance == "l2" else d**2
    (expected,) = torch.autograd.grad((weights * d).sum(), x)
    (gradient,) = torch.autograd.grad(loss(x, labels, **given), x)
    torch.testing.assert_close(expected, gradient)


@pytest.mark.parametrize("mining", ["hard", "semihard", "all"])
def test_a_block_is_a_part_of_the_whole(mining: str) -> None:
    x = smooth(40, 9, DOUBLE)
    whole = pair_weights(pairops.triplet_loss, x, labels_of(x), mining=mining)
    rows, cols = torch.tensor([7, 3, 3]), slice(5, 30, 2)
    part = pair_weights(pairops.triplet_loss, x, labels_of(x), mining=mining, rows=rows, cols=cols)
    assert torch.equal(part, whole[rows][:, cols])


@pytest.mark.parametrize("name", ["info_nce_loss", "siglip_loss", "sms_loss"])
def test_a_block_of_two_sets_is_a_part_of_the_whole(name: str) -> None:
    """Terms of columns look up what belongs to a column, whatever rows stand beside it."""
    x, y = smooth(30, 9, DOUBLE), smooth(30, 9, DOUBLE)
    given = parameters(name)[0]
    whole = pair_weights(getattr(pairops, name), x, y, **given)
    rows, cols = torch.tensor([7, 3, 3, 29]), torch.tensor([4, 20, 3, 7])
    part = pair_weights(getattr(pairops, name), x, y, **given, rows=rows, cols=cols)
    torch.testing.assert_close(part, whole[rows][:, cols], rtol=1e-12, atol=1e-15)


def test_rows_that_are_ignored_weigh_nothing() -> None:
    x, labels = smooth(20, 5, DOUBLE), torch.arange(20) % 4
    labels[[2, 9]] = -100
    weights = pair_weights(pairops.supcon_loss, x, labels)
    assert not weights[[2, 9]].any()
    assert not weights[:, [2, 9]].any()
    assert not weights.diagonal().any()
    assert weights[0, 1] > 0 > weights[0, 4]


def test_what_has_no_common_weight_says_so() -> None:
    x = smooth(10, 5)
    with pytest.raises(ValueError, match="several sets"):
        pair_weights(pairops.decoupled_contrastive_loss, x, smooth(10, 5))
    with pytest.raises(ValueError, match="took no statistic"):
        pair_weights(lambda z: z.sum(), x)
    with pytest.raises(ValueError, match=r"(rows|cols) is torch\..*; it must be a"):
        pair_weights(pairops.supcon_loss, x, labels_of(x), rows=torch.ones(10, dtype=torch.bool))


def as_set(*indices: Tensor) -> set[tuple[int, ...]]:
    return set(zip(*[z.tolist() for z in indices], strict=True))


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.4])
def test_multi_similarity_mining_is_that_of_the_miner(epsilon: float, other: bool) -> None:
    from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner

    x, labels, y, ref_labels = (
        smooth(60, 9),
        torch.arange(60) % 7,
        smooth(83, 9),
        torch.arange(83) % 9,
    )
    labels[0] = 100
    given = {"ref_emb": y, "ref_labels": ref_labels} if other else {}
    theirs = (y, ref_labels) if other else ()
    a, p, b, n = pairops.mine(x, labels, epsilon=epsilon, **given)
    expected = MultiSimilarityMiner(epsilon=epsilon)(x, labels, *theirs)
    assert as_set(a, p) == as_set(*expected[:2])
    assert as_set(b, n) == as_set(*expected[2:])
    found = pairops.mine(x, labels, mining="hard", **given)
    assert as_set(*found) == as_set(*BatchHardMiner()(x, labels, *theirs))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_semihard_triplets(distance: str) -> None:
    x, labels = smooth(40, 9, DOUBLE), torch.arange(40) % 6
    labels[0] = 100
    unit = torch.nn.functional.normalize(x)
    s, same = unit @ unit.T, labels[:, None] == labels
    triplets = set()
    for i in range(40):
        for p in range(40):
            if i != p and same[i, p]:
                farther = ~same[i] & (s[i] < s[i, p])
                candidates = s[i].masked_fill(~farther, -2)
                fallback = s[i].masked_fill(same[i], 2).argmin()
                triplets.add((i, p, int(candidates.argmax() if farther.any() else fallback)))
    found = pairops.mine(x, labels, mining="semihard", distance=distance)
    assert as_set(*found) == triplets
    assert bool((found[0].diff() >= 0).all())


@pytest.mark.parametrize("mining", ["multi_similarity", "hard", "semihard"])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_nothing_to_mine(n: int, mining: Any) -> None:
    assert all(
        len(z) == 0 for z in pairops.mine(smooth(n, 5), torch.zeros(n).long(), mining=mining)
    )


def test_an_unknown_mining_is_an_error() -> None:
    with pytest.raises(ValueError, match="mining is 'easy'; it must be"):
        pairops.mine(smooth(4, 5), torch.arange(4), mining="easy")  # type: ignore[arg-type]


def test_a_set_that_is_given_as_its_own_references_has_no_self_pairs() -> None:
    x, labels = smooth(6, 5, DOUBLE), torch.tensor([0, 0, 1, 1, 2, 3])
    other = {"ref_emb": x, "ref_labels": labels}
    _, positives, anchors, negatives = pairops.mine(x, labels, epsilon=2.0, **other)
    assert as_set(anchors, negatives).isdisjoint({(i, i) for i in range(6)})
    assert positives.tolist() == pairops.mine(x, labels, epsilon=2.0)[1].tolist()
    given = {"neg_margin": -1.0}
    weights = pair_weights(pairops.contrastive_loss, x, labels, **other, **given)
    assert not weights.diagonal().any()
    torch.testing.assert_close(weights, pair_weights(pairops.contrastive_loss, x, labels, **given))


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_indices_from_the_end(mining: str) -> None:
    x = smooth(20, 5, DOUBLE)
    given: dict[str, Any] = {"mining": mining, "margin": 1.0}
    whole = pair_weights(pairops.triplet_loss, x, labels_of(x), **given)
    last = torch.tensor([-2, -1])
    part = pair_weights(pairops.triplet_loss, x, labels_of(x), **given, rows=last, cols=last)
    assert torch.equal(part, whole[-2:, -2:])
    with pytest.raises(ValueError, match="rows go from 0 to 20; they must be from -20"):
        pair_weights(pairops.triplet_loss, x, labels_of(x), rows=torch.tensor([0, 20]))


def test_weights_beside_an_aux_and_in_16_bits() -> None:
    x = smooth(20, 5).bfloat16()
    given: dict[str, Any] = {"mining": "all", "margin": 1.0}
    plain = pair_weights(pairops.triplet_loss, x, labels_of(x), **given)
    aux = pair_weights(pairops.triplet_loss.with_aux, x, labels_of(x), **given)
    assert torch.equal(plain, aux)
