"""Holds each oracle without a library to compare with against a second writing, of another form."""

import pytest
import torch
from torch.nn.functional import normalize

import oracle
from support.oracle_samples import agree, relu, sample, two_sets


def masks(labels):
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def test_l2_as_cdist():
    (x, y), exact = two_sets(), {"compute_mode": "donot_use_mm_for_euclid_dist"}
    weight = sample(30, D=30, seed=2)[0].detach()
    for unit in (True, False):
        a, b = (normalize(x), normalize(y)) if unit else (x, y)
        d = torch.cdist(a, b, **exact)
        for distance, wanted in (("l2", d), ("sqeuclidean", d**2)):
            t = oracle.closeness(x, y, distance, unit)
            agree((weight * t).sum(), -(weight * wanted).sum(), x, y, atol=1e-10)


def test_snr_as_variances():
    (x, y), weight = two_sets(), sample(30, D=30, seed=2)[0].detach()
    d = (x[:, None] - y).var(2) / x.var(1)[:, None]
    t = oracle.closeness(x, y, "snr", False)
    agree((weight * t).sum(), -(weight * d).sum(), x, y, atol=1e-10)


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize("unit", [True, False])
def test_near_duplicates_have_distance_and_gradient_0(distance, unit):
    x, y = two_sets()
    x.data[3:5], y.data[3], y.data[4] = 0, 0, x.data[5]
    y.data[5:7] = x.data[5:7] * (1 + 1e-9)
    t = oracle.closeness(x, y, distance, unit)
    assert (t[[3, 4, 5, 5, 6], [3, 3, 4, 5, 6]] == 0).all()
    gradients = torch.autograd.grad(t[[3, 4, 5, 6], [3, 3, 4, 6]].sum(), (x, y))
    assert not any(gradient.any() for gradient in gradients)
    gradients = torch.autograd.grad(oracle.closeness(x, y, distance, unit).sum(), (x, y))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_bad_row_is_near(distance, bad):
    x, y = two_sets()
    x.data[4, 2] = y.data[7, 3] = bad
    for unit in (True, False):
        t = oracle.closeness(x, y, distance, unit)
        finite = torch.ones(30, 30, dtype=torch.bool)
        finite[4], finite[:, 7] = False, False
        assert torch.equal(t.isfinite(), finite)


def test_rows_that_are_flat():
    x, y = two_sets()
    x.data[3], y.data[5] = 0.25, 0.25
    t = oracle.closeness(x, y, "snr", False)
    assert (t[3] == 0).all()
    assert t[4, 5].item() == pytest.approx(-1, abs=1e-14)
    gradients = torch.autograd.grad(t.sum(), (x, y))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][3].any()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_semihard_as_tensorflow(distance):
    """Its rule in (N, N, N): the nearest beyond the positive, else the farthest of the row."""
    x, labels = sample(30)
    labels[:6] = torch.tensor([7, 8, 0, 0, 0, 0])
    x.data[2] = -x.data[3]  # as far as can be, so that no negative is farther
    P, N = masks(labels)
    d = -oracle.closeness(x, x, distance)
    beyond = N[:, None, :] & (d[:, None, :] > d[:, :, None])  # (i, p, n)
    outside = d[:, None, :].expand(30, 30, 30).masked_fill(~beyond, torch.inf).amin(2)
    inside = d.masked_fill(~N, -torch.inf).amax(1, keepdim=True).expand(30, 30)
    nearest = torch.where(beyond.any(2), outside, inside)
    assert (P & ~beyond.any(2)).any()
    assert (P & beyond.any(2)).any()
    losses = relu(0.3 + d - nearest)[P]
    options = {"margin": 0.3, "mining": "semihard", "distance": distance}
    agree(oracle.triplet_loss(x, labels, **options).sum(), losses.sum(), x)
    agree(oracle.triplet_loss(x, labels, **options, reduction="mean_pairs"), losses.mean(), x)


