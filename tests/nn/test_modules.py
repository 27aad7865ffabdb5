"""The Modules of pairops.nn: the functions' numbers, their parameters, state, names and errors."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as theirs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pairops
from pairops import losses, nn
from pairops.compat import pml
from pairops.nn.classes import ELSEWHERE, RENAMED, class_name
from support.loss_parameters import AGAINST_PROXIES, LABELLED, with_rest
from support.named_cases import smooth

DOUBLE = torch.float64
SIZES = {"num_classes": 6, "embedding_size": 9}
CLASSES = {name: class_name(name) for name in losses.LOSSES}
PROXIES = [CLASSES[name] for name in AGAINST_PROXIES]
# Their classes of these names have the same loss of an anchor, and another default reduction.
SHARED = sorted(set(CLASSES.values()) & set(vars(theirs)))


def batch(n: int = 30) -> tuple[Tensor, Tensor]:
    x = smooth(n, 9, DOUBLE)
    return x.requires_grad_(), torch.cat([torch.arange(6), torch.randint(0, 5, (n - 6,))])


def made(name: str, **given: Any) -> Any:
    return getattr(nn, name)(**given, **(SIZES if name in PROXIES else {}))


def called(name: str, x: Tensor) -> tuple[Tensor, ...]:
    """What the function `name` is called with, but for proxies."""
    labels = torch.arange(len(x)) % 6
    if name in LABELLED or name in AGAINST_PROXIES:
        return x, labels
    return x, *with_rest(name, x, smooth(len(x), x.shape[1], DOUBLE))[0]


def same(ours: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_is_its_function(name: str) -> None:
    module, function = made(CLASSES[name]).to(DOUBLE), getattr(pairops, name)
    x, _ = batch()
    args = called(name, x)
    rest = (module.proxies,) if name in AGAINST_PROXIES else ()
    same(module(*args), function(*args, *rest), x)
    value, aux = module.with_aux(*args, reduction="sum")
    expected, wanted = function.with_aux(*args, *rest, reduction="sum")
    same(value, expected, x)
    assert torch.equal(aux.positives, wanted.positives)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_has_the_arguments_and_defaults_of_its_function(name: str) -> None:
    of_class = inspect.signature(getattr(nn, CLASSES[name])).parameters
    of_function = inspect.signature(getattr(pairops, name)).parameters
    keywords = {k: p.default for k, p in of_function.items() if p.kind is p.KEYWORD_ONLY}
    found = {k: p.default for k, p in of_class.items() if k not in ("learn", *SIZES)}
    assert found == keywords
    forward = inspect.signature(made(CLASSES[name]).forward).parameters
    assert list(forward) == [k for k in of_function if k != "proxies"]


# ── beside pytorch-metric-learning ──


def balanced() -> tuple[Tensor, Tensor]:
    """Where a mean over anchors is one over those above 0, and over their positives."""
    return smooth(24, 9, DOUBLE).requires_grad_(), torch.arange(24) % 6


def theirs_of(name: str) -> torch.nn.Module:
    torch.manual_seed(5)
    other: torch.nn.Module = getattr(theirs, name)(**(SIZES if name in PROXIES else {})).to(DOUBLE)
    if name == "MarginLoss":
        other.beta = torch.tensor([1.2], dtype=DOUBLE)  # not rounded to float32
    return other


@pytest.mark.parametrize("name", SHARED)
def test_a_name_that_both_have_means_one_loss(name: str) -> None:
    torch.manual_seed(5)
    ours, other = made(name).to(DOUBLE), theirs_of(name)
    x, labels = balanced()
    same(ours(x, labels), other(x, labels), x)


@pytest.mark.parametrize("name", sorted(RENAMED.keys() - ELSEWHERE.keys()))
def test_a_class_under_another_name_is_named(name: str) -> None:
    written = RENAMED[name]
    with pytest.raises(AttributeError, match=rf"has no {name}, .*Write pairops\.nn\.{written};"):
        getattr(pairops.nn, name)
    assert issubclass(getattr(pairops.nn, written), pairops.nn.LossModule)


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_a_name_with_other_defaults_says_where_they_are(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"Write pairops\.compat\.pml\.{name} ") as error:
        getattr(nn, name)
    recipe = ELSEWHERE[name]
    assert f"pairops.nn.{recipe} for the same numbers" in str(error.value)
    ours = eval(f"nn.{recipe if recipe.endswith(')') else recipe + '()'}", {"nn": nn})
    x, labels = batch()
    same(ours(x, labels), theirs_of(name)(x, labels), x)
    if hasattr(pml, name):
        served = getattr(pml, name)()
        if name == "MarginLoss":
            served.beta = torch.tensor([1.2], dtype=DOUBLE)
        same(served(x, labels), theirs_of(name)(x, labels), x)


def test_no_name_of_theirs_has_other_numbers() -> None:
    assert set(vars(theirs)) & set(nn.__all__) == set(SHARED)
    with pytest.raises(AttributeError, match=r"pairops\.nn has no Foo; it has .*MSLoss"):
        nn.Foo  # noqa: B018


# ── arguments and state ──


@pytest.mark.parametrize("name", LABELLED)
def test_runs_under_the_memory(name: str) -> None:
    if "ref_emb" not in inspect.signature(getattr(pairops, name)).parameters:
        with pytest.raises(TypeError, match=f"loss is {CLASSES[name]}"):
            pairops.CrossBatchMemory(made(CLASSES[name]), 9)
        return
    ours = made(CLASSES[name])
    memory = pairops.CrossBatchMemory(ours, 9, 50, dtype=DOUBLE)
    (x, labels), (later, others) = batch(), batch()
    first = memory(x, labels)
    torch.testing.assert_close(first, ours(x, labels), rtol=1e-12, atol=1e-12)
    references = torch.cat([later, x.detach()]), torch.cat([others, labels])
    expected = ours(
        later, others, ref_emb=references[0], ref_labels=references[1], exclude_self=True
    )
    torch.testing.assert_close(memory(later, others), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*PROXIES, "InfoNCELoss", "SigLIPLoss"])
def test_the_memory_refuses_what_has_no_references(name: str) -> None:
    with pytest.raises(TypeError, match=f"loss is {name}"):
        pairops.CrossBatchMemory(made(name), 9)


@pytest.mark.parametrize("name", sorted(CLASSES.values()))
def test_copies_and_shows_its_arguments(name: str) -> None:
    loss = made(name, reduction="sum")
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(copied) == repr(loss)
        assert list(copied.state_dict()) == list(loss.state_dict())
    assert repr(loss).startswith(f"{name}(")
    assert "reduction='sum'" in repr(loss)


def test_what_is_of_several_labels_is_kept() -> None:
    x, several = smooth(20, 9, DOUBLE), torch.rand(20, 5) < 0.4
    loss = nn.SupConLoss(positive_weight="jaccard")
    expected = pairops.supcon_loss(x, several, positive_weight="jaccard")
    assert torch.equal(loss(x, several), expected)
    with pytest.raises(ValueError, match="positive_weight is 'iou'; it must be one of equal, sh"):
        nn.SupConLoss(positive_weight="iou")


def test_any_function_can_be_a_module() -> None:
    def half(x: Tensor, labels: Tensor, *, factor: float = 0.5) -> Tensor:
        return factor * pairops.ms_loss(x, labels)

    loss, (x, labels) = nn.LossModule(half, learn=["factor"]).to(DOUBLE), batch()
    torch.testing.assert_close(loss(x, labels), half(x, labels).reshape(1))
    assert repr(loss) == "LossModule(half, factor=Parameter(1,))"
    assert [*loss.state_dict()] == ["factor"]


def test_an_argument_that_is_a_parameter_is_learned() -> None:
    temperature = torch.nn.Parameter(torch.tensor(0.2))
    loss = nn.SupConLoss(temperature=temperature, distance="dot")
    assert list(loss.parameters()) == [temperature]
    x, labels = batch()
    assert torch.autograd.grad(loss(x, labels), temperature)[0] != 0
    loss.temperature.data.fill_(0.3)
    expected = pairops.supcon_loss(x, labels, temperature=0.3, distance="dot")
    torch.testing.assert_close(loss(x, labels, reduction="mean"), expected)


def test_a_tensor_among_the_arguments_moves_with_the_module() -> None:
    loss = nn.MarginPairLoss(beta=torch.rand(6)).to(DOUBLE)
    assert loss.beta.dtype == DOUBLE
    assert not list(loss.parameters())
    assert "beta=Tensor(6,)" in repr(loss)
    learned = nn.MarginPairLoss(beta=torch.rand(6), learn=["beta"])
    assert [p.shape for p in learned.parameters()] == [(6,)]


@pytest.mark.parametrize("name", [name for name in PROXIES if name in SHARED])
def test_takes_the_state_of_its_namesake(name: str) -> None:
    ours, other = made(name).to(DOUBLE), theirs_of(name)
    for parameter in other.parameters():
        parameter.data.uniform_(1.1, 1.3)
    ours.load_state_dict(other.state_dict())
    x, labels = balanced()
    torch.testing.assert_close(ours(x, labels), other(x, labels))


@pytest.mark.parametrize(
    ("module", "function", "names"),
    [
        (nn.InfoNCELoss, pairops.info_nce_loss, {"temperature": 0.1}),
        (nn.SigLIPLoss, pairops.siglip_loss, {"scale": 10.0, "bias": -10.0}),
        (nn.MSLoss, pairops.ms_loss, {"alpha": 2.0, "beta": 50.0, "base": 0.5}),
    ],
)
def test_learns_what_it_is_told_to(module: Any, function: Any, names: dict[str, float]) -> None:
    loss = module(learn=list(names), **names).to(DOUBLE)
    assert len(list(loss.parameters())) == len(names)
    x, labels = batch()
    args = (x, labels) if module is nn.MSLoss else (x, batch()[0])
    numbers = {k: torch.tensor(v, dtype=DOUBLE, requires_grad=True) for k, v in names.items()}
    expected = function(*args, **numbers)
    value = loss(*args)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    found = torch.autograd.grad(value, list(loss.parameters()))
    wanted = torch.autograd.grad(expected, list(numbers.values()))
    for name, a, b in zip(names, found, wanted, strict=True):
        factor = numbers[name].detach() if name in ("temperature", "scale") else 1.0
        torch.testing.assert_close(a.squeeze(), factor * b, rtol=1e-5, atol=1e-9)


def half_of(x: Tensor, labels: Tensor, *, training: float = 0.5) -> Tensor:
    return training * pairops.ms_loss(x, labels)


def test_arguments_are_attributes_given_or_not() -> None:
    loss, (x, labels) = nn.MSLoss(alpha=3.0), batch()
    assert (loss.alpha, loss.beta) == (3.0, 50.0)
    loss.beta, loss.epsilon = 40.0, None
    expected = pairops.ms_loss(x, labels, alpha=3.0, beta=40.0, epsilon=None)
    torch.testing.assert_close(loss(x, labels), expected)
    loss.base = torch.tensor(0.3)
    assert [*loss.buffers()] == [loss.base]
    again = copy.deepcopy(loss)
    torch.testing.assert_close(again(x, labels), loss(x, labels))
    learned = nn.InfoNCELoss(learn=["temperature"])
    torch.testing.assert_close(learned.temperature.item(), 0.07)
    with pytest.raises(AttributeError, match="temperature is learned; set log_temperature"):
        learned.temperature = 0.1
    with pytest.raises(AttributeError, match="no attribute 'alhpa'"):
        loss.alhpa  # noqa: B018


def test_is_made_whatever_engine_or_mode_is_asked_for() -> None:
    with pairops.engine("triton"):
        nn.MSLoss()
    with FakeTensorMode():
        nn.ProxyNCALoss(3, 4)
    with torch.device("meta"):
        assert nn.ProxyAnchorLoss(3, 4).proxies.is_meta
        nn.MSLoss(alpha=torch.tensor(3.0), learn=["alpha"])
    shared = torch.nn.Parameter(torch.tensor([3.0], dtype=DOUBLE))
    assert nn.MSLoss(alpha=shared, learn=["alpha"]).alpha is shared


def test_labels_by_keyword_beside_proxies() -> None:
    loss, (x, labels) = made("ProxyAnchorLoss").to(DOUBLE), batch()
    assert torch.equal(loss(x, labels=labels), loss(x, labels))


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: nn.ProxyAnchorLoss(0, 9), ValueError, "num_classes is 0"),
        (lambda: nn.ProxyNCALoss(3, True), TypeError, "embedding_size is bool"),
        (lambda: nn.ProxyNCALoss(3, 2, 1.0), TypeError, "takes num_classes, embedding_size alone"),
        (lambda: nn.MSLoss(2.0), TypeError, "MSLoss takes nothing by position; write the names"),
        (lambda: nn.InfoNCELoss(temperature=0.0), ValueError, "temperature is 0.0"),
        (lambda: nn.SigLIPLoss(scale=-1.0, learn=["scale"]), ValueError, r"scale is \[-1.0\]"),
        (lambda: nn.SigLIPLoss(bias="nan"), TypeError, "bias is str"),
        (lambda: nn.MSLoss(alhpa=2.0), TypeError, "MSLoss.* no keyword 'alhpa'.*mean 'alpha'"),
        (lambda: nn.MSLoss(learn=["alhpa"]), TypeError, "no keyword 'alhpa'"),
        (lambda: nn.MSLoss(learn="alpha"), TypeError, "learn is 'alpha'; it must be names"),
        (
            lambda: nn.MSLoss(learn=["reduction"]),
            ValueError,
            "learn has 'reduction'; MSLoss.. takes",
        ),
        (
            lambda: nn.MSLoss(learn=["epsilon"]),
            ValueError,
            "learn has 'epsilon'; MSLoss.. takes no",
        ),
        (lambda: nn.ContrastivePairLoss(learn=["pos_margin"]), ValueError, "it must be given as a"),
        (lambda: nn.MSLoss(reduction=torch.zeros(3)), TypeError, "reduction is a tensor; MSLoss"),
        (lambda: nn.MSLoss(group="aut"), TypeError, "group is"),
        (lambda: nn.LossModule(half_of, training=2), ValueError, "training is an argument of the"),
        (lambda: nn.MSLoss(reduction="men"), ValueError, "reduction is 'men'"),
    ],
)
def test_what_is_refused_when_made(build: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        build()
