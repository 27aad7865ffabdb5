"""The benchmark: its rivals are the formulas, its guard bites, and who fails is not timed."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.contestants import GIVEN, YARDSTICK, Contestant, contestants
from bench.cpu.comparison import compare
from bench.guard import truth
from bench.memory.peak import peak_mib
from bench.problems import Problem, Setting, problem
from bench.rivals import BOTH_WAYS, LABELLED, PAIRED, by_hand, by_pytorch_metric_learning
from bench.stopwatch import Times, take_turns
from pairops.ops.engines import ENGINES
from pairops.ops.engines import cpu as cpu_engine
from support.exhaustive import exhaustive

SMALL = Setting("ms", 22, d=8, per_class=3, dtype="float64")


class Silent:
    """Stands where the progress bar stands."""

    def update(self, n: int = 1) -> None: ...
    def set_postfix_str(self, text: str) -> None: ...


def pair_by_pair(given: Problem) -> float:
    """Every loss from its definition, one pair at a time, in Python's floats."""
    x = [row / row.norm() for row in given.x.detach()]
    n, loss = len(x), given.setting.loss

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b)

    if loss in PAIRED:
        y = [row / row.norm() for row in given.other.detach()]
        s = [[cosine(a, b) for b in y] for a in x]
        if loss == "siglip":
            scale, bias = (float(given.learned[name].detach()) for name in ("scale", "bias"))
            terms = [
                math.log1p(math.exp((scale * s[i][j] + bias) * (-1 if i == j else 1)))
                for i in range(n)
                for j in range(n)
            ]
            return sum(terms) / n
        ways = [s, [list(column) for column in zip(*s, strict=True)]]
        logs = [math.log(sum(math.exp(v / 0.07) for v in w[i])) for w in ways for i in range(n)]
        return sum(logs) / (2 * n) - sum(s[i][i] for i in range(n)) / 0.07 / n

    labels = given.other.tolist()
    total = 0.0
    for i in range(n):
        pos = [cosine(x[i], x[j]) for j in range(n) if j != i and labels[j] == labels[i]]
        neg = [cosine(x[i], x[j]) for j in range(n) if labels[j] != labels[i]]
        if loss == "contrastive":
            total += sum(max(0, 1 - v) for v in pos) + sum(max(0, v - 0.5) for v in neg)
        elif not pos or not neg:
            continue
        elif loss == "ms":
            mined_pos = [v for v in pos if v - 0.1 < max(neg)]
            mined_neg = [v for v in neg if v + 0.1 > min(pos)]
            total += math.log1p(sum(math.exp(-2 * (v - 0.5)) for v in mined_pos)) / 2
            total += math.log1p(sum(math.exp(50 * (v - 0.5)) for v in mined_neg)) / 50
        elif loss == "supcon":
            everyone = math.log(sum(math.exp(v / 0.1) for v in pos + neg))
            total += everyone - sum(pos) / len(pos) / 0.1
        else:
            assert loss == "triplet"
            total += max(0, max(neg) - min(pos) + 0.05)
    return total / n


@pytest.mark.parametrize("loss", [*LABELLED, *PAIRED])
def test_by_hand_is_the_formula(loss):
    # 22 rows in classes of 3: one row has no positive.
    given = problem(replace(SMALL, loss=loss))
    value = by_hand(loss)(given.x, given.other, **given.learned)
    assert value.item() == pytest.approx(pair_by_pair(given), rel=1e-12)


