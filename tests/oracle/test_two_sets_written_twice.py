"""Holds the oracles over two sets against a second writing, of another form."""

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import oracle
from support.oracle_samples import agree, leaf, relu, sample, two_sets


def test_pair_losses_as_open_clip():
    (x, _), (y, _) = sample(30), sample(30, seed=1)
    scale, bias = (torch.tensor(each).double().requires_grad_() for each in (14.0, -10.0))
    logits, target = normalize(x) @ normalize(y).T * scale, torch.arange(30)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    actual = oracle.reduce(oracle.info_nce_loss(x, y, temperature=1 / scale))
    agree(actual, expected, x, y, scale)
    signs = 2 * torch.eye(30, dtype=torch.float64) - torch.ones(30, 30, dtype=torch.float64)
    expected = -logsigmoid(signs * (logits + bias)).sum() / 30
    actual = oracle.reduce(oracle.siglip_loss(x, y, scale=scale, bias=bias))
    agree(actual, expected, x, y, scale, bias)


def test_info_nce_with_hard_negatives():
    x, y = sample(30)[0], sample(47, seed=1)[0]
    z, target = normalize(x) @ normalize(y).T / 0.07, torch.arange(30)
    row, column = cross_entropy(z, target), cross_entropy(z[:, :30].T, target)
    agree(oracle.info_nce_loss(x, y).mean(), (row + column) / 2, x, y)
    agree(oracle.info_nce_loss(x, y, symmetric=False).mean(), row, x, y)


def test_info_nce_of_frozen_anchors_and_with_quality():
    (x, y), quality = two_sets(), leaf(sample(30, D=1)[0][:, 0])
    z = normalize(x) @ normalize(y).T / 0.07
    losses = cross_entropy(z, torch.arange(30), reduction="none")
    agree(oracle.anchor_info_nce_loss(x, y, frozen=False).sum(), losses.sum(), x, y)
    frozen = oracle.anchor_info_nce_loss(x, y)
    agree(frozen.sum(), losses.sum(), x)
    assert torch.autograd.grad(frozen.sum(), y, allow_unused=True) == (None,)
    weight = (2 * quality).exp() / (2 * quality).exp().sum() * 30
    weighted = oracle.quality_weighted_info_nce_loss(x, y, quality, gamma=2.0)
    agree(weighted.sum(), (weight.detach() * losses).sum(), x, y)
    assert torch.autograd.grad(weighted.sum(), quality, allow_unused=True) == (None,)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_dcl_as_its_code(sigma):
    """Which hides the diagonals by adding the logarithm of 1e-45."""
    one, other = (normalize(each) for each in two_sets())

    def way(a, b):
        cross = a @ b.T
        w = 1 if sigma is None else 2 - 30 * torch.softmax((a * b).sum(1) / sigma, 0)
        z = torch.cat([a @ a.T, cross], 1) / 0.1
        hidden = torch.tensor(1e-45, dtype=torch.float64).log() * torch.eye(30).double().repeat(
            1, 2
        )
        return (-w * cross.diag() / 0.1 + (z + hidden).logsumexp(1)).mean()

    x, y = leaf(one), leaf(other)
    options = {"sigma": sigma, "distance": "dot"}
    actual = oracle.decoupled_contrastive_loss(x, y, **options)
    agree(actual.mean(), (way(x, y) + way(y, x)) / 2, x, y)
    actual = oracle.decoupled_contrastive_loss(x, y, **options, symmetric=False)
    agree(actual.mean(), way(x, y), x, y)
    assert oracle.decoupled_contrastive_loss(x[:1], y[:1]).tolist() == [0]


def test_multi_positive_in_loops():
    x, negatives = sample(12)[0], leaf(sample(20, seed=1)[0])
    positives = leaf(sample(36, seed=2)[0].view(12, 3, 16))
    u, p, n = (normalize(each, dim=-1) for each in (x, positives, negatives))
    expected = 0
    for i in range(12):
        for o in range(3):
            e = [((u[i] @ v) / 0.1).exp() for v in [*p[:, o], *n]]
            expected = expected - (e[i] / sum(e)).log() / 3
    actual = oracle.multi_positive_loss(x, positives, negatives=negatives, temperature=0.1)
    agree(actual.sum(), expected, x, positives, negatives)
    (x, y), options = two_sets(), {"temperature": 0.1}
    actual = oracle.multi_positive_loss(x, y[:, None], **options)
    agree(actual.sum(), oracle.info_nce_loss(x, y, **options, symmetric=False).sum(), x, y)


def test_tal_as_its_code():
    """Matrices, and the two ways added; a way without negatives is left out by us alone."""
    (x, y), labels = two_sets(), torch.arange(30) // 4
    y.data[::2] = 2 * x.data[::2]
    s = normalize(x) @ normalize(y).T
    same = (labels[:, None] == labels).double()

    def way(s):
        e = (s / 0.1).exp()
        share = (e * same / (e * same).sum(1, keepdim=True)).detach()
        return relu(0.3 - (share * s).sum(1) + 0.1 * (e * (1 - same)).sum(1).clamp(max=1e36).log())

    losses = way(s) + way(s.T)
    assert (losses == 0).any()
    actual = oracle.tal_loss(x, y, labels, temperature=0.1, margin=0.3)
    agree(actual.sum(), losses.sum(), x, y)
    values = oracle.tal_loss(x, y, torch.zeros(30).long())
    assert not values.any()
    assert not any(g.any() for g in torch.autograd.grad(values.sum(), (x, y)))


