"""The edge cases of the oracle: missing sides, ignored rows, NaN, ties, labels and dtypes."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

import oracle
from support.oracle_samples import LABELLED, agree, sample

LOSSES = [pytest.param(loss, id=name) for name, loss in LABELLED.items()]
# whose loss of an anchor depends on other anchors too
JOINT = LABELLED["lifted_original"]


def tal(x, y, **options):
    return oracle.tal_loss(x, y, torch.arange(len(x)), **options)


PAIR_LOSSES = [
    oracle.info_nce_loss,
    partial(oracle.siglip_loss, scale=10.0, bias=-10.0),
    partial(oracle.anchor_info_nce_loss, frozen=False),
    lambda x, y, **o: oracle.quality_weighted_info_nce_loss(x, y, torch.ones(len(x)), **o),
    partial(oracle.decoupled_contrastive_loss, sigma=0.5),
    lambda x, y, **o: oracle.multi_positive_loss(x, y[:, None], negatives=y.detach()[:1], **o),
    oracle.sms_loss,
    tal,
]


OF_ONE_SIDE = "ms_unmined contrastive contrastive_raw contrastive_l2 lifted binomial margin mlcd"


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("labels", "M", "not_zero"),  # labels of the anchors; references, None: the anchors; losses
    [
        ([], None, ""),
        ([3], None, ""),
        (
            [3] * 4,
            None,
            f"supcon soft_topk {OF_ONE_SIDE}",  # of three positives one is the nearest
        ),
        (
            [3, 4, 5],
            None,
            OF_ONE_SIDE,
        ),
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
    gradients = torch.autograd.grad(oracle.reduce(values), [x, y] if references else x)
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
    if loss is tal and N == 1:
        assert values == 0  # without negatives there is nothing to compute
        return
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
    for i in range(20 if loss is not JOINT else 0):
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
    if loss is not JOINT:
        assert torch.equal(values.isnan(), is_row)
        assert torch.equal(torch.autograd.grad(values.sum(), x)[0].isnan().any(1), is_row)
    assert loss(x, labels, normalize=cosine).isnan().all()


def test_an_extreme_has_one_pair_the_first():
    """Equal vectors all over the references: BLAS gives them different last bits in float64."""
    (x, _), (y, _) = sample(40, D=123), sample(507, D=123, seed=1)
    y = y.detach()[:2].repeat(254, 1)[:507].requires_grad_()
    references = {"ref_emb": y, "ref_labels": torch.arange(507) % 2}
    loss = oracle.triplet_loss(x, torch.zeros(40).long(), margin=5.0, **references)
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
    error = (values - exact).abs().max() / exact.abs().max()
    assert error == 0 if dtype == torch.float64 else 0 < error < 1e-5


@pytest.mark.parametrize("name", ["n_pair", "proxy_anchor", "proxy_nca"])
def test_ignored_rows_of_the_others(name):
    """Row 3 of class 0 is then the second; the proxy of class 1 may have no row."""
    (x, labels), proxies = sample(12, classes=4), sample(4, seed=1)[0]
    labels[:6], left = torch.tensor([0, 1, 0, 0, 2, 3]), torch.arange(12) > 1
    given = [] if name == "n_pair" else [proxies]
    loss = getattr(oracle, f"{name}_loss")
    ignored = labels.masked_fill(~left, -100)
    x.data[0] = math.nan
    values, expected = loss(x, ignored, *given), loss(x[left], labels[left], *given)
    assert torch.equal(values if name == "proxy_anchor" else values[left], expected)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.isfinite().all()
    assert gradient[left].any(1).sum() > 5
    assert not gradient[~left].any()
    empty = loss(x[:0], labels[:0], *given)
    assert empty.shape == ((4,) if name == "proxy_anchor" else (0,))
    assert empty.requires_grad