@pytest.mark.parametrize("loss", [*LABELLED, *PAIRED])
def test_truth_by_rows_is_by_hand_at_once(loss, monkeypatch):
    monkeypatch.setattr("bench.guard.ROWS", 5)
    given = problem(replace(SMALL, loss=loss))
    exact = truth(given)
    value, gradients = contestants()["hand"].step(given)()
    assert exact.value == pytest.approx(value.item(), rel=1e-12)
    assert len(gradients) == len(given.leaves)
    for mine, theirs in zip(exact.gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", [*LABELLED, *BOTH_WAYS])
def test_pytorch_metric_learning_is_set_up_as_by_hand(loss):
    pytest.importorskip("pytorch_metric_learning")
    given = problem(replace(SMALL, loss=loss, n=21))
    theirs = by_pytorch_metric_learning(loss)(given.x, given.other)
    torch.testing.assert_close(theirs, by_hand(loss)(given.x, given.other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [*LABELLED, *PAIRED])
def test_no_engine_meets_an_objection(loss):
    given = problem(Setting(loss, 64, d=16))
    exact = truth(given)
    for key in ENGINES:
        if key == "native" and not cpu_engine.SERVED:
            continue
        assert exact.objection(contestants()[key].step(given), "float32")[1] is None, key


@pytest.mark.parametrize(
    ("off", "complaint"),
    [
        (lambda value, gradients: (value * 1.01, gradients), "loss"),
        (lambda value, gradients: (value * torch.nan, gradients), "loss nan"),
        (lambda value, gradients: (value, tuple(2 * g for g in gradients)), "gradient"),
        (lambda value, gradients: (value, tuple(torch.nan * g for g in gradients)), "gradient"),
    ],
)
def test_guard_objects(off, complaint):
    given = problem(SMALL)
    step = contestants()["hand"].step(given)
    _, objection = truth(given).objection(lambda: off(*step()), "float32")
    assert objection.startswith(f"WRONG: {complaint}")


@pytest.mark.parametrize("only_forward", [False, True])
def test_who_is_wrong_is_not_timed(only_forward, monkeypatch):
    def off(loss):
        right = by_hand(loss)

        def call(*args, **learned):
            wrong = not (only_forward and torch.is_grad_enabled())
            return right(*args, **learned) * (1.01 if wrong else 1)

        return call

    everyone = contestants() | {"off": Contestant("off", "off", off)}
    monkeypatch.setattr("bench.cpu.comparison.contestants", lambda: everyone)
    monkeypatch.setattr("bench.cpu.comparison.peak_mib", lambda *_: 1.0)
    keys = [YARDSTICK, "hand", "off"]
    rows = {row.contestant: row for row in compare(replace(SMALL, n=64), keys, 2, Silent())}
    assert rows["off"].failure.startswith("WRONG: loss")
    assert rows["off"].ms is None
    assert rows["off"].forward_ms is None
    assert rows["hand"].failure is None
    assert rows["hand"].forward_to_mm == rows["hand"].forward_ms / rows[YARDSTICK].ms
    assert rows["hand"].to_mm_out is None  # its yardstick took no part


def test_who_fails_gets_a_row_with_the_reason(monkeypatch):
    monkeypatch.setattr("bench.cpu.comparison.peak_mib", lambda key, _: refuse(key))
    setting = Setting("siglip", 32, d=8)
    rows = {
        row.contestant: row for row in compare(setting, [YARDSTICK, "hand", "pml"], 2, Silent())
    }
    assert rows["hand"].failure == "out of memory"
    assert rows["hand"].ms is None
    assert "pytorch" in rows["pml"].failure.lower()
    assert rows[YARDSTICK].failure is None
    assert rows[YARDSTICK].to_mm == 1


def refuse(key):
    if key == "hand":
        raise RuntimeError("out of memory")
    return 1.0


def test_a_failure_between_two_rounds_ends_only_its_own():
    calls = []

    def fragile():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("gone")

    seconds, failures = take_turns(
        {"fragile": fragile, "steady": lambda: None}, 3, "cpu", lambda: None
    )
    assert failures == {"fragile": "RuntimeError: gone"}
    assert len(seconds["steady"]) == 3


def test_times_are_median_and_quartiles():
    assert Times.of([0.001, 0.002, 0.003, 0.004, 0.1]) == Times(3.0, 2.0, 4.0)


@exhaustive
def test_memory_of_a_matrix_is_its_size():
    # 2048² numbers of 4 bytes are 16 MiB, far above what pages counted in batches can hide.
    assert peak_mib(YARDSTICK, Setting("ms", 2048, d=8)) == pytest.approx(16, abs=6)


def test_memory_of_a_given_matrix_is_its_size_too():
    assert peak_mib(GIVEN, Setting("ms", 2048, d=8)) == pytest.approx(16, abs=6)
