"""`python -m bench NAME` at a tiny size: what it measures, what it says, and what it leaves."""

import json
import math

import pytest
import torch

from bench.__main__ import main
from bench.contestants import GIVEN, YARDSTICK, contestants
from bench.kernel import KERNEL, Job, measure, sweeps
from bench.large import bound
from bench.mined import learned, steps_of
from bench.problems import Setting, problem
from pairops import extension
from pairops.engines import native

needs_native = pytest.mark.skipif(not native.SERVED, reason="the extension was never built")


@pytest.fixture
def bench(tmp_path):
    """Runs `python -m bench ...` on one thread; gives the record of that name."""
    threads = torch.get_num_threads()

    def run(name, *words):
        main([*words, "--threads", "1", "--output", str(tmp_path)])
        return json.loads((tmp_path / f"{name}.json").read_text())

    yield run
    torch.set_num_threads(threads)


def test_one_table_and_one_record_per_d(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.comparison.peak_mib", lambda *_: 1.0)
    sizes = ["--n", "32", "--d", "16", "128", "--repeats", "2"]
    record = bench("siglip-cpu", "--loss", "siglip", *sizes, "--contestants", "hand")
    assert record["stamp"]["d"] == 128
    assert json.loads((tmp_path / "siglip-cpu-d16.json").read_text())["stamp"]["d"] == 16
    printed = capsys.readouterr().out
    assert "D=16" in printed
    assert "D=128" in printed


def test_smoke(bench, tmp_path, capsys):
    options = ["--loss", "ms", "--n", "64", "--d", "16", "--repeats", "2"]
    chosen = ["--contestants", "blockwise", "compiled", "--no-compile"]
    record = bench("ms-cpu-d16", *options, *chosen)
    stamp = record["stamp"]
    wanted = {"commit", "date", "command", "cpu", "gpu", "cores", "python", "torch", "pairops"}
    assert wanted | {"pytorch_metric_learning"} <= set(stamp)
    assert stamp["command"].startswith("python -m bench --loss ms --n 64")
    assert (stamp["dtype"], stamp["threads"], stamp["repeats"]) == ("float32", 1, 2)
    rows = {row["contestant"]: row for row in record["rows"]}
    assert set(rows) == {YARDSTICK, GIVEN, "blockwise"}
    for row in rows.values():
        assert row["failure"] is None
        assert row["n"] == 64
        assert 0 < row["ms_q1"] <= row["ms"] <= row["ms_q3"]
        assert row["to_mm"] == row["ms"] / rows[YARDSTICK]["ms"]
        assert row["to_mm_out"] == row["ms"] / rows[GIVEN]["ms"]
        assert row["peak_mib"] >= 0
    ours = rows["blockwise"]
    assert ours["forward_to_mm"] == ours["forward_ms"] / rows[YARDSTICK]["ms"]
    assert ours["forward_to_mm_out"] == ours["forward_ms"] / rows[GIVEN]["ms"]
    assert rows[YARDSTICK]["forward_ms"] is None
    assert ours["value"] == pytest.approx(ours["truth"], rel=1e-4)
    assert (tmp_path / "ms-cpu-d16.png").read_bytes().startswith(b"\x89PNG")
    assert "pairops blockwise" in capsys.readouterr().out


@needs_native
def test_kernel(bench, capsys):
    sizes = ["--n", "200", "--d", "8", "--repeats", "2"]
    record = bench("kernel-cpu", "kernel", "--isa", "baseline", *sizes)
    rows = {(row["loss"], row["sweep"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 6
    products = {"supcon": (0.5, 1.5), "info_nce": (1, 3)}
    for (loss, sweep), row in rows.items():
        assert (row["isa"], row["n"], row["d"], row["threads"]) == ("baseline", 200, 8, 1)
        if loss != KERNEL:
            flops = products[loss][sweep == "backward"] * 2 * 200**2 * 8
            assert row["gflops"] == pytest.approx(flops / row["ms"] / 1e6)
        assert row["share"] == pytest.approx(row["gflops"] / row["peak_of_one_thread"])
        assert 0 < row["share"] <= row["best_share"] < 1
    assert "info_nce" in capsys.readouterr().out


@needs_native
def test_peak_is_of_one_thread_and_share_of_all():
    threads = torch.get_num_threads()
    try:
        rows = measure(Job(extension.isa(), 50, 8, 2, 2))
    finally:
        torch.set_num_threads(threads)
    for row in rows:
        assert row["share"] == pytest.approx(row["gflops"] / row["peak_of_one_thread"] / 2)


@needs_native
@pytest.mark.parametrize("loss", ["supcon", "info_nce"])
def test_kernel_times_what_the_loss_calls(loss, monkeypatch):
    """The same terms, numbers and cotangents: `sweeps` builds the call by itself."""
    calls = []

    def spy(name):
        real = getattr(native, name)

        def recorded(pairs, rows, cols, *others):
            calls.append((name, [[(t.gather, t.side, *t.args) for t in z] for z in (rows, cols)]))
            return real(pairs, rows, cols, *others)

        return recorded

    for name in ("gather", "weigh"):
        monkeypatch.setattr(native, name, spy(name))
    contestants()["native"].step(problem(Setting(loss, 50, d=8)))()
    theirs, calls = calls, []
    steps = dict(sweeps(loss, 50, 8))
    calls.clear()
    steps["forward"]()
    steps["backward"]()
    assert calls == theirs


@needs_native
def test_mined(bench, capsys):
    sizes = ["--n", "400", "--d", "16", "--noise", "0.1", "1.0", "--repeats", "2"]
    record = bench("mined-cpu", "mined", *sizes)
    tight, loose = record["rows"]
    assert tight["tiles_kept"] < loose["tiles_kept"] <= 1
    for row in (tight, loose):
        for name in ("sweep", "backward"):
            assert row[f"{name}_equal"] is True
            everywhere = row[f"{name}_everywhere"]["ms"]
            assert row[f"{name}_ratio"] == pytest.approx(everywhere / row[name]["ms"])
    assert "tiles kept" in capsys.readouterr().out


@needs_native
def test_without_bits_every_tile_is_visited(monkeypatch):
    seen = []
    real = native._native.weigh
    monkeypatch.setattr(
        native._native, "weigh", lambda *call: seen.append([t[5] for t in call[4]]) or real(*call)
    )
    steps, _ = steps_of(*learned(200, 16, 8, 1.0))
    for name in ("sweep", "sweep_everywhere", "backward", "backward_everywhere"):
        seen.clear()
        steps[name]()
        bits = [address for terms in seen for address in terms]
        assert bits
        assert all((bit is None) == name.endswith("everywhere") for bit in bits), name


@needs_native
def test_large(bench, capsys):
    (row,) = bench("large-cpu", "large", "--n", "300", "--d", "8")["rows"]
    assert (row["loss"], row["n"], row["d"], row["threads"]) == ("ms", 300, 8, 1)
    assert row["forward_s"] > 0
    assert row["backward_s"] > 0
    assert 0 <= row["peak_mib"] < row["bound_mib"]
    assert math.isfinite(row["value"])
    assert "its bound" in capsys.readouterr().out


def test_gpu_rehearsed_on_the_cpu(tmp_path, capsys):
    sizes = ["--n", "24", "--d", "8", "--dtype", "float32", "--repeats", "2"]
    parts = ["--parts", "errors", "bits"]
    main(["gpu", "--device", "cpu", "--loss", "ms", *sizes, *parts, "--output", str(tmp_path)])
    record = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert "triton" in record["stamp"]["versions"]
    errors, bits = ([r for r in record["rows"] if r["part"] == part] for part in parts[1:])
    exact = {r["who"]: r["gradient_error"] for r in errors if r["level"] == "highest"}
    assert set(exact) == {"triton", "chunked", "dense"}
    assert all(error < 1e-4 for error in exact.values())
    assert [r["who"] for r in errors if "failure" in r] == ["chunked", "chunked"]
    assert {r["who"]: r["twenty_runs_equal"] for r in bits} == {"triton": True, "chunked": True}
    assert "written: " in capsys.readouterr().out


def test_bound_of_a_large_step():
    of = bound(Setting("ms", 131_072))
    assert of["bound_mib"] == 8 + 64 + 3 * 64
    assert of["dense_mib"] == 65_536
    assert bound(Setting("info_nce", 131_072))["bound_mib"] == 8 + 64 + 5 * 64


@pytest.mark.parametrize(
    "bad",
    [
        ["--loss", "none"],
        ["--repeats", "1"],
        ["--n", "0"],
        ["--d", "0"],
        ["none"],
        ["kernel", "--n", "1"],
        ["mined", "--per-class", "1"],
        ["large", "--loss", "none"],
    ],
)
def test_bad_options_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        main(bad)
    assert "error" in capsys.readouterr().err
