"""InfoNCE with all its keywords: each alone, together, over ranks, differentiated, and refused."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import info_nce_loss
from support.engine_names import HERE, WIDE
from support.exhaustive import exhaustive, exhaustive_but
from support.gloo_ranks import Ranks
from support.loss_comparison import check
from support.named_cases import smooth
from support.rank_problems import Problem
from support.rank_problems import check as check_ranks

N, M, D = 21, 34, 7


def given(dtype: torch.dtype = torch.float32, n: int = N, m: int = M) -> dict[str, Any]:
    """Every keyword, by a name of its own; those that a value may be learned for are tensors."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, max(n, 1), (n,), generator=generator)
    further = torch.randint(0, max(n, 1), (m - n,), generator=generator)
    guide = tuple(torch.randn(rows, 4, generator=generator) for rows in (n, m))
    return {
        "one way": {"symmetric": False},
        "within": {"directions": ("xx", "yy")},
        "all directions": {"directions": ("xy", "yx", "xx", "yy")},
        "joint": {"partition": "joint", "directions": ("xy", "xx", "yy")},
        "own negatives": {"own_negatives": smooth(3 * n, D, dtype).view(n, 3, D)},
        "mask": {"false_negatives": 0.05},
        "names": {"ids": ids, "ref_ids": torch.cat([ids, further])},
        "log q": {"log_q": torch.rand(m, generator=generator).log()},
        "guide": {"guide": guide, "guide_margin": 0.1},
        "relative guide": {"guide": guide, "guide_margin": 0.1, "guide_relative": True},
        "smoothing": {"label_smoothing": 0.1},
        "queue": {"queue": smooth(13, D, dtype)},
        "queue alone": {"queue": smooth(13, D, dtype), "queue_only": True},
    }


NAMES = tuple(given())
# A direction that own negatives and a queue are in must be among the directions.
APART = {
    frozenset(pair)
    for pair in (
        ("one way", "within"), ("one way", "all directions"), ("one way", "joint"),
        ("within", "all directions"), ("within", "joint"), ("all directions", "joint"),
        ("within", "own negatives"), ("within", "queue"), ("within", "queue alone"),
        ("guide", "relative guide"), ("queue", "queue alone"),
    )
}  # fmt: skip
PAIRED = [pair for pair in itertools.combinations(NAMES, 2) if frozenset(pair) not in APART]
TOGETHER = [
    tuple(name for name in NAMES if name not in left_out)
    for left_out in (
        ("one way", "within", "joint", "relative guide", "queue alone"),
        ("one way", "within", "all directions", "guide", "queue"),
    )
]


def of(names: tuple[str, ...], dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, Any]:
    known = given(dtype, **sizes)
    return {key: value for name in names for key, value in known[name].items()}


def compare(
    names: tuple[str, ...], dtype: torch.dtype, engines: list[str], n: int = N, m: int = M,
    **further: Any,
) -> list[str]:  # fmt: skip
    """By x, y and, where there are any, own negatives; none by what else is embedded."""
    keywords = {**of(names, dtype, n=n, m=m), **further}
    tensors = [smooth(n, D, dtype), smooth(n + m, D, dtype)[n:]]
    if "own_negatives" in keywords:
        tensors.append(keywords.pop("own_negatives"))

    def called(x: Tensor, y: Tensor, *own: Tensor, function: Any, **more: Any) -> Tensor:
        return function(x, y, **keywords, **dict(zip(["own_negatives"], own, strict=False)), **more)

    ours = functools.partial(called, function=info_nce_loss, reduction="none")
    return check(tensors, ours, functools.partial(called, function=oracle.info_nce_loss), engines)


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("engine", "dtype"),
    exhaustive_but(
        itertools.product(HERE, [torch.float32, torch.float64, torch.bfloat16]),
        lambda engine, dtype: dtype == torch.float32 and engine in ("auto", *WIDE),
    ),
)
def test_a_keyword(name: str, engine: str, dtype: torch.dtype) -> None:
    compare((name,), dtype, [engine])


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize(
    "names",
    exhaustive_but([(names,) for names in [*PAIRED, *TOGETHER]], lambda names: names in TOGETHER),
    ids=str,
)
def test_keywords_together(names: tuple[str, ...]) -> None:
    assert set(compare(names, torch.float32, HERE)) >= {"dense", "blockwise"}


@pytest.mark.parametrize("names", TOGETHER, ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (0, 0), (2, 2)])
def test_few_rows(names: tuple[str, ...], n: int, m: int) -> None:
    compare(names, torch.float64, ["dense", "blockwise"], n, m)


@pytest.mark.parametrize("distance", ["dot", "l2", "sqeuclidean", "snr"])
def test_distances(distance: str) -> None:
    names = ("all directions", "mask", "own negatives", "queue")
    if distance == "snr":  # in "yx" it divides by the variance of x, as in the other direction
        names = ("one way", "mask", "own negatives", "queue")
    compare(names, torch.float64, ["dense", "blockwise"], distance=distance, temperature=0.5)


def test_the_temperature_has_its_gradient_and_what_is_held_constant_none() -> None:
    x, y = smooth(N, D, torch.float64), smooth(M, D, torch.float64)
    keywords = of(TOGETHER[0], torch.float64)
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    constant = [keywords["queue"], *keywords["guide"], keywords["log_q"]]
    keywords["false_negatives"] = torch.tensor(0.05, dtype=torch.float64)
    constant.append(keywords["false_negatives"])
    for z in constant:
        z.requires_grad_()
    ours = info_nce_loss(x, y, temperature=t, **keywords)
    found = torch.autograd.grad(ours, constant, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in found)
    truth = oracle.info_nce_loss(x, y, temperature=t, **keywords).mean()
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)
    a, b = (torch.autograd.grad(value, t)[0] for value in (ours, truth))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=0)


