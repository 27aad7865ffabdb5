"""Holds the oracle against results computed by hand."""

import math
from functools import partial

import pytest
import torch

import oracle
from support.oracle_samples import LABELLED

# unit vectors with s_01 = 0.6, s_02 = 0, s_12 = 0.8; row 2 is alone in its class
THREE = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)


def log1pexp(*z):
    return math.log(1 + sum(math.exp(each) for each in z))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def softmax_loss(temperature, matched, *others):
    z = [s / temperature for s in (matched, *others)]
    return math.log(sum(math.exp(each) for each in z)) - z[0]


PULL = log1pexp(-2 * (0.6 - 0.5)) / 2  # of 0.6; a negative pushes by 50 * (s - 0.5) = -25 or 15
D01, D02, D12 = math.sqrt(0.8), math.sqrt(2), math.sqrt(0.4)
NEGATIVES = math.log(math.exp(1 - D02) + math.exp(1 - D12))
BY_HAND = {
    # anchor 0: 0 + 0.1 is below its only positive, 0.6; anchor 2 has no positive
    "ms": [0, PULL + log1pexp(15) / 50, 0],
    "ms_unmined": [PULL + log1pexp(-25) / 50, PULL + log1pexp(15) / 50, log1pexp(-25, 15) / 50],
    "contrastive": [0.4, 0.4 + 0.3, 0.3],
    "contrastive_raw": [0.4, 0.4 + 0.8, 0.8],
    "contrastive_l2": [D01, D01 + 1 - D12, 1 - D12],
    "supcon": [softmax_loss(0.1, 0.6, 0), softmax_loss(0.1, 0.6, 0.8), 0],
    "triplet": [0, 0.8 - 0.6 + 0.05, 0],
    "triplet_all": [log1pexp(0 - 0.6 + 0.05), log1pexp(0.8 - 0.6 + 0.05), 0],
    "triplet_semihard": [0, 0.8 - 0.4 + 0.05, 0],
    "lifted": [D01 + 1 - D02, D01 + 1 - D12, NEGATIVES],
    "lifted_original": [(D01 + NEGATIVES) ** 2 / 2, (D01 + NEGATIVES) ** 2 / 2, 0],
    "binomial": [
        log1pexp(-2 * 0.1) + log1pexp(40 * -0.5),
        log1pexp(-2 * 0.1) + log1pexp(40 * 0.3),
        (log1pexp(40 * -0.5) + log1pexp(40 * 0.3)) / 2,
    ],
    "margin": [D01 - 0.1 + 0.2, D01 - 0.1 + 0.2, 0],
    "circle": [log1pexp(80 * 0.4 * -0.4), log1pexp(80 * 1.2 * 0.4), 0],
    "nt_xent": [log1pexp(-0.6 / 0.07), log1pexp(0.2 / 0.07), 0],
    "nca": [log1pexp(0.8 - 2), log1pexp(0.8 - 0.4), 0],
    "smooth_ap": [1 - 1 / (1 + sigmoid(-3)), 1 - 1 / (1 + sigmoid(1)), 0],
    # of anchor 1 the negative is in bin 1 and the positive in bin 2, of anchor 0 in 5 and 2
    "fast_ap": [0, 1 - 1 / 2, 0],
    # one of two references is above a threshold halfway between them
    "soft_topk": [log1pexp(-4 * 0.3), log1pexp(4 * 0.1), 0],
    "mlcd": [
        log1pexp(0) + log1pexp(-64 * 0.6),
        log1pexp(64 * 0.8) + log1pexp(-64 * 0.6),
        log1pexp(0, 64 * 0.8),
    ],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_three_rows_by_hand(name):
    loss, labels = LABELLED[name], torch.tensor([0, 0, 1])
    expected = torch.tensor(BY_HAND[name], dtype=torch.float64)
    torch.testing.assert_close(loss(3 * THREE, labels), expected)
    torch.testing.assert_close(loss(THREE, labels, normalize=False), expected)


def test_mining_keeps_some_and_is_strict():
    """One anchor, similarities exact in binary, so that ties are ties."""
    y = torch.tensor([[0.75], [0.25], [0.5], [0.25], [0.0], [0.125]])
    options = {"ref_emb": y, "ref_labels": torch.tensor([0, 0, 1, 1, 1, 1]), "normalize": False}
    loss = oracle.ms_loss(torch.ones(1, 1), torch.tensor([0]), epsilon=0.25, **options)
    # dropped as ties: the positive 0.75 - 0.25 = 0.5, the negative 0 + 0.25 = 0.25
    positive = log1pexp(-2 * (0.25 - 0.5)) / 2
    negative = log1pexp(50 * 0.0, 50 * (0.25 - 0.5), 50 * (0.125 - 0.5)) / 50
    assert loss.item() == pytest.approx(positive + negative, rel=1e-14, abs=0)


def test_pairs_by_hand():
    y = torch.tensor([[0, 1], [0.6, 0.8], [1, 0]], dtype=torch.float64)
    s = [[0, 0.6, 1], [0.8, 1, 0.6], [1, 0.8, 0]]
    ways = [
        [softmax_loss(0.5, row[i], *row[:i], *row[i + 1 :]) for i, row in enumerate(way)]
        for way in (s, list(zip(*s, strict=True)))
    ]
    expected = torch.tensor(ways, dtype=torch.float64).mean(0)
    torch.testing.assert_close(oracle.info_nce_loss(2 * THREE, y, temperature=0.5), expected)
    z = [[(1 if i == j else -1) * (3 * s[i][j] - 1) for j in range(3)] for i in range(3)]
    expected = [sum(log1pexp(-each) for each in row) for row in z]
    actual = oracle.siglip_loss(2 * THREE, y, scale=3.0, bias=-1.0)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("reduction", "plain", "weighted"),
    [
        ("mean", 13 / 4, 4 / 3),
        ("mean_nonzero", 13 / 3, 4 / 2),
        ("sum", 13, 4),
        ("none", [2, 0, 7, 4], [2, 0, 0, 2]),
    ],
)
def test_reductions_by_hand(reduction, plain, weighted):
    values = torch.tensor([2.0, 0.0, 7.0, 4.0], dtype=torch.float64)
    weight, ignored = torch.tensor([1.0, 5.0, math.nan, 0.5]), torch.tensor([0, 0, 1, 0]).bool()
    plain, weighted = (torch.tensor(each, dtype=torch.float64) for each in (plain, weighted))
    reduce = partial(oracle.reduce, reduction=reduction)
    torch.testing.assert_close(reduce(values), plain)
    torch.testing.assert_close(reduce(values, weight=weight, ignored=ignored), weighted)
    assert (reduce(0 * values) == 0).all()
    assert (reduce(values, ignored=torch.ones(4).bool()) == 0).all()
    assert (reduce(values[:0]) == 0).all()
    values[1] = math.nan
    assert reduce(values).isnan().any()
