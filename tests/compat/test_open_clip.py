"""pairops.compat.open_clip against its formulas, on one rank and several, and against open_clip.

What compares with open_clip itself reads its file of losses, which needs torch alone: it skips
itself where the package is not installed.
"""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops.compat import open_clip
from support.exhaustive import exhaustive
from support.gloo_ranks import WORLD, Ranks
from support.named_cases import smooth
from support.on_cpu import device as device

DOUBLE = torch.float64
ON_RANKS: list[tuple[str, dict[str, Any]]] = [
    ("ClipLoss", {"local_loss": False, "gather_with_grad": True}),
    ("ClipLoss", {"local_loss": True, "gather_with_grad": True}),
    *(("SigLipLoss", {"dist_impl": how}) for how in (None, "shift", "reduce", "gather")),
]


def package() -> Path | None:
    """The folder of open_clip, whose import would need torchvision and timm."""
    found = importlib.util.find_spec("open_clip")
    return None if found is None else Path(next(iter(found.submodule_search_locations or [])))


installed = pytest.mark.skipif(package() is None, reason="open-clip-torch is not installed")


def theirs() -> Any:
    folder = package()
    assert folder is not None
    spec = importlib.util.spec_from_file_location("loss_of_open_clip", folder / "loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def features(n: int = 12) -> tuple[Tensor, Tensor]:
    """No unit vectors, so that who normalises is seen."""
    pair = [0.4 * smooth(n, 5, DOUBLE), 0.4 * smooth(n, 5, DOUBLE).flip(0).roll(1, 1)]
    return pair[0].requires_grad_(), pair[1].requires_grad_()


def numbers(scale: float = 7.0, bias: float = -3.0) -> tuple[Tensor, Tensor]:
    scale_, bias_ = (torch.tensor(z, dtype=DOUBLE).requires_grad_() for z in (scale, bias))
    return scale_, bias_


def by_formula(name: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """(N,) the loss of each row, over the matrix of logits."""
    z = scale * (x @ y.T)
    if name == "ClipLoss":
        to_text, to_image = z - z.logsumexp(1, keepdim=True), z - z.logsumexp(0, keepdim=True)
        return -(to_text.diagonal() + to_image.diagonal()) / 2 + 0 * bias
    diagonal = torch.eye(len(x), dtype=torch.bool)
    return torch.where(diagonal, (1 + (-z - bias).exp()).log(), (1 + (z + bias).exp()).log()).sum(1)


def result(value: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_has_the_numbers_of_its_formula(name: str, n: int) -> None:
    leaves = (*features(n), *numbers())
    expected = result(by_formula(name, *leaves).mean(), *leaves)
    loss = getattr(open_clip, name)()
    same(result(loss(*leaves), *leaves), expected)
    found = loss(*leaves, output_dict=True)
    assert list(found) == ["contrastive_loss"]
    same(result(found["contrastive_loss"], *leaves), expected)


@installed
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
@pytest.mark.parametrize("n", [1, 12])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_has_the_numbers_of_open_clip(name: str, n: int, shape: tuple[int, ...]) -> None:
    leaves = (*features(n), *(z.detach().reshape(shape).requires_grad_() for z in numbers()))
    ours, other = getattr(open_clip, name)(), getattr(theirs(), name)()
    same(result(ours(*leaves), *leaves), result(other(*leaves).reshape(()), *leaves))
    x, y, scale, _ = leaves
    same(result(ours(x, y, scale, None), x, y), result(other(x, y, scale, None), x, y))
    same(result(ours(x, y, 2.0, -1.0), x, y), result(other(x, y, 2.0, -1.0), x, y))


@installed
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_has_the_arguments_of_open_clip(name: str) -> None:
    ours, other = getattr(open_clip, name), getattr(theirs(), name)
    for function in ("__init__", "forward"):
        mine, wanted = (
            [
                (p.name, p.default)
                for p in inspect.signature(getattr(c, function)).parameters.values()
            ]
            for c in (ours, other)
        )
        assert mine == wanted


# ── several ranks ──


def step(_group: Any, given: tuple[Any, ...]) -> list[Tensor]:
    """The value and the gradients of one rank."""
    whose, name, arguments, *rows = given
    module = open_clip if whose == "ours" else theirs()
    here = {"rank": torch.distributed.get_rank(), "world_size": torch.distributed.get_world_size()}
    leaves = (*(z.requires_grad_() for z in rows), *numbers())
    return result(getattr(module, name)(**arguments, **here)(*leaves), *leaves)


def on_ranks(
    ranks: Ranks, whose: str, name: str, arguments: Any, rows: Any, sizes: list[int]
) -> Any:
    shares = zip(*(z.detach().split(sizes) for z in rows), strict=True)
    given = [(whose, name, arguments, x.clone(), y.clone()) for x, y in shares]
    found = ranks.run(len(sizes), f"{__name__}:step", given)
    for one in found:
        assert isinstance(one, list), one
    return found


def averaged(found: list[list[Tensor]]) -> list[Tensor]:
    """What is the same on all ranks after DDP: the gradients by scale and bias."""
    return [torch.stack([one[k] for one in found]).mean(0) for k in (3, 4)]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("name", "arguments"), ON_RANKS[:3])
@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [5, 0, 1, 6]], ids=["alike", "uneven"])
def test_ranks_share_a_batch(
    ranks: Ranks, name: str, arguments: dict[str, Any], sizes: list[int]
) -> None:
    assert len(sizes) == WORLD
    of_rank = name == "SigLipLoss" or arguments["local_loss"]
    leaves = (*features(), *numbers())
    values = by_formula(name, *leaves)
    means = WORLD * [values.mean()]
    if of_rank:
        means = [part.sum() / max(len(part), 1) for part in values.split(sizes)]
    x, y, *by_numbers = torch.autograd.grad(sum(means), leaves)
    found = on_ranks(ranks, "ours", name, arguments, leaves[:2], sizes)
    for one, mean, *of_rows in zip(found, means, x.split(sizes), y.split(sizes), strict=True):
        same(one[:3], [mean.detach(), *of_rows])
    same(averaged(found), [z / WORLD for z in by_numbers])