@pytest.mark.parametrize("x_is", ["text", "video", "without a table", "own alone"])
def test_sms_in_loops(x_is):
    """With the names of its code: x_ij = cos(text_i, video_j), c_ij = C[video_i, text_j]."""
    (text, video), N = two_sets(12), 12
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(241, (5, 7), generator=generator).double() / 240
    table[:2] = table[:2].round()  # some that are equal
    of_video = torch.randint(5, (N,), generator=generator)
    of_text = torch.randint(7, (N,), generator=generator)
    cos = normalize(text) @ normalize(video).T
    c = table[of_video][:, of_text]
    own = torch.linspace(-0.004, 1, N).double()
    if x_is == "without a table":
        c = torch.eye(N).double()
    elif x_is == "own alone":  # what comes with each pair; nothing is known of others
        c = own.diag()
    seen, total = set(), 0
    for i in range(N):
        for j in range(N):
            # text to video, video to text
            for R, other in ((c[i, i] - c[j, i], cos[i, j]), (c[i, i] - c[i, j], cos[j, i])):
                if i == j:
                    continue
                z = 0.6 * R - (cos[i, i] - other)
                if R > 1.1 / 240:
                    branch, loss = "more", relu(z)
                elif R.abs() < 1.1 / 240:
                    branch, loss = "alike", relu(z.abs() - 0.1)
                else:
                    branch, loss = "less", relu(-z)
                seen |= {(branch, bool(loss > 0))}
                total = total + loss
    assert len(seen) == {"without a table": 2, "own alone": 4}.get(x_is, 6)
    if x_is == "text":
        given, classes = (text, video), (table.T, of_text, of_video)
    else:
        given, classes = (video, text), (table, of_video, of_text)
    names = ("relevance", "x_classes", "y_classes")
    told = dict(zip(names, classes, strict=True))
    if x_is == "without a table":
        told = {}
    elif x_is == "own alone":
        told = {"own": own}
    actual = oracle.sms_loss(*given, **told)
    agree(actual.mean(), total / (2 * N * (N - 1)), text, video)


@pytest.mark.parametrize("keeps_itself", [False, True])
def test_hydra_as_its_code(keeps_itself):
    """All gated rows at once, masks, a row's mean subtracted, the mean over all positive pairs."""
    (x, _), (z, _), N = sample(20), sample(20, seed=1), 20
    gate = leaf(z.sigmoid())
    y1, y2 = torch.arange(N) % 4, torch.arange(N) * 7 // 3 % 5  # of some both are one, or unknown
    mine, theirs = normalize(x * gate), normalize(x[None] * gate[:, None], dim=2)
    logits = torch.einsum("id,ijd->ij", mine, theirs) / 0.1
    of_own, of_partner = y1[:, None] == y1, y2[:, None] == y1
    neither = ~(of_own | of_partner)
    if not keeps_itself:
        of_partner = of_partner & ~torch.eye(N, dtype=torch.bool)
    z = logits - logits.mean(1, keepdim=True)
    log = torch.log(z.exp() + (z.exp() * neither).sum(1, keepdim=True))
    expected = ((log - z) * of_partner).sum() / of_partner.sum()
    own = torch.full((N,), -1) if keeps_itself else None
    actual = oracle.hydra_loss(x, gate, y1, y2, own=own, reduction="mean_pairs")
    agree(actual, expected, x, gate, atol=1e-11)


@pytest.mark.parametrize("one_hot", [False, True])
def test_hashing_as_its_code(one_hot):
    """DLCH's, over all pairs of two sets; over one, itself is no difference."""
    (x, labels), (y, others) = sample(15), sample(23, seed=1)
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.rand(n, 6, generator=generator) < 0.4 for n in (15, 23))
    a[:, 0] |= ~a.any(1)
    b[:, 0] |= ~b.any(1)
    if one_hot:
        a, b = (z[:, None] == torch.arange(6) for z in (labels, others))
    else:
        labels, others = a, b
    cos = normalize(x) @ normalize(y).T
    expected = ((relu(cos) - normalize(a.double()) @ normalize(b.double()).T) ** 2).mean()
    actual = oracle.hashing_loss(x, labels, ref_emb=y, ref_labels=others)
    agree(actual.mean(), expected, x, y)
    cos = normalize(x) @ normalize(x).T
    whole = ((relu(cos) - normalize(a.double()) @ normalize(a.double()).T) ** 2).sum() / (15 * 14)
    agree(oracle.hashing_loss(x, labels).mean(), whole, x)
    products = ((8.0 * normalize(a.double()) @ normalize(b.double()).T - x @ y.T) ** 2).mean()
    given = {"ref_emb": y, "ref_labels": others, "distance": "dot"}
    actual = oracle.hashing_loss(x, labels, **given, scale=8.0, rectified=False)
    agree(actual.mean(), products, x, y, atol=1e-10)


def test_conditional_transport_in_loops():
    x, y = two_sets()
    p, q, expected = normalize(x), normalize(y), 0
    for one, other in ((p, q), (q, p)):
        for i in range(30):
            e = [torch.exp(5 * one[i] @ other[j]) for j in range(30)]
            paid = sum(e[j] * (1 - one[i] @ other[j]) for j in range(30))
            expected = expected + paid / sum(e) / 30
    agree(oracle.conditional_transport_loss(x, y, scale=5.0).mean(), expected, x, y)