def test_contrastive_raw_as_xbm():
    """Its loops, where a positive is alike below 1 - 1e-5 and the mean is over the rows."""
    x, labels = sample(30)
    s, (P, N) = normalize(x) @ normalize(x).T, masks(labels)
    losses = [(1 - s[i][P[i]]).sum() + s[i][N[i] & (s[i] > 0.1)].sum() for i in range(30)]
    actual = oracle.contrastive_loss(x, labels, neg_margin=0.1, negatives="raw")
    agree(oracle.reduce(actual), sum(losses) / 30, x)


def test_binomial_dense():
    x, labels = sample(30)
    labels[:2] = torch.tensor([7, 8])
    s, (P, N) = normalize(x) @ normalize(x).T, masks(labels)
    pull, push = ((-2 * (s - 0.5)).exp() + 1).log() * P, ((40 * (s - 0.5)).exp() + 1).log() * N
    expected = pull.sum(1) / P.sum(1).clamp(min=1) + push.sum(1) / N.sum(1)
    agree(oracle.binomial_deviance_loss(x, labels).sum(), expected.sum(), x)


def test_mlcd_dense():
    """Against class centres, two of each class."""
    x, labels = sample(30)
    centres, own = sample(12, seed=1)[0], torch.arange(12) % 6
    z, same = 8 * normalize(x) @ normalize(centres).T, labels[:, None] == own
    expected = (1 + (z.exp() * ~same).sum(1)).log() + (1 + ((-z).exp() * same).sum(1)).log()
    actual = oracle.mlcd_loss(x, labels, scale=8.0, ref_emb=centres, ref_labels=own)
    agree(actual.sum(), expected.sum(), x, centres)


def test_decoupled_softmax_dense():
    """As DEXML: the mean of softplus(lse_N - z_p), over some positives of each row."""
    x, labels = sample(30)
    classes, own = sample(12, seed=1)[0], torch.arange(12) % 7
    z, P = normalize(x) @ normalize(classes).T / 0.05, labels[:, None] == own
    rest = z.masked_fill(P, -torch.inf).logsumexp(1, keepdim=True)
    losses = torch.logaddexp(rest - z, torch.zeros_like(z)) * P
    references = {"ref_emb": classes, "ref_labels": own}
    actual = oracle.decoupled_softmax_loss(x, labels, **references)
    agree(actual.sum(), (losses.sum(1) / P.sum(1)).sum(), x, classes)
    actual = oracle.decoupled_softmax_loss(x, labels, **references, reduction="mean_pairs")
    agree(actual, losses.sum() / P.sum(), x, classes)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_proxy_nca_as_cross_entropy(smoothing):
    """Of soft targets, on squared distances with scale 3, as dichotomies/proxy-nca."""
    (x, labels), proxies = sample(30), sample(10, seed=1)[0]
    target = torch.full((30, 10), smoothing / 9, dtype=torch.float64)
    target[torch.arange(30), labels] = 1 - smoothing
    d = torch.cdist(normalize(x), normalize(proxies)) ** 2
    expected = -(target * (-3 * d).log_softmax(1)).sum(1)
    actual = oracle.proxy_nca_loss(x, labels, proxies, scale=3.0, smoothing=smoothing)
    agree(actual.sum(), expected.sum(), x, proxies, atol=1e-10)


def test_proxies_of_which_some_share_a_label():
    """Proxies 0, 1 have label 0; 2 has 1; 3, 4 have 9, which no row has. Row 0 has no proxy."""
    (x, labels), proxies = sample(30, classes=2), sample(5, seed=1)[0]
    labels[0], own = 5, torch.tensor([0, 0, 1, 9, 9])
    s = normalize(proxies) @ normalize(x).T
    same = own[:, None] == labels
    pull = (1 + ((-32 * (s - 0.1)).exp() * same).sum(1)).log()
    push = (1 + ((32 * (s + 0.1)).exp() * ~same).sum(1)).log()
    actual = oracle.proxy_anchor_loss(x, labels, proxies, proxy_labels=own)
    assert actual.shape == (5,)
    agree(actual.sum() / 5, pull.sum() / 3 + push.mean(), x, proxies)
    z = (2 * s.T - 2)[1:]
    others = (z * ~same.T[1:]).sum(1) / (~same.T[1:]).sum(1)
    own_part = z.masked_fill(~same.T[1:], -torch.inf).logsumexp(1)
    expected = z.logsumexp(1) - 0.8 * own_part - 0.2 * others
    actual = oracle.proxy_nca_loss(x, labels, proxies, proxy_labels=own, smoothing=0.2)
    assert actual[0] == 0
    agree(actual.sum(), expected.sum(), x, proxies)


