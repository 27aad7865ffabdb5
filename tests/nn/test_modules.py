"""The Modules of pairops.nn against pytorch-metric-learning's; their parameters, state, errors."""

import copy
import inspect
import math
import pickle
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as theirs
from torch import Tensor

import pairops
from pairops import nn
from support.named_cases import smooth

DOUBLE = torch.float64
SIZES = {"num_classes": 6, "embedding_size": 9}
PROXIES = ["ProxyAnchorLoss", "ProxyNCALoss"]
SHARED = sorted(set(nn.__all__) & set(vars(theirs)))
PLAIN = [name for name in SHARED if name not in PROXIES]
LABELLED = [name for name in PLAIN if issubclass(getattr(nn, name), nn.LabelledLoss)]

# Arguments beside the defaults, which both libraries take.
FURTHER: dict[str, list[dict[str, Any]]] = {
    "CircleLoss": [{"m": 0.25, "gamma": 20}],
    "ContrastiveLoss": [{"pos_margin": 0.3, "neg_margin": 0.8}],
    "GeneralizedLiftedStructureLoss": [{"neg_margin": 1.3, "pos_margin": 0.4}],
    "LiftedStructureLoss": [{"neg_margin": 1.3, "pos_margin": 0.4}],
    "MarginLoss": [{"margin": 0.1, "beta": 1.0}, {"num_classes": 6, "learn_beta": True}],
    "MultiSimilarityLoss": [{"alpha": 1.0, "beta": 40.0, "base": 0.3}],
    "NCALoss": [{"softmax_scale": 3.0}],
    "NTXentLoss": [{"temperature": 0.5}],
    "ProxyAnchorLoss": [{"margin": 0.2, "alpha": 16}],
    "ProxyNCALoss": [{"softmax_scale": 3.0}],
    "SignalToNoiseRatioContrastiveLoss": [{"pos_margin": 0.3, "neg_margin": 0.8}],
    "SupConLoss": [{"temperature": 0.5}],
    "TripletMarginLoss": [{"margin": 0.3}, {"smooth_loss": True}],
}


def batch(n: int = 30) -> tuple[Tensor, Tensor]:
    x = smooth(n, 9, DOUBLE)
    return x.requires_grad_(), torch.cat([torch.arange(6), torch.randint(0, 5, (n - 6,))])


