"""The Triton engine and its chunked path in Triton's interpreter: what the losses' own tests leave
open. On a GPU the same tests run the compiled kernels."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import ALL, NEG, POS, Pairs, highest, lowest, lse, partner, row_stats, total
from pairops.ops.engines import weight_parts
from pairops.ops.engines.triton import engine, tile_configs
from pairops.ops.engines.triton.tile_configs import Row
from pairops.ops.terms import functions
from pairops.ops.terms.functions import softplus
from pairops.ops.terms.term import Wanted
from support.engine_comparison import assert_as_dense
from support.engine_names import NARROW, TRITON
from support.exhaustive import exhaustive_but
from support.loss_comparison import check, compare
from support.loss_parameters import LABELLED, THOROUGH, TWO_SETS, mined, parameters
from support.named_cases import Case, embeddings, smooth, turned
from support.term_problems import DOUBLE, every_kind_of_term, problem, results, sparse

pytest.importorskip("triton")

from pairops.ops.engines.triton import launch


def statistics(x: Tensor, labels: Tensor, other: dict[str, Any]) -> tuple[Tensor, ...]:
    pairs = Pairs.of(x, labels, **other)
    torch.manual_seed(7)  # the same terms at every call
    n, m = pairs.shape
    u, v = torch.rand(n, dtype=DOUBLE), torch.rand(m, dtype=DOUBLE)
    return row_stats(pairs, *every_kind_of_term(u, v), cols=every_kind_of_term(v, u))


@pytest.mark.usefixtures("small_triton_tiles")
@pytest.mark.parametrize("name", TRITON)
@pytest.mark.parametrize("m", [0, 30])
def test_gradients_by_every_tensor_argument(name: str, m: int) -> None:
    x, labels, other = problem(n=40, m=m, d=5)
    labels[3] = -100
    n, m = 40, m or 40
    leaves = [x, torch.rand(n) + 0.5, torch.rand(m) + 0.5, torch.tensor(1.3)]

    def run(x: Tensor, u: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        given = {k: z.to(x.dtype) if k == "ref_emb" else z for k, z in other.items()}
        rows = [
            lse(NEG, t, u, above=torch.zeros(())),
            total(ALL, u, partner(v), function=softplus),
            total(POS, t, 0.1),
            highest(NEG, t, partner(v), function=functions.affine),
        ]
        return row_stats(
            Pairs.of(x, labels, **given), *rows, cols=[lse(ALL, v, partner(u)), lowest(ALL)]
        )

    assert_as_dense(name, run, *leaves)


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of which none has a multiple of 2/d near ms_loss's threshold: see `embeddings`.
DIMENSIONS = [1, 48, 104, 128, 204, 512, 708]


@pytest.mark.parametrize(
    ("d", "dtype"),
    exhaustive_but(
        itertools.product(DIMENSIONS, DTYPES),
        lambda d, dtype: d in (48, 204) and dtype != torch.float16,
    ),
)
def test_dimensions(d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same set and two, by the error rule: ms_loss and info_nce_loss everywhere, every loss of
    one dimension and of two or three others. Weights of one part for bfloat16, as for many rows."""
    monkeypatch.setattr(weight_parts, "FEW", 0)
    place = 3 * DIMENSIONS.index(d) + DTYPES.index(dtype)
    step = 7 if d > 1 else 1
    order = [name for name in (*LABELLED, *TWO_SETS) if name in THOROUGH]
    chosen = {"ms_loss", "info_nce_loss", *order[place % step :: step]}
    make = functools.partial(smooth, dtype=dtype)
    for loss in [name for name in LABELLED if name in chosen]:
        params = parameters(loss)[0]
        if d == 1 and mined(loss, params):
            params = {"epsilon": None}  # products of single numbers come close to any threshold
        create = functools.partial(embeddings, dtype=dtype) if mined(loss, params) else make
        labels, other = torch.randint(0, 9, (50,)), torch.randint(0, 9, (40,))
        keywords: dict[str, Any] = {} if d > 1 else {"distance": "dot"}
        compare(loss, params, turned(Case(create(50, d), labels, keywords)), NARROW)
        keywords = {**keywords, "ref_emb": create(40, d), "ref_labels": other}
        compare(loss, params, turned(Case(create(50, d), labels, keywords)), NARROW)
    for loss in [name for name in TWO_SETS if name in chosen]:
        given = {**parameters(loss)[0], "distance": "cosine" if d > 1 else "dot"}
        ours = functools.partial(getattr(pairops, loss), **given, reduction="none")
        check(
            [make(50, d), make(50, d)],
            ours,
            functools.partial(getattr(oracle, loss), **given),
            NARROW,
        )