def test_supcon_as_supcontrast():
    """Its matrix form, less the shift by the maximum, with base_temperature = temperature."""
    x, labels = sample(40)
    labels[0] = 100  # without positives, and still in the mean
    logits = normalize(x) @ normalize(x).T / 0.1
    but_self = 1 - torch.eye(40, dtype=torch.float64)
    mask = (labels[:, None] == labels).double() * but_self
    log_prob = logits - (logits.exp() * but_self).sum(1, keepdim=True).log()
    expected = -((mask * log_prob).sum(1) / mask.sum(1).clamp(min=1)).mean()
    agree(oracle.reduce(oracle.supcon_loss(x, labels)), expected, x)


def test_reported():
    x, labels = sample(30)
    labels[:4] = torch.tensor([7, 8, -100, 0])
    P, N = masks(labels)
    known = labels != -100
    P, N = P & known & known[:, None], N & known & known[:, None]
    s = (normalize(x) @ normalize(x).T).detach()
    d = (2 - 2 * s).clamp(min=0).sqrt()
    found = oracle.aux(x, labels, epsilon=0.1)
    far, near = s.masked_fill(~P, torch.inf).amin(1), s.masked_fill(~N, -torch.inf).amax(1)
    assert torch.equal(found.positives, P.sum(1))
    assert torch.equal(found.negatives, N.sum(1))
    torch.testing.assert_close(found.farthest_positive, far)
    torch.testing.assert_close(found.nearest_negative, near)
    assert torch.equal(found.mined_positives, (P & (s - 0.1 < near[:, None])).sum(1))
    assert torch.equal(found.mined_negatives, (N & (s + 0.1 > far[:, None])).sum(1))
    found = oracle.aux(x, labels, distance="l2")
    far, near = d.masked_fill(~P, -torch.inf).amax(1), d.masked_fill(~N, torch.inf).amin(1)
    torch.testing.assert_close(found.farthest_positive, far)
    torch.testing.assert_close(found.nearest_negative, near)
    assert found.mined_positives is None


PAIRS = {
    "contrastive": ({"distance": "l2"}, lambda t: (relu(0 - t), relu(1 + t)), "active"),
    "binomial_deviance": (
        {"alpha": 2.0, "beta": 5.0, "distance": "cosine"},
        lambda t: ((1 + (-2 * (t - 0.5)).exp()).log(), (1 + (5 * (t - 0.5)).exp()).log()),
        "all",
    ),
    "margin": (
        {"beta": 1.25, "distance": "l2"},
        lambda t: (relu(-1.25 - t + 0.2), relu(t + 1.25 + 0.2)),
        "both",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_mean_pairs_dense(name):
    """Weights, one of them NaN at a row that is ignored, do not change the counts."""
    x, labels = sample(30)
    labels[:3] = torch.tensor([-100, 7, 8])
    weight = torch.linspace(0, 2, 30, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        weight[0] = torch.nan
    options, losses, counted = PAIRS[name]
    x_left, w = x[1:], weight[1:, None]
    t = oracle.closeness(x_left, x_left, options["distance"])
    both = list(zip(losses(t), masks(labels[1:]), strict=True))
    sides = [(w * z)[mask] for z, mask in both]
    counts = [int(mask.sum() if counted == "all" else (z[mask] > 0).sum()) for z, mask in both]
    counts = [sum(counts)] * 2 if counted == "both" else counts
    expected = sum(z.sum() / count for z, count in zip(sides, counts, strict=True))
    loss = getattr(oracle, f"{name}_loss")
    actual = loss(x, labels, reduction="mean_pairs", weight=weight, **options)
    agree(actual, expected, x, weight)


@pytest.mark.parametrize("loss", [oracle.contrastive_loss, oracle.nt_xent_loss])
def test_mean_pairs_of_nothing(loss):
    x, labels = sample(5)
    value = loss(x, torch.full_like(labels, -100), reduction="mean_pairs")
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0
    assert not gradient.any()