def make(name: str, **given: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and theirs, in float64, with the same parameters."""
    given |= SIZES if name in PROXIES else {}
    torch.manual_seed(5)
    ours = getattr(nn, name)(**given).to(DOUBLE)
    torch.manual_seed(5)
    other = getattr(theirs, name)(**given).to(DOUBLE)
    if name == "MarginLoss" and not given.get("learn_beta"):
        other.beta = torch.tensor([given.get("beta", 1.2)], dtype=DOUBLE)  # not rounded to float32
    return ours, other


def same(ours: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "given"), [(name, given) for name in SHARED for given in [{}, *FURTHER.get(name, [])]]
)
def test_has_the_numbers_of_its_namesake(name: str, given: dict[str, Any]) -> None:
    ours, other = make(name, **given)
    x, labels = batch()
    value, expected = ours(x, labels), other(x, labels)
    if name in PROXIES or given.get("learn_beta"):
        (mine,), (those,) = ours.parameters(), other.parameters()
        assert torch.equal(mine, those)
        found, wanted = torch.autograd.grad(value, mine), torch.autograd.grad(expected, those)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
        value, expected = ours(x, labels), other(x, labels)
    same(value, expected, x)


@pytest.mark.parametrize("name", SHARED)
def test_arguments_of_the_same_name_have_the_same_defaults(name: str) -> None:
    ours = inspect.signature(getattr(nn, name)).parameters
    other = inspect.signature(getattr(theirs, name)).parameters
    common = [k for k in ours if k in other and k not in ("kwargs", "args")]
    assert {k: ours[k].default for k in common} == {k: other[k].default for k in common}
    missing = set(other) - set(ours) - {"kwargs", "args"}
    assert missing <= {"swap", "nu", "triplets_per_anchor"}


# LiftedStructureLoss there looks the negatives of a reference up among the anchors.
@pytest.mark.parametrize("name", sorted({*LABELLED} - {"LiftedStructureLoss"}))
def test_takes_references(name: str) -> None:
    ours, other = make(name)
    (x, labels), (y, ref_labels) = batch(), batch(40)
    value = ours(x, labels, None, y, ref_labels)
    same(value, other(x, labels, None, y, ref_labels), x, y)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", sorted({*LABELLED} - {"LiftedStructureLoss", "NCALoss"}))
def test_self_pairs_of_two_views_are_left_out_if_the_labels_are_the_same_tensor(
    name: str, copied: bool
) -> None:
    ours, other = make(name)
    (x, labels), (y, _) = batch(), batch()
    ref_labels = labels.clone() if copied else labels
    value = ours(x, labels, ref_emb=y, ref_labels=ref_labels)
    same(value, other(x, labels, ref_emb=y, ref_labels=ref_labels), x, y)
    kept = ours(x, labels, ref_emb=y, ref_labels=ref_labels, exclude_self=not copied)
    assert torch.equal(kept, value)
    # What is asked for goes before the rule.
    turned = ours(x, labels, ref_emb=y, ref_labels=ref_labels, exclude_self=copied)
    assert abs((turned - value).item()) > 1e-6


@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss", "CircleLoss", "MultiSimilarityLoss"])
def test_self_pairs_of_the_same_embeddings_stay_with_other_labels(name: str) -> None:
    ours, other = make(name)
    x, labels = batch()
    for ref_labels in (labels, labels.clone()):
        value = ours(x, labels, ref_emb=x, ref_labels=ref_labels)
        same(value, other(x, labels, ref_emb=x, ref_labels=ref_labels), x)
    assert abs((value - ours(x, labels)).item()) > 1e-6


def test_nca_of_two_views_keeps_self_pairs_as_its_namesake_does() -> None:
    ours, other = make("NCALoss")
    (x, labels), (y, _) = batch(), batch()
    for references in (y, x):
        value = ours(x, labels, ref_emb=references, ref_labels=labels)
        same(value, other(x, labels, ref_emb=references, ref_labels=labels), x)


def test_ids_say_who_is_who_whatever_the_labels_are() -> None:
    (x, labels), (y, _) = batch(), batch()
    ids = torch.arange(30)
    value = nn.SupConLoss()(x, labels, ref_emb=y, ref_labels=labels, ids=ids, ref_ids=ids.roll(7))
    apart = nn.SupConLoss()(x, labels, ref_emb=y, ref_labels=labels, exclude_self=True)
    rolled = y.roll(-7, 0), labels.roll(-7)
    expected = nn.SupConLoss()(
        x, labels, ref_emb=rolled[0], ref_labels=rolled[1], exclude_self=True
    )
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    assert abs((value - apart).item()) > 1e-6


@pytest.mark.parametrize("name", LABELLED)
def test_runs_under_the_memory(name: str) -> None:
    ours, _ = make(name)
    memory = pairops.CrossBatchMemory(ours, 9, 50, dtype=DOUBLE)
    (x, labels), (later, others) = batch(), batch()
    first = memory(x, labels)
    torch.testing.assert_close(first, ours(x, labels), rtol=1e-12, atol=1e-12)
    expected = ours(
        later,
        others,
        None,
        torch.cat([later, x.detach()]),
        torch.cat([others, labels]),
        exclude_self=True,
    )
    torch.testing.assert_close(memory(later, others), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["NPairsLoss", *PROXIES, "InfoNCELoss", "SigLIPLoss"])
def test_the_memory_refuses_what_has_no_references(name: str) -> None:
    with pytest.raises(TypeError, match=f"loss is {name}"):
        pairops.CrossBatchMemory(getattr(nn, name)(**(SIZES if name in PROXIES else {})), 9)


@pytest.mark.parametrize("name", SHARED)
def test_a_list_of_tuples_is_refused(name: str) -> None:
    x, labels = batch()
    with pytest.raises(ValueError, match="indices_tuple is a tuple; it must be None"):
        make(name)[0](x, labels, (torch.arange(2),) * 3)


@pytest.mark.parametrize("name", sorted({*nn.__all__} - {"LabelledLoss"}))
def test_copies_and_shows_its_arguments(name: str) -> None:
    loss = getattr(nn, name)(**(SIZES if name in PROXIES else {}))
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(copied) == repr(loss)
        assert list(copied.state_dict()) == list(loss.state_dict())
    assert repr(loss).startswith(f"{name}(")
    assert "reduction=" in repr(loss)


def test_any_loss_over_labels_can_be_a_module() -> None:
    loss, (x, labels) = nn.LabelledLoss(pairops.binomial_deviance_loss, base=0.2), batch()
    same(loss(x, labels), pairops.binomial_deviance_loss(x, labels, base=0.2), x)
    assert repr(loss) == "LabelledLoss(binomial_deviance_loss, base=0.2)"


def test_a_parameter_among_the_arguments_is_learned() -> None:
    temperature = torch.nn.Parameter(torch.tensor(0.2))
    loss = nn.SupConLoss(temperature, distance="dot", return_aux=True)
    assert list(loss.parameters()) == [temperature]
    x, labels = batch()
    value, aux = loss(x, labels)
    assert torch.autograd.grad(value, temperature)[0] != 0
    assert aux.positives.shape == (30,)
    assert "temperature=Parameter()" in repr(loss)
    loss.temperature.data.fill_(0.3)
    expected = pairops.supcon_loss(x, labels, temperature=0.3, distance="dot")
    torch.testing.assert_close(loss(x, labels, reduction="mean")[0], expected)


def test_a_tensor_among_the_arguments_moves_with_the_module() -> None:
    loss = nn.MarginLoss(beta=torch.rand(6), num_classes=6).to(DOUBLE)
    assert loss.beta.dtype == DOUBLE
    assert not list(loss.parameters())
    assert "beta=Tensor(6,)" in repr(loss)


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "ProxyNCALoss", "MarginLoss"])
def test_takes_the_state_of_its_namesake(name: str) -> None:
    for given in [{}] if name in PROXIES else [{"learn_beta": True}, {"num_classes": 6}]:
        ours, other = make(name, **given)
        for parameter in other.parameters():
            parameter.data.uniform_(1.1, 1.3)
        state = other.state_dict()
        ours.load_state_dict(state, strict=bool(state))
        x, labels = batch()
        torch.testing.assert_close(ours(x, labels), other(x, labels))


def test_info_nce_learns_its_temperature() -> None:
    loss, (x, _), (y, _) = nn.InfoNCELoss(0.1).to(DOUBLE), batch(), batch()
    torch.testing.assert_close(loss.logit_scale.item(), math.log(10), rtol=1e-6, atol=0)
    tau = torch.exp(-loss.logit_scale.detach()).requires_grad_()
    same(loss(x, y), pairops.info_nce_loss(x, y, temperature=tau), x, y)
    (found,) = torch.autograd.grad(loss(x, y), loss.logit_scale)
    (wanted,) = torch.autograd.grad(pairops.info_nce_loss(x, y, temperature=tau), tau)
    torch.testing.assert_close(found, -tau.detach() * wanted)


def test_siglip_learns_its_scale_and_bias() -> None:
    loss, (x, _), (y, _) = nn.SigLIPLoss().to(DOUBLE), batch(), batch()
    assert loss.logit_bias.item() == -10
    torch.testing.assert_close(loss(x, y), pairops.siglip_loss(x, y, scale=10.0, bias=-10.0))
    assert all((g != 0).all() for g in torch.autograd.grad(loss(x, y), list(loss.parameters())))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: nn.ProxyAnchorLoss(0, 9), "num_classes is 0"),
        (lambda: nn.ProxyNCALoss(3, True), "embedding_size is True"),
        (lambda: nn.MarginLoss(num_classes=2.0), "num_classes is 2.0"),  # type: ignore[arg-type]
        (lambda: nn.MarginLoss(beta=torch.ones(3), num_classes=2), r"beta has shape \(3,\)"),
        (lambda: nn.InfoNCELoss(0.0), "temperature is 0.0"),
        (lambda: nn.SigLIPLoss(-1.0), "scale is -1.0"),
    ],
)
def test_what_is_refused_when_made(build: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()
