"""Similarities that the compiled engine keeps from sweep to sweep, and the gradient of extremes."""

import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Pairs, Term, highest, lowest, lse, row_stats, total
from pairops.ops.bindings import extension
from pairops.ops.engines import cpu_addresses
from pairops.ops.terms.functions import hinge
from support.error_rule import Dense, assert_within_rule

if extension.native is None:
    pytest.skip("this build has no kernels for the CPU", allow_module_level=True)

# Rows and columns, 0: of the same set.
SHAPES = [(1, 0), (95, 0), (96, 0), (97, 0), (250, 0), (370, 0), (97, 191), (10, 300), (288, 96)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def positives() -> list[Term]:
    return [lse(POS, -2.0, 0.5), total(POS, 1.5, 0.2)]


def extremes() -> list[Term]:
    return [lowest(POS), highest(NEG)]


def mixed() -> list[Term]:
    far = lowest(POS, grad=False)
    return [far, lse(NEG, 5.0, 0.1, above=far), total(NEG, 1.0, 0.1, function=hinge), lowest(NEG)]


def every() -> list[Term]:
    return [lse(ALL, 3.0, 0.0), total(POS, 3.0, 0.0)]


# What is asked of the same pairs, call after call: of positives alone first, or last.
ORDERS = {
    "positives first": [positives, extremes, mixed, every],
    "positives last": [every, mixed, extremes, positives],
    "of columns": [extremes, positives, every],
}


def batch(n: int, m: int, dtype: torch.dtype, *, ignored: bool = False, d: int = 33) -> Any:
    x = torch.randn(n, d).to(dtype).requires_grad_()
    labels = torch.randint(0, max(n // 5, 1), (n,))
    if ignored:
        labels[::7] = -100
    if not m:
        return x, labels, {}
    ref_labels = torch.randint(0, max(n // 5, 1), (m,))
    if ignored:
        ref_labels[3::11] = -100
    y = torch.randn(m, d).to(dtype).requires_grad_()
    return x, labels, {"ref_emb": y, "ref_labels": ref_labels}


Found = list[list[Tensor]]


def asked(
    order: str, x: Tensor, labels: Tensor, other: dict[str, Any], *, apart: bool = False
) -> tuple[Found, bool]:
    """Statistics and gradients of each call, and whether similarities were kept.

    The backward passes come in the opposite order.  apart: has each call pairs of its own?
    """
    leaves = [x, *([other["ref_emb"]] if other else [])]
    pairs = Pairs.of(x, labels, **other)
    values: list[Tensor] = []
    found: Found = []
    for terms in ORDERS[order]:
        if apart:
            pairs = Pairs.of(x, labels, **other)
        of_axis = ((), terms()) if order == "of columns" else (terms(), ())
        some = row_stats(pairs, *of_axis[0], cols=of_axis[1])
        live = torch.cat([torch.where(r.isinf(), 0, r) for r in some if r.requires_grad])
        values.append((live * torch.linspace(-1, 2, len(live), dtype=live.dtype)).sum())
        found.append([z.detach() for z in some])
    for value, mine in zip(values[::-1], found[::-1], strict=True):
        mine += torch.autograd.grad(value, leaves)
    return found, pairs.cache.similarities[1] is not None


def assert_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert not bool(a.isnan().any()), k
        assert torch.equal(a, b), f"result {k}: {float((a - b).abs().max())}"


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_whether_kept_or_not(
    order: str, n: int, m: int, ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where positives alone are swept: without what is kept they are visited row by row, and
    summed in another order. And the same whatever else is asked of the pairs."""
    for dtype in DTYPES:
        given = batch(n, m, dtype, ignored=ignored)
        found, kept = asked(order, *given)
        alone, _ = asked(order, *given, apart=True)
        with monkeypatch.context() as patch:
            patch.setattr(cpu_addresses, "MOST_BYTES", 0)
            again, none = asked(order, *given)
        assert (kept, none) == (True, False), dtype
        for terms, mine, by_itself, other in zip(ORDERS[order], found, alone, again, strict=True):
            assert_bits(mine, by_itself)
            if terms is not positives:
                assert_bits(mine, other)
                continue
            bound = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
            for one, two in zip(mine, other, strict=True):
                size = float(torch.where(two.isinf(), 0, two).abs().max())
                torch.testing.assert_close(one, two, rtol=bound, atol=bound * size)


# Not of ms_loss, which sweeps positives alone.
@pytest.mark.parametrize("name", ["supcon_loss", "nca_loss", "triplet_loss", "contrastive_loss"])
def test_losses_have_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (33, 200, 500):
        x, labels, _ = batch(n, 0, torch.float32)
        seen = []
        for most in (cpu_addresses.MOST_BYTES, 0):
            with monkeypatch.context() as patch:
                patch.setattr(cpu_addresses, "MOST_BYTES", most)
                value = getattr(pairops, name)(x, labels, distance="cosine")
                seen.append([value.detach(), *torch.autograd.grad(value, x)])
        assert_bits(*seen)


@pytest.mark.parametrize(("n", "m"), [(370, 0), (288, 96), (97, 191)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_with_other_numbers_of_threads(order: str, n: int, m: int) -> None:
    given = batch(n, m, torch.float32, ignored=True, d=512)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            seen.append(asked(order, *given))
    finally:
        torch.set_num_threads(before)
    for found, kept in seen:
        assert kept
        for mine, first in zip(found, seen[0][0], strict=True):
            assert_bits(mine, first)


def test_several_threads_ask_the_same_pairs_at_once() -> None:
    """Of a tile that both miss one alone writes it: its sums are made piece by piece."""
    x, labels, _ = batch(370, 0, torch.float32, d=300)
    truth = row_stats(Pairs.of(x.detach(), labels), *every(), *mixed())
    for _ in range(10):
        pairs = Pairs.of(x.detach(), labels)
        found: list[Any] = [None, None, None]
        ready = threading.Barrier(3)

        def ask(k: int) -> None:
            ready.wait()  # noqa: B023
            found[k] = row_stats(pairs, *every(), *mixed())  # noqa: B023

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mine in found:
            assert_bits([*mine], [*truth])


def test_pairs_that_are_too_many_keep_none() -> None:
    for dtype, most in ((torch.float32, 576), (torch.float64, 384)):
        for n, keeps in ((most, True), (most + 1, False)):
            x, labels, _ = batch(n, 0, dtype, d=4)
            pairs = Pairs.of(x, labels)
            row_stats(pairs, *every())
            tensors, addresses = pairs.cache.similarities
            assert (addresses is not None) == keeps
            assert sum(z.nbytes for z in tensors) <= 2 << 20


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_that_outlives_its_backward_pass_keeps_none(
    reduction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loss that is added up over an epoch nothing of this size may stay."""
    kept, made = cpu_addresses._similarities, []

    def noted(*given: Any) -> Any:
        found = kept(*given)
        made.extend([weakref.ref(z) for z in found[0]])
        return found

    monkeypatch.setattr(cpu_addresses, "_similarities", noted)
    x, labels, _ = batch(200, 0, torch.float32)
    value = pairops.nt_xent_loss(x, labels, reduction=reduction).mean()
    assert len(made) == 2
    assert all(z() is not None for z in made)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    assert len(made) == 2
    assert all(z() is None for z in made)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(first, second)


def test_pairs_of_no_rows_keep_none() -> None:
    x, labels, other = batch(5, 3, torch.float32)
    given = {"ref_emb": other["ref_emb"][:0], "ref_labels": other["ref_labels"][:0]}
    statistic, _ = row_stats(Pairs.of(x, labels, **given), *every())
    assert bool((statistic == -torch.inf).all())


def of_extremes(x: Tensor, labels: Tensor, other: dict[str, Any], how: dict[str, Any]) -> Any:
    """Statistics and gradients of extremes alone, of rows and of columns, some of them twice."""
    leaves = [x, *([other["ref_emb"]] if other else [])]

    def found() -> list[Tensor]:
        pairs = Pairs.of(x, labels, **other, **how)
        statistics = row_stats(pairs, *extremes(), lowest(NEG), cols=[highest(NEG), lowest(POS)])
        live = torch.cat([torch.where(r.isinf(), 0, r) for r in statistics])
        value = (live * torch.linspace(-1, 2, len(live), dtype=live.dtype)).sum()
        return [live.detach(), *torch.autograd.grad(value, leaves)]

    return found()


@pytest.mark.parametrize("distance", ["cosine", "dot"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_the_gradient_of_extremes_is_that_of_dense(
    n: int, m: int, ignored: bool, distance: str
) -> None:
    how = {"distance": distance}
    for dtype in DTYPES:
        x, labels, other = batch(n, m, dtype, ignored=ignored)

        def of(engine: str, wide: bool = False) -> list[Tensor]:
            def leaf(z: Tensor) -> Tensor:
                z = z.detach().double() if wide else z.detach()
                return z.clone().requires_grad_()

            given = {k: leaf(z) if k == "ref_emb" else z for k, z in other.items()}  # noqa: B023
            with pairops.engine(engine):
                return of_extremes(leaf(x), labels, given, how)  # noqa: B023

        ours, truth = of("cpu"), of("dense", wide=True)
        single = torch.float64 if dtype == torch.float64 else torch.float32
        dense = Dense(lambda: of("dense"), single)
        for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
            if dtype == torch.bfloat16:
                size = float(b.abs().max())
                torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2 * size)
            else:
                assert_within_rule(f"{dtype}, result {k}", a, dense.result(k), b)
