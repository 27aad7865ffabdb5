"""`python -m bench gpu --first-run`: every kind of row, and what a crash and a hang cost."""

import argparse
import json
import os
import sys
from itertools import product

import pytest
import torch

from bench import report
from bench.__main__ import main
from bench.gpu import entry, lease, long_sums, predictions, sanitizer, tasks
from bench.problems import Setting, problem
from support.exhaustive import exhaustive


def run(tmp_path, *words):
    main(["gpu", "--first-run", "--device", "cpu", *words, "--output", str(tmp_path)])
    return json.loads((tmp_path / "gpu-rehearsal-first-run.json").read_text())["rows"]


def in_this_process(words, clock, _, environment):
    """As `lease.rows_of`, here where the tests have the CUDA kernels compiled for the CPU."""
    assert environment["PAIROPS_CHECK"] == "0"
    parser = argparse.ArgumentParser()
    entry.options(parser)
    options = parser.parse_args(words(0)[4:])
    options.first = None
    return entry.PART[options.parts[0]](options, clock)


@exhaustive
def test_every_kind_of_row(tmp_path, monkeypatch, capsys):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\necho step\necho all steps done\necho '===== ERROR SUMMARY: 0 errors'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(entry, "CHECK", 0.0)
    monkeypatch.setattr(lease, "rows_of", in_this_process)
    rows = run(tmp_path)
    parts = list(dict.fromkeys(row["part"] for row in rows))
    assert parts == ["check", "sanitizer", "long_sums", "rate", "speed", "costs"]
    of = {part: [row for row in rows if row["part"] == part] for part in parts}
    assert "failure" in of["check"][0]
    assert [row["steps_begun"] for row in of["sanitizer"]] == [1, 1]
    sums = {(r["who"], r["n"], r["level"]): r["gradient_error"] for r in of["long_sums"]}
    assert {who for who, _, _ in sums} == {"cuda", "triton", "blockwise"}
    assert {n for _, n, _ in sums} == {24, 100}
    assert max(error for (*_, level), error in sums.items() if level == "highest") < 1e-6
    assert [row["predicted"]["mm_tflops"] for row in of["rate"] if "predicted" in row] == [790]
    done = {(r["who"], r["loss"]) for r in of["speed"] if r.get("share_of_mm", 0) > 0}
    ours = product(("cuda", "triton", "chunked"), ("supcon", "info_nce", "siglip"))
    assert done >= {*ours, ("hand", "info_nce"), ("hand", "siglip")}
    assert {r["who"] for r in of["speed"] if "failure" in r} >= {"memeff", "siglip_kernel"}
    assert [r["who"] for r in of["costs"]] == ["cuda", "triton", "chunked", "hand", "cuda"]
    assert all(r["host_us"] > 0 for r in of["costs"])
    assert "gradient_error" in capsys.readouterr().out


# The second of three contestants traps, or hangs.
TRAPS = """
import json, os, sys, time
for number in range(int(sys.argv[2]), 3):
    who = ["cuda", "triton", "chunked"][number]
    print("@at", json.dumps([number, {"who": who}]), flush=True)
    if number == 1:
        os.abort() if sys.argv[1] == "rate" else time.sleep(60)
    print("@row", json.dumps({"who": who, "mm_tflops": 1.0}), flush=True)
"""


def test_a_crash_and_a_hang_cost_one_row_each(tmp_path, monkeypatch):
    def command(part, _options, _clock, first):
        return [sys.executable, "-S", "-c", TRAPS, part, str(first)]

    monkeypatch.setattr(entry, "command", command)
    monkeypatch.setattr(tasks, "first_run", lambda _: [tasks.Task("rate"), tasks.Task("speed")])
    rows = run(tmp_path, "--patience", "1")
    assert [(r["part"], r["who"], "failure" in r) for r in rows] == [
        ("rate", "cuda", False), ("rate", "triton", True), ("rate", "chunked", False),
        ("speed", "cuda", False), ("speed", "triton", True), ("speed", "chunked", False),
    ]  # fmt: skip
    assert rows[1]["failure"].startswith("ended with status -6")
    assert rows[4]["failure"] == "silent for 1 s, and ended"


def test_a_task_without_time_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "first_run", lambda _: [tasks.Task("rate")])
    (row,) = run(tmp_path, "--minutes", "0.001")
    assert row == {"part": "rate", "failure": "the lease was over before it began"}


def test_who_outlasts_the_clock_is_ended():
    """It says something all the time, and would go on for ten seconds."""
    talks = "import time\nfor _ in range(100): print('busy', flush=True); time.sleep(0.1)"
    words = [sys.executable, "-S", "-c", talks]
    (row,) = lease.rows_of(lambda _: words, lease.Clock(0.1), 0.5, {})
    assert row["failure"] == "its time was up, and ended"


