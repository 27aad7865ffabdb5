"""The benchmark: its rivals are the formulas, its guard bites, and who fails is not timed."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from bench.contestants import Contestant, contestants
from bench.cpu.comparison import compare
from bench.cpu.comparison_report import Row, plot, table
from bench.guard import truth
from bench.memory.peak import peak_mib
from bench.problems import Problem, Setting, problem
from bench.rivals import BOTH_WAYS, LABELLED, PAIRED, by_hand, by_pytorch_metric_learning
from bench.stopwatch import Times, take_turns
from bench.yardsticks import HOT, PEAK, Rates, Work, rates, yardsticks
from pairops.ops.bindings import extension
from pairops.ops.engines import ENGINES
from pairops.ops.engines import cpu as cpu_engine

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
        if key == "cpu" and not cpu_engine.SERVED:
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
    of_all, _ = compare(replace(SMALL, n=64), ["hand", "off"], 2, Silent())
    rows = {row.contestant: row for row in of_all}
    assert rows["off"].failure.startswith("WRONG: loss")
    assert rows["off"].ms is None
    assert rows["off"].forward_ms is None
    assert rows["hand"].failure is None
    assert rows["off"].of_hot is None


def test_who_fails_gets_a_row_with_the_reason(monkeypatch):
    monkeypatch.setattr("bench.cpu.comparison.peak_mib", lambda key, _: refuse(key))
    setting = Setting("siglip", 32, d=8)
    of_all, _ = compare(setting, ["hand", "pml", "blockwise"], 2, Silent())
    rows = {row.contestant: row for row in of_all}
    assert rows["hand"].failure == "out of memory"
    assert rows["hand"].ms is None
    assert "pytorch" in rows["pml"].failure.lower()
    assert rows["blockwise"].failure is None
    assert rows["blockwise"].ms > 0


def test_who_fails_between_two_rounds_has_no_time(monkeypatch):
    monkeypatch.setattr("bench.cpu.comparison.peak_mib", lambda *_: 1.0)

    def fragile(loss):
        calls, right = [], by_hand(loss)

        def call(*args, **learned):
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError("gone")
            return right(*args, **learned)

        return call

    everyone = contestants() | {"fragile": Contestant("fragile", "fragile", cache(fragile))}
    monkeypatch.setattr("bench.cpu.comparison.contestants", lambda: everyone)
    of_all, _ = compare(replace(SMALL, n=64), ["hand", "fragile"], 3, Silent())
    rows = {row.contestant: row for row in of_all}
    assert rows["fragile"].failure == "RuntimeError: gone"
    assert rows["fragile"].ms is rows["fragile"].of_hot is None
    assert rows["hand"].of_hot > 0


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


@pytest.mark.parametrize(
    ("loss", "both", "forward"), [("ms", 2, 0.5), ("info_nce", 4, 1), ("siglip", 4, 1)]
)
def test_shares_are_of_the_work_that_the_loss_needs(loss, both, forward, monkeypatch):
    """Whoever does it, at rates of a machine with 50 and 200 GFLOP/s."""
    monkeypatch.setattr("bench.cpu.comparison.peak_mib", lambda *_: 1.0)
    monkeypatch.setattr("bench.cpu.comparison.rates", lambda *_: Rates(50.0, 200.0))
    rows, reached = compare(Setting(loss, 64, d=8), ["blockwise", "hand"], 2, Silent())
    assert reached == Rates(50.0, 200.0)
    product = 2 * 64**2 * 8 / 1e6  # GFLOP, times 1,000 ms a second
    for row in rows:
        assert row.of_hot == pytest.approx(both * product / row.ms / 50)
        assert row.of_peak == pytest.approx(both * product / row.ms / 200)
        assert row.forward_of_hot == pytest.approx(forward * product / row.forward_ms / 50)
        assert row.forward_of_peak == pytest.approx(forward * product / row.forward_ms / 200)


def test_rates_are_of_the_best_call_and_of_all_threads():
    works = {HOT: Work(lambda: None, 6.0), PEAK: Work(lambda: None, 2.0)}
    seconds = {HOT: [4.0, 3.0, 5.0], PEAK: [0.5, 0.25]}
    assert rates(works, seconds, 2) == Rates(2.0, 16.0)
    assert rates({HOT: works[HOT]}, seconds, 2) == Rates(2.0, None)


def test_yardsticks_are_what_they_say(monkeypatch):
    found = yardsticks(Setting("ms", 64))
    assert found[HOT].gigaflop == 2 * 1024 * 512 * 1024 / 1e9
    assert found[HOT].step().shape == (1024, 1024)
    assert set(found) == ({HOT, PEAK} if cpu_engine.SERVED else {HOT})
    # The probe multiplies float32.
    assert set(yardsticks(Setting("ms", 64, dtype="float64"))) == {HOT}
    monkeypatch.setattr(extension, "native", None)
    assert set(yardsticks(Setting("ms", 64))) == {HOT}


def test_a_rate_that_is_not_known_is_a_dash():
    row = Row("ms", 64, "hand", "torch by hand", ms=1.0, of_hot=0.25)
    head, _, rate, line = table([row], {64: Rates(100.0, None)}).splitlines()
    assert "hot 100, FMA -" in rate
    assert head.split()[-6:] == ["of", "hot", "of", "FMA", "peak", "MiB"]
    assert line.split()[-3:] == ["25%", "-", "-"]


@pytest.mark.parametrize("measured", [{}, {"ms": 1.0, "ms_q1": 0.9, "ms_q3": 1.1}])
def test_a_picture_is_drawn_of_what_was_measured_alone(measured):
    """A time without its memory, and nothing at all: every process may have failed."""
    row = Row("ms", 64, "hand", "torch by hand", **measured)
    stamp = {"d": 8, "dtype": "float32", "gpu": None, "cpu": "CPU", "threads": 1, "repeats": 2}
    stamp |= {"date": "2026-12-01", "torch": "2", "pytorch_metric_learning": "2"}
    figure = plot([row], stamp, {64: Rates(100.0, None)})
    time, memory = figure.axes
    assert any("products" in text.get_text() for text in time.texts)
    assert not memory.texts


MATRIX = """
from bench.contestants import Contestant
from bench.memory.peak import growth
from bench.problems import Setting

class Holds(Contestant):
    def step(self, problem):
        x = problem.x.detach()
        return lambda: x @ x.T

print(growth(Holds("holds", "holds", None), Setting("ms", 2048, d=8)))
"""


def test_memory_of_a_matrix_is_its_size():
    # 2048² numbers of 4 bytes are 16 MiB, far above what pages counted in batches can hide.
    run = [sys.executable, "-c", MATRIX]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    grown = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert float(grown) == pytest.approx(16, abs=6)


def test_memory_is_measured_in_a_process_of_its_own():
    # By hand at least s, its masks and its gradient.
    assert peak_mib("hand", Setting("ms", 2048, d=8)) > 32