SHAPES = {
    "one block of columns": Row(float("inf"), 64, 64, 64, 2, False, 4, 1),
    "wide blocks": Row(float("inf"), 64, 16, 32, 1, False, 4, 1),
    "partial tiles in pieces": Row(float("inf"), 64, 64, 32, 1, False, 4, 1, pieces=4),
    "all accumulators": Row(float("inf"), 32, 32, 16, 8, False, 4, 1),
    "slices of the gradient": Row(float("inf"), 16, 16, 16, 1, False, 4, 1),
}


@pytest.mark.parametrize(
    ("shape", "processors"),
    [("wide blocks", 1), ("wide blocks", 20), *[(shape, 3) for shape in SHAPES]],
)
def test_shapes_and_splits_change_nothing(
    shape: str, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same call twice gives the same bits."""
    monkeypatch.setattr(tile_configs, "INTERPRETED", SHAPES[shape])
    monkeypatch.setattr(launch, "processors", lambda _: processors)
    x, labels, other = problem(n=50, m=35, d=40)
    labels[[5, 20]] = -100
    y = other.pop("ref_emb")

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return statistics(x, labels, {**other, "ref_emb": y})

    first = assert_as_dense("triton", run, x, y)
    with pairops.engine("triton"):
        mine = [z.float().requires_grad_() for z in (x, y)]
        again = results(lambda: run(*mine), mine)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("ignored", [10, 42])
def test_listed_tiles_end_where_the_kept_rows_do(
    ignored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of two tiles, of which the second holds ignored rows only; windows only."""
    monkeypatch.setattr(tile_configs, "INTERPRETED", Row(float("inf"), 128, 64, 64, 1, True, 4, 1))
    labels = torch.arange(200) // 3
    x = torch.randn(70, 20)[labels] + 0.9 * torch.randn(200, 20)
    labels[200 - ignored :] = -100

    def run(x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        return row_stats(
            Pairs.of(x, labels), total(NEG, a, -1.0, above=torch.full((200,), -0.1003))
        )

    assert_as_dense("triton", run, x, torch.rand(200) + 0.5)


@pytest.mark.parametrize(
    ("m", "cols", "processors"),
    exhaustive_but([(0, 32, 2), (0, 8, 20), (170, 32, 20), (170, 8, 2)], lambda _m, c, _p: c == 32),
)
def test_tile_bits_change_no_result_by_one_bit(
    m: int, cols: int, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "processors", lambda _: processors)
    row = Row(float("inf"), 32, cols, 16, 2, False, 4, 1, pieces=cols // 8)
    monkeypatch.setattr(tile_configs, "INTERPRETED", row)
    pairs, rows, columns = sparse(300, m)
    found, _, bits = engine.forward(pairs, rows, columns)
    share = float(bits.float().mean())
    assert 0 < share < 0.5, f"{share:.2f} of the bits are set: the case does not test skipping"
    cotangents = [torch.randn(len(z)) for z in found]
    with torch.no_grad():
        skipped, whole = (
            engine.backward(pairs, rows, columns, found, cotangents, b, Wanted(True, True))
            for b in (bits, torch.ones_like(bits))
        )
    for a, b in zip((*skipped[:2], *skipped[2]), (*whole[:2], *whole[2]), strict=True):
        assert torch.equal(a, b)
    assert bool((skipped[0] != 0).any())
    without = engine.backward(pairs, rows, columns, found, cotangents, None, Wanted(True, True))
    torch.testing.assert_close(without[0], whole[0])