def test_a_contestant_alone_is_a_setting_of_its_own(capsys):
    options = argparse.Namespace(
        first=1, dtype=["float32"], d=[8], n=[24], loss=["ms"], device="cpu",
        who=["cuda", "triton", "hand"], alone=True,
    )  # fmt: skip
    found = [of.who for of, _ in lease.settings(options, lease.Clock(60))]
    assert found == [["triton"], ["hand"]]
    said = [json.loads(line.split(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert [(number, at["who"]) for number, at in said] == [(1, "triton"), (2, "hand")]


def test_gradient_of_sampled_rows_in_float64(monkeypatch):
    monkeypatch.setattr(long_sums, "CHUNK", 40 * 7)  # seven rows at a time
    given = problem(Setting("supcon", 40, 8)).in_float64()
    u = torch.nn.functional.normalize(given.x)
    same = given.other[:, None] == given.other
    value = (u @ u.T / 0.1).masked_fill(same, -torch.inf).logsumexp(1).mean()
    (whole,) = torch.autograd.grad(value, [given.x])
    sample = torch.tensor([0, 5, 6, 7, 39])
    found = long_sums.gradient_in_float64(given, sample)
    torch.testing.assert_close(found, whole[sample], rtol=1e-12, atol=0)


KERNELS = [{"engine": "cuda", "outcome": how} for how in ("passed", "passed", "hung")]


@pytest.mark.parametrize(
    ("code", "output", "row"),
    [
        (0, 'a warning\n{\n "passed": true, "kernels": []}\nmore',
         {"passed": True, "counts": {}, "not_passed": []}),
        (1, json.dumps({"passed": False, "kernels": KERNELS}),
         {"passed": False, "counts": {"cuda passed": 2, "cuda hung": 1},
          "not_passed": KERNELS[2:]}),
        (2, "python -m pairops: error: unrecognized arguments: --check",
         {"failure": "this pairops has no `python -m pairops --check`"}),
        (None, "begun", {"failure": "took too long and was ended, without a report: begun"}),
        (-6, "", {"failure": "ended with status -6, without a report: "}),
    ],
)  # fmt: skip
def test_what_a_check_says(code, output, row):
    assert entry.said(code, output) == row


def test_a_machine_that_refuses_the_sanitizer(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    said = "========= Error: Device not supported. Please refer to the documentation."
    tool.write_text(f"#!/bin/sh\necho '{said}'\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for row in sanitizer.sanitizer(argparse.Namespace(device="cpu"), lease.Clock(60)):
        assert row["failure"].startswith("refused here: Error: Device not supported")
        assert not row["clean"]


def test_predictions_stand_beside():
    cuda = {"who": "cuda", "n": 65_536, "d": 128, "loss": "supcon", "level": "highest"}
    assert predictions.beside("speed", cuda) == {"predicted": {"graph_share_of_mm": 0.35}}
    assert predictions.beside("long_sums", cuda)["predicted"] == {
        "gradient_error": 4.9e-7, "gradient_error_of_one_sum": [5e-5, 2e-4],
    }  # fmt: skip
    assert predictions.beside("speed", cuda | {"d": 512}) == {}
    rows = [
        {"part": "speed", **cuda, "ms": 2.0, **predictions.beside("speed", cuda)},
        {"part": "check", "failure": "none"},
    ]
    _, _, first, second = predictions.table(rows).splitlines()
    assert first.split()[-4:] == ["ms", "2", "graph_share_of_mm", "0.35"]
    assert second.split() == ["check", "none"]


def test_a_results_file_is_whole_at_every_moment(tmp_path):
    report.write_figures(tmp_path, "a", [{"n": 1}], {})
    with pytest.raises(TypeError):
        report.write_figures(tmp_path, "a", [{"n": 1}, {"n": object()}], {})
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == [{"n": 1}]


def test_no_option_of_a_first_run_is_unknown():
    """Each task's process understands its words, on a GPU too."""
    parser = argparse.ArgumentParser()
    entry.options(parser)
    for device in ("cpu", "cuda"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lease, "with_hopper", lambda _: True)
            chosen = tasks.first_run(device)
        assert sum(task.environment.get("PAIROPS_HOPPER") == "1" for task in chosen) == 3
        for task in chosen:
            own = argparse.Namespace(**vars(parser.parse_args([])) | task.changes)
            words = entry.command(task.part, own, lease.Clock(task.seconds), 0)
            told = parser.parse_args(words[4:])
            assert (told.alone, told.n) == (own.alone, list(own.n))