@installed
@exhaustive
@pytest.mark.xdist_group("ranks")
def test_two_ranks_have_the_numbers_of_open_clip() -> None:
    for world in (2, 3):
        started, rows = Ranks(world), features(6 * world)
        try:
            for name, arguments in ON_RANKS:
                ours, other = (
                    on_ranks(started, whose, name, arguments, rows, world * [6])
                    for whose in ("ours", "theirs")
                )
                same([z for one in ours for z in one[:3]], [z for one in other for z in one[:3]])
                same(averaged(ours), averaged(other))
        finally:
            started.stop()


# ── what goes in and what does not ──


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_what_says_nothing_changes_nothing(name: str) -> None:
    given: dict[str, Any] = {"cache_labels": True, "rank": 3}
    if name == "ClipLoss":
        given |= {"local_loss": True, "gather_with_grad": True, "use_horovod": True}
    leaves = (*features(), *numbers())
    plain, other = getattr(open_clip, name)(), getattr(open_clip, name)(**given)
    same(result(other(*leaves), *leaves), result(plain(*leaves), *leaves))


def test_a_bias_that_cancels_out_has_a_gradient_of_zero() -> None:
    x, y = (z.detach().bfloat16().requires_grad_() for z in features())
    scale, bias = (torch.tensor([z], requires_grad=True) for z in (100.0, -10.0))
    value = open_clip.ClipLoss()(x, y, scale, bias.double())
    assert value.dtype == torch.float32
    value.backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [0]
    assert scale.grad is not None
    assert scale.grad.shape == (1,)


def test_a_half_of_the_scale_s_bits_is_no_other_scale() -> None:
    """1/τ of a bfloat16 number, rounded twice, would be 99.5 in place of 100."""
    x, y = features()
    scale = torch.tensor(100.0, dtype=torch.bfloat16)
    expected = pairops.info_nce_loss(x, y, temperature=0.01, distance="dot")
    torch.testing.assert_close(open_clip.ClipLoss()(x, y, scale), expected, rtol=1e-6, atol=0)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "ClipLoss",
        {"world_size": 2},
        r"gather_with_grad is False with world_size=2; it must be True, since the gradients of "
        r"features would be divided by 2.* write gather_with_grad=True",
    ),
    (
        "ClipLoss",
        {"world_size": 2, "local_loss": True},
        "gather_with_grad is False .* features of other ranks would be constants",
    ),
    (
        "ClipLoss",
        {"world_size": 2, "use_horovod": True},
        "use_horovod is True with world_size=2; it must be False: write torch.distributed.init_pr",
    ),
    ("ClipLoss", {"local_loss": 1}, "local_loss is int; it must be a bool"),
    ("ClipLoss", {"world_size": 0}, "world_size is 0; it must be at least 1"),
    ("SigLipLoss", {"world_size": 2.0}, "world_size is float; it must be an int"),
    ("SigLipLoss", {"dist_impl": "ring"}, "dist_impl is 'ring'; it must be one of bidir, shift"),
    ("SigLipLoss", {"cache_labels": None}, "cache_labels is NoneType; it must be a bool"),
]


@pytest.mark.parametrize(("name", "given", "says"), REFUSED)
def test_arguments_that_are_refused(name: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        getattr(open_clip, name)(**given)


def test_calls_that_are_refused() -> None:
    (x, y), clip, siglip = features(), open_clip.ClipLoss(), open_clip.SigLipLoss()
    with pytest.raises(ValueError, match="text_features has 11 rows; it must have 12, as image_"):
        clip(x, y[1:], 10.0)
    with pytest.raises(TypeError, match=r"text_features has dtype torch\.float32; it must be"):
        siglip(x, y.float(), 10.0, -10.0)
    with pytest.raises(
        ValueError, match=r"logit_scale is 0\.0; it must be a finite number above 0"
    ):
        clip(x, y, 0.0)
    with pytest.raises(TypeError, match="logit_bias is str; it must be a number"):
        clip(x, y, 10.0, "no")
    with pytest.raises(
        ValueError, match=r"world_size is 2, but torch\.distributed is not initialis"
    ):
        open_clip.SigLipLoss(world_size=2)(x, y, 10.0, -10.0)


def of_a_world_of_three(_group: Any, rows: tuple[Tensor, Tensor]) -> Tensor:
    leaves = (*rows, *numbers())
    alone = open_clip.SigLipLoss()(*leaves)  # a batch of its own
    torch.testing.assert_close(alone, by_formula("SigLipLoss", *leaves).mean())
    return open_clip.SigLipLoss(world_size=3)(*leaves)


@pytest.mark.xdist_group("ranks")
def test_a_world_of_another_size_is_refused_on_every_rank(ranks: Ranks) -> None:
    rows = [z.detach() for z in features()]
    found = ranks.run(WORLD, f"{__name__}:of_a_world_of_three", WORLD * [rows])
    says = "world_size is 3; it must be 4, the number of ranks of the default process group"
    for kind, text in found:
        assert kind == "ValueError"
        assert text.startswith(says)
