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
from support.error_rule import Dense, assert_within_rule
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("guided", [False, True])
def test_a_copy_is_as_near_as_the_positive(guided: bool, dtype: torch.dtype) -> None:
    """Another product rounds it otherwise, of y and of what a guide embeds."""
    x, y, u, v = torch.randn(4, 67, 16, dtype=dtype)
    doubled = torch.cat([y, y])
    given: dict[str, Any] = {"false_negatives": 0.0}
    if guided:
        given = {"guide": (u, torch.cat([v, v]))}
    for engine in HERE if dtype == torch.float32 else WIDE:
        if guided and engine in ("triton", "chunked", "cuda"):
            continue  # they have no second product
        with pairops.engine(engine):
            losses = info_nce_loss(
                x, doubled, directions=("xy",), temperature=1e-3, reduction="none", **given
            )
        assert float(losses.min()) >= 0.69, engine  # log 2: its copy competes with it


@pytest.mark.parametrize("t", [0.07, 1.0, 10.0])
def test_the_gradient_by_a_temperature_beside_log_q(t: float) -> None:
    """log q is far from 0, and cancels."""
    x, y = smooth(40, 16), smooth(50, 16)
    log_q = torch.randn(50) - 15

    def slope(dtype: torch.dtype, function: Any) -> Tensor:
        temperature = torch.tensor(t, dtype=dtype, requires_grad=True)
        given = {"temperature": temperature, "log_q": log_q.to(dtype), "directions": ("xy", "yy")}
        value = function(x.to(dtype), y.to(dtype), **given)
        found: Tensor = torch.autograd.grad(value.mean(), temperature)[0]
        return found

    truth = slope(torch.float64, oracle.info_nce_loss)
    dense = Dense(lambda: [slope(torch.float32, oracle.info_nce_loss)])
    found = slope(torch.float32, info_nce_loss)
    assert_within_rule("by the temperature", found, dense.result(0), truth)


def test_qwen3() -> None:
    """Qwen3-Embedding's loss as its report writes it: negatives of four kinds, masked by 0.1."""
    x, y, d = smooth(9, 5, torch.float64), smooth(18, 5, torch.float64)[9:], torch.float64
    own = smooth(27, 5, d).view(9, 3, 5)
    q, p, h = (torch.nn.functional.normalize(z, dim=-1) for z in (x, y, own))
    truth = []
    for i in range(9):
        positive = q[i] @ p[i]
        rivals = [q[i] @ h[i, k] for k in range(3)]
        for j in range(9):
            if j != i:
                rivals += [q[i] @ q[j], p[i] @ p[j], q[i] @ p[j]]
        rivals = [s for s in rivals if not s > positive + 0.1]
        z = torch.exp(positive / 0.05) + sum(torch.exp(s / 0.05) for s in rivals)
        truth.append(-torch.log(torch.exp(positive / 0.05) / z))
    ours = info_nce_loss(
        x, y, temperature=0.05, directions=("xy", "xx", "yy"), partition="joint",
        own_negatives=own, false_negatives=0.1, reduction="none",
    )  # fmt: skip
    torch.testing.assert_close(ours, torch.stack(truth), rtol=1e-11, atol=0)


def test_a_module_keeps_keywords_or_takes_them_with_a_batch() -> None:
    x, y = smooth(N, D), smooth(N, D).flip(0)
    known = of(("guide", "names", "queue"), n=N, m=N)
    fixed = pairops.nn.InfoNCELoss(**known)
    torch.testing.assert_close(fixed(x, y), info_nce_loss(x, y, **known))
    moco = pairops.nn.InfoNCELoss(queue_only=True, guide_margin=0.1)
    given = {"queue": known["queue"], "guide": known["guide"]}
    expected = info_nce_loss(x, y, queue_only=True, guide_margin=0.1, **given)
    torch.testing.assert_close(moco(x, y, **given), expected)


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


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("names", TOGETHER, ids=str)
def test_ranks_with_more_rows_of_y_or_none(ranks: Ranks, names: tuple[str, ...]) -> None:
    """y_i belongs to x_i on its rank; further rows of y are negatives of all."""
    sizes, more = [5, 0, 4], [3, 1, 0]
    keywords = of(names, torch.float64, n=9, m=13)
    for name in ("own_negatives", "queue", "queue_only"):
        keywords.pop(name, None)
    x, y = smooth(9, 6, torch.float64), smooth(22, 6, torch.float64)[9:]
    first = [sum(sizes[:k]) for k in range(3)]
    beyond = [9 + sum(more[:k]) for k in range(3)]

    def of_rank(k: int, values: Any, of_y: bool) -> Any:
        here = values[first[k] : first[k] + sizes[k]]
        return torch.cat([here, values[beyond[k] : beyond[k] + more[k]]]) if of_y else here

    def shared(k: int) -> dict[str, Any]:
        given = dict(keywords)
        given["ids"] = of_rank(k, keywords["ids"], False)
        given["ref_ids"] = of_rank(k, keywords["ref_ids"], True)
        given["log_q"] = of_rank(k, keywords["log_q"], True)
        u, v = keywords["guide"]
        given["guide"] = of_rank(k, u, False), of_rank(k, v, True)
        args = of_rank(k, x, False), of_rank(k, y, True)
        return {"loss": "info_nce_loss", "args": args, "keywords": given, "leaves": [0, 1]}

    found = ranks.run(3, "support.rank_functions:step", [shared(k) for k in range(3)])
    x.requires_grad_()
    y.requires_grad_()
    one = info_nce_loss(x, y, **keywords)
    by_x, by_y = torch.autograd.grad(one, (x, y))
    for k, got in enumerate(found):
        assert not isinstance(got, tuple), got
        torch.testing.assert_close(got["value"], one.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(got[0] / 3, of_rank(k, by_x, False), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(got[1] / 3, of_rank(k, by_y, True), rtol=1e-11, atol=1e-13)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"directions": ("xy", "zz")}, "directions is .*'zz'.*; it must name one or more of 'xy'"),
    ({"directions": ("xy", "xy")}, "directions is .*each once"),
    ({"directions": ()}, r"directions is \[\]; it must name one or more"),
    ({"directions": "xy"}, "directions is 'xy'; it must name"),
    ({"directions": [["xy"]]}, r"directions is \[\['xy'\]\]; it must name"),
    ({"ids": torch.arange(N), "ref_ids": torch.arange(M).flip(0)}, "ref_ids begin otherwise than"),
    ({"own_negatives": torch.randn(N, 3, D).double()}, "own_negatives are torch.float64 on cpu"),
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