@pytest.mark.parametrize("names", TOGETHER, ids=str)
def test_second_derivatives(names: tuple[str, ...]) -> None:
    x = smooth(6, 3, torch.float64).requires_grad_()
    y = smooth(9, 3, torch.float64).requires_grad_()
    keywords = {**given(torch.float64, 6, 9)}
    keywords = {k: v for name in names for k, v in keywords[name].items()}
    keywords["queue"], keywords["own_negatives"] = smooth(4, 3, torch.float64), None

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return info_nce_loss(x, y, temperature=0.5, **keywords)

    with pairops.engine("blockwise"):
        assert torch.autograd.gradgradcheck(loss, (x, y))


def test_a_mask_keeps_what_is_as_near_as_the_positive() -> None:
    """Copies of y are as near as y_i to the last bit."""
    x, y = smooth(8, 4), smooth(8, 4)
    doubled = torch.cat([y, y])
    for engine in HERE:
        with pairops.engine(engine):
            kept = info_nce_loss(x, doubled, symmetric=False, false_negatives=0.0, reduction="none")
        assert float(kept.min()) >= 0.69, engine  # log 2: its copy competes with it


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "own" not in name and "queue" not in name]
)
def test_a_keyword_over_other_keywords_of_losses(name: str) -> None:
    x, y = smooth(N, D), smooth(M, D)
    weight = torch.rand(N)
    keywords = of((name,))
    rows = info_nce_loss(x, y, reduction="none", weight=weight, **keywords)
    value, aux = info_nce_loss.with_aux(x, y, weight=weight, **keywords)
    torch.testing.assert_close(value, rows.mean())
    ways = keywords.get("directions", ("xy",) if "symmetric" in keywords else ("xy", "yx"))
    assert list(aux.log_sum_exps) == list(ways)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    "names",
    exhaustive_but(
        [(names,) for names in [*TOGETHER, *[(name,) for name in NAMES]]],
        lambda names: names in TOGETHER,
    ),
    ids=str,
)
def test_over_ranks(ranks: Ranks, names: tuple[str, ...]) -> None:
    """The queue of every rank is the same here: each compares its rows with its own."""
    keywords = of(names, torch.float64, n=24, m=24)
    keywords.pop("own_negatives", None)
    own = torch.randn(24, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if "own negatives" in names:
        keywords["own_negatives"] = own
    if "queue" in keywords:
        keywords["queue"] = own[:13, 0]
    problem = Problem("info_nce_loss", {})
    problem.keywords = keywords
    problem.whole |= {"queue"}
    problem.leaves = [0, 1, *(["own_negatives"] if "own_negatives" in keywords else [])]
    check_ranks(ranks, problem, 1e-12, layouts=["uneven"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"directions": ("xy", "zz")}, "directions is .*'zz'.*; it must name one or more of 'xy'"),
    ({"directions": ("xy", "xy")}, "directions is .*each once"),
    ({"directions": ()}, r"directions is \[\]; it must name one or more"),
    ({"directions": "xy"}, "directions is 'xy'; it must name"),
    ({"directions": ("xy",), "symmetric": True}, "symmetric and directions are both given"),
    ({"partition": "both"}, "partition is 'both'; it must be one of separate, joint"),
    ({"own_negatives": torch.randn(N + 1, 3, D)}, rf"own_negatives is \({N + 1}, 3, {D}\)"),
    ({"own_negatives": torch.randn(N, 3, D + 1)}, rf"own_negatives is .*\({N}, K, {D}\)"),
    ({"own_negatives": torch.randn(N, D)}, r"own_negatives is .*; it must be a tensor"),
    ({"own_negatives": torch.randn(N, 3, D), "directions": ("yx",)}, "own_negatives is given"),
    ({"log_q": torch.full((M,), torch.inf)}, "log_q has the value inf; it must be finite"),
    ({"log_q": torch.zeros(N)}, rf"log_q is a torch.float32 tensor \({N},\); it must be"),
    ({"guide": (torch.randn(N, 3), torch.randn(N, 3))}, rf"guide\[1\] has {N} rows"),
    ({"guide": (torch.randn(N, 3), torch.randn(M, 4))}, r"guide\[1\] has E 4; it must be 3"),
    ({"guide": torch.randn(N, 3)}, r"guide is a torch.float32 tensor; it must be \(u, v\)"),
    ({"guide_margin": 0.1}, "guide_margin and guide_relative are for a guide"),
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be from 0 to below 1"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1; it must be from 0"),
    ({"ids": torch.zeros(N)}, "ids is torch.float32; it must be an integer tensor"),
    ({"ids": torch.arange(N)}, "ref_ids is None and y has 34 rows"),
    ({"ref_ids": torch.arange(M)}, "ref_ids is given without ids"),
    ({"queue_only": True}, "queue_only is True and queue is None"),
    ({"queue": torch.randn(5, D + 1)}, "queue has D 8; it must be 7 as in x"),
    ({"queue": torch.randn(5, D), "directions": ("xx",)}, "queue is given; it has negatives in"),
    ({"false_negatives": torch.inf}, "false_negatives is inf; it must be a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("keywords", "message"), REFUSED)
def test_bad_input(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        info_nce_loss(torch.randn(N, D), torch.randn(M, D), **keywords)


@exhaustive
def test_compiled_in_one_graph() -> None:
    x, y = smooth(N, D).requires_grad_(), smooth(M, D).requires_grad_()
    keywords = of(TOGETHER[0])
    compiled = torch.compile(info_nce_loss, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(x, y, **keywords), (x, y)),
        torch.autograd.grad(info_nce_loss(x, y, **keywords), (x, y)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
