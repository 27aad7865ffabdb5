"""Holds the oracle against other people's code, results computed by hand, and the edge cases."""

import math
from functools import partial

import formulas
import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize

LABELLED = {
    "ms": formulas.ms_loss,
    "ms_unmined": partial(formulas.ms_loss, epsilon=None),
    "contrastive": formulas.contrastive_loss,
    "supcon": formulas.supcon_loss,
    "triplet": formulas.triplet_loss,
}
LOSSES = [pytest.param(loss, id=name) for name, loss in LABELLED.items()]
PAIR_LOSSES = [formulas.info_nce_loss, partial(formulas.siglip_loss, scale=10.0, bias=-10.0)]

# unit vectors with s_01 = 0.6, s_02 = 0, s_12 = 0.8; row 2 is alone in its class
THREE = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64)


def sample(N, D=16, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (N,), generator=generator)
    centres = torch.randn(classes, D, generator=generator, dtype=torch.float64)
    x = centres[labels] + torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), labels


def agree(actual, expected, *inputs, atol=1e-12):
    """Compare two scalars and their gradients."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
    wanteds = torch.autograd.grad(expected, inputs, retain_graph=True)
    for got, wanted in zip(torch.autograd.grad(actual, inputs), wanteds, strict=True):
        assert wanted.abs().max() > 1e-6, "the other side has no gradient to compare with"
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def log1pexp(*z):
    return math.log(1 + sum(math.exp(each) for each in z))


def softmax_loss(temperature, matched, *others):
    z = [s / temperature for s in (matched, *others)]
    return math.log(sum(math.exp(each) for each in z)) - z[0]


def test_supcon_as_supcontrast():
    """Its matrix form, less the shift by the maximum, with base_temperature = temperature."""
    x, labels = sample(40)
    labels[0] = 100  # without positives, and still in the mean
    logits = normalize(x) @ normalize(x).T / 0.1
    but_self = 1 - torch.eye(40, dtype=torch.float64)
    mask = (labels[:, None] == labels).double() * but_self
    log_prob = logits - (logits.exp() * but_self).sum(1, keepdim=True).log()
    expected = -((mask * log_prob).sum(1) / mask.sum(1).clamp(min=1)).mean()
    agree(formulas.reduce(formulas.supcon_loss(x, labels)), expected, x)


def test_pair_losses_as_open_clip():
    (x, _), (y, _) = sample(30), sample(30, seed=1)
    scale, bias = (torch.tensor(each).double().requires_grad_() for each in (14.0, -10.0))
    logits, target = normalize(x) @ normalize(y).T * scale, torch.arange(30)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    actual = formulas.reduce(formulas.info_nce_loss(x, y, temperature=1 / scale))
    agree(actual, expected, x, y, scale)
    signs = 2 * torch.eye(30, dtype=torch.float64) - torch.ones(30, 30, dtype=torch.float64)
    expected = -logsigmoid(signs * (logits + bias)).sum() / 30
    actual = formulas.reduce(formulas.siglip_loss(x, y, scale=scale, bias=bias))
    agree(actual, expected, x, y, scale, bias)


PULL = log1pexp(-2 * (0.6 - 0.5)) / 2  # of 0.6; a negative pushes by 50 * (s - 0.5) = -25 or 15
BY_HAND = {
    # anchor 0: 0 + 0.1 is below its only positive, 0.6; anchor 2 has no positive
    "ms": [0, PULL + log1pexp(15) / 50, 0],
    "ms_unmined": [PULL + log1pexp(-25) / 50, PULL + log1pexp(15) / 50, log1pexp(-25, 15) / 50],
    "contrastive": [0.4, 0.4 + 0.3, 0.3],
    "supcon": [softmax_loss(0.1, 0.6, 0), softmax_loss(0.1, 0.6, 0.8), 0],
    "triplet": [0, 0.8 - 0.6 + 0.05, 0],
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
    loss = formulas.ms_loss(torch.ones(1, 1), torch.tensor([0]), epsilon=0.25, **options)
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
    torch.testing.assert_close(formulas.info_nce_loss(2 * THREE, y, temperature=0.5), expected)
    z = [[(1 if i == j else -1) * (3 * s[i][j] - 1) for j in range(3)] for i in range(3)]
    expected = [sum(log1pexp(-each) for each in row) for row in z]
    actual = formulas.siglip_loss(2 * THREE, y, scale=3.0, bias=-1.0)
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
    reduce = partial(formulas.reduce, reduction=reduction)
    torch.testing.assert_close(reduce(values), plain)
    torch.testing.assert_close(reduce(values, weight=weight, ignored=ignored), weighted)
    assert (reduce(0 * values) == 0).all()
    assert (reduce(values, ignored=torch.ones(4).bool()) == 0).all()
    assert (reduce(values[:0]) == 0).all()
    values[1] = math.nan
    assert reduce(values).isnan().any()


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("labels", "M", "not_zero"),  # labels of the anchors; references, None: the anchors; losses
    [
        ([], None, ""),
        ([3], None, ""),
        ([3] * 4, None, "ms_unmined contrastive supcon"),
        ([3, 4, 5], None, "ms_unmined contrastive"),
        ([3, 3], 0, ""),
        ([], 4, ""),
    ],
)
def test_missing_sides_have_a_value_and_a_gradient(name, labels, M, not_zero):
    not_zero = name in not_zero.split()
    x, y = (torch.linspace(1, 2, 4 * K).view(K, 4).requires_grad_() for K in (len(labels), M or 0))
    references = {} if M is None else {"ref_emb": y, "ref_labels": torch.full((M,), 3)}
    values = LABELLED[name](x, torch.tensor(labels, dtype=torch.int64), **references)
    assert values.shape == (len(labels),)
    assert ((values > 0) == not_zero).all()
    gradients = torch.autograd.grad(formulas.reduce(values), [x, y] if references else x)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not_zero or not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("loss", PAIR_LOSSES)
@pytest.mark.parametrize("N", [0, 1, 5])
def test_few_pairs_zero_vectors_and_nan(loss, N):
    (x, _), (y, _) = sample(N), sample(N, seed=1)
    x.data[1:2] = 0
    gradients = torch.autograd.grad(loss(x, y).sum(), (x, y))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][1:2].any()
    x.data[-1:, 2] = math.nan
    values = loss(x, y)
    assert values.shape == (N,)
    assert values[-1:].isnan().all()
    assert torch.autograd.grad(values.sum(), x)[0][-1:].isnan().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("norm", "vanishes"), [(0, True), (9e-13, True), (1.1e-12, False)])
def test_zero_vectors(loss, norm, vanishes):
    x, labels = sample(30)
    x = normalize(x.detach())
    x[[0, 7]] *= norm
    values = loss(x.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.isfinite().all()
    assert not (vanishes and gradient[[0, 7]].any())
    unit = x.detach() / x.detach().norm(dim=1, keepdim=True).clamp(min=1e-300)
    unit[[0, 7]] *= not vanishes
    torch.testing.assert_close(values, loss(unit, labels, normalize=False))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("same_set", [True, False])
def test_ignored_rows_are_as_good_as_absent(loss, same_set):
    def call(x, labels, ignore_index):
        references = {} if same_set else {"ref_emb": x, "ref_labels": labels}
        return loss(x, labels, ignore_index=ignore_index, **references)

    x, labels = sample(24)
    ignored = torch.arange(24) % 4 == 1
    labels[ignored], x.data[5] = -7, math.nan
    present = x[~ignored].detach().requires_grad_()
    values, expected = call(x, labels, -7), call(present, labels[~ignored], None)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert not values[ignored].any()
    assert not gradient[ignored].any()
    torch.testing.assert_close(values[~ignored], expected)
    torch.testing.assert_close(gradient[~ignored], torch.autograd.grad(expected.sum(), present)[0])
    assert call(x, labels, None).isnan().any()


@pytest.mark.parametrize("loss", LOSSES)
def test_own_leaves_out_one_reference(loss):
    (x, labels), (y, ref_labels) = sample(20), sample(30)
    own = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:20]
    own[::5], references = -1, {"ref_emb": y, "ref_labels": ref_labels}
    actual = loss(x, labels, own=own, **references)
    for i in range(20):
        others = {key: value[torch.arange(30) != own[i]] for key, value in references.items()}
        torch.testing.assert_close(actual[i], loss(x[i, None], labels[i, None], **others)[0])
    same_set = {"ref_emb": x, "ref_labels": labels}
    agree(loss(x, labels).sum(), loss(x, labels, own=torch.arange(20), **same_set).sum(), x)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8])
def test_exact_labels_huge_logits_and_any_order(loss, dtype):
    x, labels = sample(30, classes=3)
    values = loss(100 * x, labels, normalize=False)
    assert values.isfinite().all()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    names = [-1, 2**62, 2**62 + 1] if dtype is torch.int64 else [0, 1, 156]  # in 8 bits -100 is 156
    labels = torch.tensor(names)[labels].to(dtype)
    torch.testing.assert_close(loss(100 * x[order], labels[order], normalize=False), values[order])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cosine", [True, False])
def test_nan_is_never_lost(loss, cosine):
    (x, labels), y = sample(20, classes=2), sample(30, seed=1)[0].detach()
    x.data[4, 2] = math.nan
    values = loss(x, labels, normalize=cosine, ref_emb=y, ref_labels=torch.arange(30) % 2)
    is_row = torch.arange(20) == 4
    assert torch.equal(values.isnan(), is_row)
    assert torch.equal(torch.autograd.grad(values.sum(), x)[0].isnan().any(1), is_row)
    assert loss(x, labels, normalize=cosine).isnan().all()


def test_an_extreme_has_one_pair_the_first():
    """Equal vectors all over the references: BLAS gives them different last bits in float64."""
    (x, _), (y, _) = sample(40, D=123), sample(507, D=123, seed=1)
    y = y.detach()[:2].repeat(254, 1)[:507].requires_grad_()
    references = {"ref_emb": y, "ref_labels": torch.arange(507) % 2}
    loss = formulas.triplet_loss(x, torch.zeros(40).long(), margin=5.0, **references)
    (gradient,) = torch.autograd.grad(loss.sum(), y)
    assert gradient.any(1).nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("loss", [*LOSSES, *PAIR_LOSSES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_computes_in_the_given_type(loss, dtype):
    x, labels = sample(20)
    x = x.detach().half().requires_grad_()
    other = sample(20, seed=1)[0].detach().half() if loss in PAIR_LOSSES else labels
    values, exact = loss(x, other, dtype=dtype), loss(x.double(), other)
    assert values.dtype == dtype
    assert torch.autograd.grad(values.sum(), x)[0].dtype == torch.float16
    error = (values - exact).abs().max()
    assert error == 0 if dtype == torch.float64 else 0 < error < 1e-4
