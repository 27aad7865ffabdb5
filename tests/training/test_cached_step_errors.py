"""What cached_step refuses and names, and what it tells on its way."""

import contextlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pairops import cached_step

ROWS = torch.zeros(5, 3)


def total(*embeddings: Tensor) -> Tensor:
    return torch.stack([x.sum() for x in embeddings]).sum()


def encoder(rows: Tensor) -> Tensor:
    return rows.clone().requires_grad_()


def last_differs(change: Any) -> Any:
    """Of 5 rows in chunks of 2, something else for the last one."""
    return lambda rows: encoder(rows) if len(rows) == 2 else change(encoder(rows))


@pytest.mark.parametrize(
    ("changed", "kind", "says"),
    [
        ({"loss": 1.0}, TypeError, "loss is float; it must be a function of embeddings"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size is float; it must be an int"),
        ({"chunk_size": True}, TypeError, "chunk_size is bool; it must be an int"),
        ({"chunk_size": 0}, ValueError, "chunk_size is 0; it must be at least 1"),
        ({"scaler": 8.0}, TypeError, "scaler is float; it must be a torch.amp.GradScaler"),
        ({"progress": 1}, TypeError, "progress is int; it must be a bool or None"),
    ],
)
def test_bad_options_are_named(changed: dict[str, Any], kind: type[Exception], says: str) -> None:
    given = {"loss": total, "chunk_size": 2, **changed}
    with pytest.raises(kind, match=re.escape(says)):
        cached_step(given.pop("loss"), (encoder, ROWS), **given)


@pytest.mark.parametrize(
    ("encoded", "kind", "says"),
    [
        ([], ValueError, "encoded is empty; it must hold at least one pair (encoder, inputs)"),
        ([encoder, ROWS], TypeError, "encoded[0] is function; it must be a pair"),
        ([(encoder, ROWS), (ROWS, encoder)], TypeError, "encoded[1] is (Tensor, function); it"),
        ([(encoder, ROWS, ROWS)], TypeError, "encoded[0] is (function, Tensor, Tensor); it"),
        ([(encoder, [[0.0]])], TypeError, "the inputs of encoded[0] hold list; they must hold"),
        ([(encoder, {"a": None})], TypeError, "the inputs of encoded[0] hold NoneType; they"),
        ([(encoder, ())], ValueError, "the inputs of encoded[0] are empty; they must hold"),
        ([(encoder, ROWS[0, 0])], ValueError, "encoded[0] hold a tensor of no dimension; the"),
        ([(encoder, (ROWS, ROWS[:4]))], ValueError, "hold tensors of [4, 5] rows; all must"),
        (
            [(encoder, ROWS.clone().requires_grad_() * 2)],
            ValueError,
            "the inputs of encoded[0] hold a tensor that has a graph; it must be detached",
        ),
        ([(lambda rows: (rows,), ROWS)], TypeError, "the output of encoded[0] is tuple; it"),
        ([(lambda rows: rows.long(), ROWS)], TypeError, "the output of encoded[0] is torch.int64"),
        (
            [(encoder, ROWS), (lambda rows: rows[:, 0], ROWS)],
            ValueError,
            "the output of encoded[1] has shape (2,); it must be (N, D)",
        ),
        (
            [(lambda rows: rows[:1], ROWS)],
            ValueError,
            "the output of encoded[0] has 1 rows; it must have 2, one for each of its chunk",
        ),
        (
            [(last_differs(lambda x: x[:, :2]), ROWS)],
            ValueError,
            "the output of encoded[0] has D 2; it must be 3 as in its first chunk",
        ),
        (
            [(last_differs(Tensor.double), ROWS)],
            TypeError,
            "the output of encoded[0] has dtype torch.float64; it must be torch.float32 as in",
        ),
    ],
)
def test_bad_pairs_are_named(encoded: list[Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        cached_step(total, *encoded, chunk_size=2)


@pytest.mark.parametrize(
    ("loss", "kind", "says"),
    [
        (lambda x: x.sum(1), ValueError, "loss returned a tensor of shape (5,); it must be a"),
        (lambda x: x.sum().item(), TypeError, "loss returned float; it must be a scalar"),
        (lambda x: (x, 1), ValueError, "loss returned a tensor of shape (5, 3); it must be"),
        (lambda _: (), TypeError, "loss returned tuple; it must be a scalar, or a tuple that"),
        (lambda x: x.detach().sum(), ValueError, "loss returned a value without a gradient"),
    ],
)
def test_bad_values_are_named(loss: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        cached_step(loss, (encoder, ROWS), chunk_size=2)


def test_a_step_without_any_gradient_is_refused() -> None:
    frozen = nn.Linear(3, 2).requires_grad_(False)
    trained = nn.Linear(3, 2)
    says = "loss returned a value without a gradient; an encoder or the loss must want one"
    with pytest.raises(ValueError, match=says):
        cached_step(total, (frozen, ROWS), chunk_size=2)
    with torch.no_grad(), pytest.raises(ValueError, match=says):
        cached_step(total, (trained, ROWS), chunk_size=2)


def test_progress_counts_the_rows_of_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    @contextlib.contextmanager
    def tqdm(**options: Any) -> Iterator[Any]:
        told.append(options)
        yield types.SimpleNamespace(update=told.append)

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=tqdm))
    encoded = (encoder, ROWS), (nn.Linear(3, 3).requires_grad_(False), ROWS)
    for progress, disable in ((None, None), (True, False)):
        told.clear()
        cached_step(total, *encoded, chunk_size=3, progress=progress)
        options, *rows = told
        assert (options["total"], options["disable"]) == (20, disable)
        assert rows == [3, 2] * 3 + [5]  # the frozen one is run once
    told.clear()
    cached_step(total, *encoded, chunk_size=3, progress=False)
    assert not told
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="progress is True, which needs tqdm"):
        cached_step(total, *encoded, chunk_size=3, progress=True)
