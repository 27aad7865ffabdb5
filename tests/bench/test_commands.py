"""`python -m bench NAME` at a tiny size: what it measures, what it says, and what it leaves."""

import argparse
import json
import math
import os
import sys

import pytest
import torch

import pairops
from bench.__main__ import main
from bench.contestants import contestants
from bench.cpu import small
from bench.cpu.elimination import FEW, KERNEL, PARTS, parts, plain, steps, visited
from bench.cpu.engine_sweeps import LOSSES, Sweeps, pairs_of, terms
from bench.cpu.kernel import Job, measure
from bench.cpu.large import bound
from bench.cpu.mined import learned, steps_of
from bench.gpu import entry, launch, lease, sanitizer
from bench.problems import Setting, problem
from pairops.ops.bindings import extension
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.terms.term import Term
from support.exhaustive import exhaustive

needs_native = pytest.mark.skipif(not cpu_engine.SERVED, reason="the extension was never built")


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
    monkeypatch.setattr("bench.cpu.comparison.peak_mib", lambda *_: 1.0)
    sizes = ["--n", "32", "--d", "16", "128", "--repeats", "2"]
    record = bench("siglip-cpu", "--loss", "siglip", *sizes, "--contestants", "hand")
    assert record["stamp"]["d"] == 128
    assert json.loads((tmp_path / "siglip-cpu-d16.json").read_text())["stamp"]["d"] == 16
    printed = capsys.readouterr().out
    assert "D=16" in printed
    assert "D=128" in printed


@exhaustive
def test_smoke(bench, tmp_path, capsys):
    options = ["--loss", "ms", "--n", "64", "--d", "16", "--repeats", "2"]
    chosen = ["--contestants", "blockwise", "compiled", "--no-compile"]
    record = bench("ms-cpu-d16", *options, *chosen)
    stamp = record["stamp"]
    wanted = {"commit", "date", "command", "cpu", "gpu", "cores", "python", "torch", "pairops"}
    assert wanted | {"pytorch_metric_learning"} <= set(stamp)
    assert stamp["command"].startswith("python -m bench --loss ms --n 64")
    assert (stamp["dtype"], stamp["threads"], stamp["repeats"]) == ("float32", 1, 2)
    (ours,) = record["rows"]
    assert (ours["contestant"], ours["failure"], ours["n"]) == ("blockwise", None, 64)
    assert 0 < ours["ms_q1"] <= ours["ms"] <= ours["ms_q3"]
    assert ours["peak_mib"] >= 0
    (rates,) = stamp["rates"]
    assert rates["n"] == 64
    # One set: half a product N×N×D forward, and two in all.
    product = 2 * 64**2 * 16
    for part, work in (("", 2 * product), ("forward_", product / 2)):
        gflops = work / ours[f"{part}ms"] / 1e6
        assert ours[f"{part}of_hot"] == pytest.approx(gflops / rates["hot_gflops"])
        if cpu_engine.SERVED:
            assert ours[f"{part}of_peak"] == pytest.approx(gflops / rates["peak_gflops"])
        else:
            assert ours[f"{part}of_peak"] is None
            assert rates["peak_gflops"] is None
    assert ours["value"] == pytest.approx(ours["truth"], rel=1e-4)
    assert (tmp_path / "ms-cpu-d16.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "pairops blockwise" in printed
    assert printed.count("GFLOP/s: hot") == 1


@exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_small(tmp_path, capsys, monkeypatch):
    """Everybody returns the gradient of the loss; who does not is named with the reason."""
    sizes = ["--n", "16", "--d", "8", "--repeats", "2", "--output", str(tmp_path)]
    monkeypatch.setattr("bench.cpu.small.CALLED_AT", 16)
    with torch.device("cpu"):
        main(["small", "--no-compile", *sizes])
        record = json.loads((tmp_path / "small-cpu.json").read_text())
        assert [row for row in record["rows"] if row["failure"] is not None] == []
        assert {row["who"] for row in record["rows"] if row["loss"] == "siglip"} == {
            small.HAND, small.PAIROPS, small.NN
        }  # fmt: skip
        assert all(row["process_ms"] > 0 and row["calls"] > 10 for row in record["rows"])
        assert "margin, l2" in capsys.readouterr().out
        wrong = small.LOSSES["supcon"]._replace(ours=pairops.ms_loss)
        monkeypatch.setitem(small.LOSSES, "supcon", wrong)
        main(["small", "--loss", "supcon", *sizes])
    assert "supcon, N=16, pairops: its gradient is not that of the loss" in capsys.readouterr().out
    rows = json.loads((tmp_path / "small-cpu.json").read_text())["rows"]
    assert [row["who"] for row in rows if row["failure"] is not None] == [small.PAIROPS]
    assert any(row["who"] == small.COMPILED and row["process_ms"] > 0 for row in rows)


@needs_native
@exhaustive
def test_kernel(bench, capsys):
    sizes = ["--n", "200", "--d", "8", "--repeats", "2"]
    record = bench("kernel-cpu", "kernel", "--isa", "baseline", *sizes)
    rows = {(row["loss"], row["sweep"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 8
    products = {"ms": (0.5, 1.5), "supcon": (0.5, 1.5), "info_nce": (1, 3)}
    for (loss, sweep), row in rows.items():
        assert (row["isa"], row["n"], row["d"], row["threads"]) == ("baseline", 200, 8, 1)
        assert row["share"] == pytest.approx(row["gflops"] / row["peak_of_one_thread"])
        assert 0 < row["share"] <= row["best_share"]
        assert row["of_hot"] == pytest.approx(row["gflops"] / row["hot_gflops"])
        if loss == KERNEL:
            assert row["parts_ms"] is None
            continue
        flops = row["tiles_visited"] * products[loss][sweep == "backward"] * 2 * 200**2 * 8
        assert row["gflops"] == pytest.approx(flops / row["ms"] / 1e6)
        assert tuple(row["parts_ms"]) == PARTS
        assert sum(row["parts_ms"].values()) == pytest.approx(row["ms"])
    printed = capsys.readouterr().out
    assert "info_nce" in printed
    assert "Where the time of a sweep goes" in printed


@needs_native
def test_peak_is_of_one_thread_and_share_of_all():
    threads = torch.get_num_threads()
    try:
        rows = measure(Job(extension.isa(), 50, 8, 2, 2))
    finally:
        torch.set_num_threads(threads)
    for row in rows:
        assert row["share"] == pytest.approx(row["gflops"] / row["peak_of_one_thread"] / 2)
        assert row["parts_ms"] is None


@needs_native
def test_parts_of_a_sweep_are_told_apart():
    """Of times that are made of known parts, each part is found again."""
    n, packing, of_few = 96, {8: 3.0, 1: 0.5}, {8: 0.2, 1: 0.1}
    rates = {("forward", 8): 4.0, ("forward", 1): 2.0, ("backward", 8): 3.0, ("backward", 1): 1.0}
    tiles, rest, functions = 5.0, 0.75, 11.0
    half = {k: 1e3 * n**2 * k / 1e9 for k in (8, 1)}  # GFLOP in ms at 1 GFLOP/s: half a product
    for sweep, share in (("forward", 1.0), ("backward", 0.25)):
        products = {
            k: share * half[k] * (1 / rates["forward", k] + (2 / rates["backward", k]
                                                             if sweep == "backward" else 0))
            for k in (8, 1)
        }  # fmt: skip
        ms = {}
        for k in (8, 1):
            more = rest if k == 8 else 0.0
            ms["plain ms", sweep, k] = products[k] + 2 * packing[k] + tiles + more
            ms[f"{FEW} rows", "forward", k] = packing[k] + of_few[k]
            ms[f"{2 * FEW} rows", "forward", k] = packing[k] + 2 * of_few[k]
            ms["idle ms", "backward", k] = ms[f"idle {FEW} rows", "backward", k] = packing[k]
        ms["ms", sweep, 8] = ms["plain ms", sweep, 8] + functions
        wanted = {
            "products": products[8], "functions": functions, "packing": 2 * packing[8],
            "tiles": tiles, "rest": rest,
        }  # fmt: skip
        assert parts("ms", sweep, n, 8, share, ms, rates) == pytest.approx(wanted)


@needs_native
def test_sweeps_of_the_elimination_visit_what_the_loss_visits():
    """Backward through the bits of another sweep: a plain sum's gradient over those tiles alone."""
    n, tile = 200, cpu_engine.TILE
    pairs = pairs_of("ms", n, 8)
    whole = {"ms": Sweeps(pairs, terms("ms"))}
    assert pairs.cache.similarities == ((), None)  # each sweep multiplies for itself
    whole["ms"].bits[:, 0] = 0
    for (what, sweep, _), step in steps(whole, n, 8).items():
        if (what, sweep) == ("plain ms", "backward"):
            assert torch.equal(step.__self__.bits, whole["ms"].bits.amax(0, keepdim=True))
    bits = torch.zeros(1, 3, 3, dtype=torch.uint8)
    assert visited(None) == 1
    assert visited(bits) == 0
    assert not Sweeps(pairs, plain(pairs, True), bits).backward()[0].any()
    bits[0, 0, 2] = bits[0, 2, 0] = 1
    assert visited(bits) == pytest.approx(1 / 6)
    found = Sweeps(pairs, plain(pairs, True), bits).backward()[0]
    order = pairs.relation.permutation_x
    inside = torch.zeros(n, n, dtype=torch.bool)
    inside[:tile, 2 * tile :] = inside[2 * tile :, :tile] = True
    labels = problem(Setting("ms", n, 8)).other[order]
    x = pairs.x[order].double().requires_grad_()
    unit = torch.nn.functional.normalize(x)
    (unit @ unit.T)[inside & (labels[:, None] != labels)].sum().backward()
    torch.testing.assert_close(found[order].double(), x.grad / n, rtol=1e-4, atol=1e-6)


@needs_native
@pytest.mark.parametrize("loss", LOSSES)
def test_kernel_times_what_the_loss_calls(loss, monkeypatch):
    """The same terms and numbers: `Sweeps` builds the call by itself, references included."""
    calls = []

    def told(term):
        operands = [
            (z.statistic, z.side) if isinstance(z, Term) else str(z)
            for z in (*term.args, term.above, term.below)
        ]
        return term.statistic, term.side, term.function.name, operands, term.grad

    def spy(name):
        real = getattr(cpu_engine, name)

        def recorded(pairs, rows, cols, *others):
            calls.append((name, [[told(t) for t in owned] for owned in (rows, cols)]))
            return real(pairs, rows, cols, *others)

        return recorded

    for name in ("planned_forward", "planned_backward"):
        monkeypatch.setattr(cpu_engine, name, spy(name))
    contestants()["cpu"].step(problem(Setting(loss, 50, d=8)))()
    theirs, calls = calls, []
    sweeps = Sweeps(pairs_of(loss, 50, 8), terms(loss))
    assert [name for name, _ in calls] == ["planned_forward"]
    calls.clear()
    sweeps.forward()
    sweeps.backward()
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
def test_relations(bench, capsys):
    sizes = ["--n", "60", "--m", "90", "--d", "8", "--listed", "40", "--repeats", "2"]
    record = bench("relations-cpu", "relations", "--loss", "ms", "guided", "keywords", *sizes)
    ways = [(row["loss"], row["way"], row["beside"]) for row in record["rows"]]
    assert ways == [
        ("ms", "list", "labels"), ("ms", "width", "labels"), ("guided", "gated", "plain"),
        ("keywords", "mask", "plain"), ("keywords", "own negatives", "plain"),
        ("keywords", "all directions", "plain"),
    ]  # fmt: skip
    assert all(row["ratio"] > 0 for row in record["rows"])
    assert "M=90, D=8" in capsys.readouterr().out


@needs_native
def test_without_bits_every_tile_is_visited(monkeypatch):
    seen = []
    real = cpu_engine._native.backward
    monkeypatch.setattr(
        cpu_engine._native,
        "backward",
        lambda *call: seen.append(call[13]) or real(*call),
    )
    steps, _ = steps_of(*learned(200, 16, 8, 1.0))
    for name in ("sweep", "sweep_everywhere", "backward", "backward_everywhere"):
        seen.clear()
        steps[name]()
        assert seen
        assert all((bits is None) == name.endswith("everywhere") for bits in seen), name


@needs_native
def test_large(bench, capsys):
    (row,) = bench("large-cpu", "large", "--n", "300", "--d", "8")["rows"]
    assert (row["loss"], row["n"], row["d"], row["threads"]) == ("ms", 300, 8, 1)
    assert row["forward_s"] > 0
    assert row["backward_s"] > 0
    assert 0 <= row["peak_mib"] < row["bound_mib"]
    assert math.isfinite(row["value"])
    assert "its bound" in capsys.readouterr().out


@needs_native
@exhaustive
def test_retrieval(bench, capsys):
    sizes = ["--n", "600", "--d", "8", "--noise", "0.1", "--repeats", "2"]
    (row,) = bench("retrieval-cpu", "retrieval", *sizes)["rows"]
    assert (row["n"], row["d"], row["threads"]) == (600, 8, 1)
    for name in ("recall", "all"):
        assert row[f"{name}_s"] > 0
        low, high = sorted(row[f"{name}_to_product_each"])
        assert low <= row[f"{name}_to_product"] <= high
        assert 0 <= row[f"{name}_peak_mib"] < row[f"{name}_process_mib"]
    assert row["found"]["queries"] == 600
    assert row["found"]["recall"]["1"] > 0.9
    assert "s of processors; memory grew by" in capsys.readouterr().out


@exhaustive
def test_gpu_rehearsed_on_the_cpu(tmp_path, capsys):
    sizes = ["--n", "24", "--d", "8", "--dtype", "float32", "--repeats", "2"]
    parts = ["--parts", "errors", "bits", "launch", "costs", "speed"]
    words = ["--loss", "ms", *sizes, *parts, "--who", "cuda", "triton", "chunked", "hand"]
    main(["gpu", "--device", "cpu", *words, "--output", str(tmp_path)])
    record = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert "triton" in record["stamp"]["versions"]
    errors, bits, launch, costs, speed = (
        [r for r in record["rows"] if r["part"] == part] for part in parts[1:]
    )
    exact = {r["who"]: r["gradient_error"] for r in errors if r["level"] == "highest"}
    assert set(exact) == {"cuda", "triton", "chunked", "dense"}
    assert all(error < 1e-4 for error in exact.values())
    assert all(r["within_rule"] for r in errors if r["level"] == "highest")
    assert [r["who"] for r in errors if "failure" in r] == ["chunked", "chunked"]
    gpu_engines = {"cuda", "triton", "chunked"}
    assert {r["who"]: r["twenty_runs_equal"] for r in bits} == dict.fromkeys(gpu_engines, True)
    checks = {r["who"]: r["verdict"] for r in launch if r["check"] == "beside_torch"}
    assert checks == dict.fromkeys(gpu_engines, "equal")
    assert {r["who"] for r in costs if r["host_us"] > 0} == {*gpu_engines, "hand"}
    assert [r["eager_to_this"] for r in costs if r["who"] == "hand"] == [1]
    assert {r["who"] for r in speed if r["share_of_mm"] > 0} == {*gpu_engines, "hand"}
    assert "written: " in capsys.readouterr().out


@exhaustive
def test_gpu_memory_rehearsed_on_the_cpu(tmp_path):
    words = ["--n", "24", "--d", "8", "--dtype", "float16", "--parts", "memory", "--loss", "siglip"]
    words += ["--who", "hand", "siglip_kernel", "--name", "here", "--output", str(tmp_path)]
    main(["gpu", "--device", "cpu", *words])
    hand, rival = json.loads((tmp_path / "gpu-here.json").read_text())["rows"]
    assert hand["peak_mib"] >= 0
    assert hand["allowed_mib"] == 64 + (64 * 24 + 6 * 2 * 24 * 8) / 2**20
    assert hand["allowed_wide_mib"] == 64 + (64 * 24 + 2 * 8 * 24 * 8) / 2**20
    assert rival["who"] == "siglip_kernel"
    assert "failure" in rival


PRETENDED = """
import json, sys, time
for number in range(int(sys.argv[1]), 4):
    print("@at", json.dumps([number, {"n": number}]), flush=True)
    print("on number", number, flush=True)
    if number == 1:
        sys.exit("no such thing")
    if number == 2:
        time.sleep(60)
    print("@row", json.dumps({"n": number, "row": 1}), flush=True)
    if number == 0:
        sys.exit(75)
"""


@exhaustive
def test_a_process_that_ends_or_hangs_costs_one_setting(capsys):
    def command(first):
        return [sys.executable, "-c", PRETENDED, str(first)]

    rows = list(lease.rows_of(command, lease.Clock(120), 4.0, {"PAIROPS_HOPPER": "1"}))
    assert [row["n"] for row in rows] == [0, 1, 2, 3]
    assert [row.get("row") for row in rows] == [1, None, None, 1]
    assert rows[1]["failure"] == "ended with status 1: no such thing"
    assert rows[2]["failure"] == "silent for 4 s, and ended"
    assert rows[2]["environment"] == {"PAIROPS_HOPPER": "1"}
    assert "on number 3" in capsys.readouterr().out
    assert not list(lease.rows_of(command, lease.Clock(-1), 5.0, {}))


@exhaustive
def test_gpu_measures_in_a_process_of_its_own():
    """As on a GPU, but on the CPU: the command that is begun understands its own words."""
    parser = argparse.ArgumentParser()
    entry.options(parser)
    words = ["--loss", "ms", "--n", "24", "48", "--d", "8", "--dtype", "float32", "--repeats", "2"]
    options = parser.parse_args([*words, "--who", "hand", "--device", "cpu"])
    clock = lease.Clock(300)

    def command(first):
        return entry.command("speed", options, clock, first + 1)

    rows = list(lease.rows_of(command, clock, 150.0, {}))
    assert [(row["who"], row["n"]) for row in rows] == [("hand", 48)]


def test_gpu_of_which_setting_a_failure_is():
    options = argparse.Namespace(
        first=None, dtype=["float32"], d=[8], n=[600, 700, 24], loss=["ms"], device="cpu",
        who=["cuda", "hand"], alone=False,
    )  # fmt: skip

    def measure(options, setting):
        small = lease.at_most(options, setting, 512)
        if small is not None:
            yield {"n": small.n}
            raise ValueError(f"of {setting.n}")

    rows = list(lease.each(measure, options, lease.Clock(60)))
    assert [(r["n"], r.get("failure")) for r in rows] == [
        (512, None), (600, "ValueError: of 600"), (24, None), (24, "ValueError: of 24"),
    ]  # fmt: skip


def test_names_of_the_engine_with_its_sweeps_for_hopper(monkeypatch):
    assert lease.called("cuda") == "cuda"
    monkeypatch.setenv("PAIROPS_HOPPER", "1")
    assert lease.called("cuda") == "cuda, hopper"
    assert lease.called("triton") == "triton"
    assert not lease.with_hopper("cuda")


def test_gpu_sanitizer(tmp_path, monkeypatch, capsys):
    said = "========= ERROR SUMMARY: 0 errors"
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho all steps done\necho '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    main(["gpu", "--device", "cpu", "--parts", "sanitizer", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "gpu-rehearsal.json").read_text())["rows"]
    assert {row["tool"]: row["clean"] for row in rows} == {"memcheck": True, "racecheck": True}
    assert rows[0]["summary"] == [said]
    assert "memcheck {} clean" in capsys.readouterr().out
    judged = sanitizer.verdict
    assert not judged("memcheck", {}, None, f"all steps done\n{said}\n")["clean"]
    assert not judged("memcheck", {}, 0, f"ms\n{said}\n")["clean"]
    assert judged("memcheck", {}, None, "========= COMPUTE-SANITIZER\nstep ms\n")["clean"] is None
    assert judged("memcheck", {}, None, "========= Invalid read\nstep ms\n")["clean"] is False
    warned = "========= RACECHECK SUMMARY: 10 hazards displayed (0 errors, 10 warnings)"
    assert not judged("racecheck", {}, 0, f"all steps done\n{warned}\n")["clean"]


def test_gpu_sanitizer_has_steps(monkeypatch, capsys):
    monkeypatch.setattr(sanitizer, "SIZES", ((100, 48),))
    sanitizer.steps("cpu")
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_gpu_summary_of_a_profile():
    events = [{"cat": "kernel", "name": "weigh", "dur": 5}] * 10 + [{"cat": "cpu_op", "dur": 9}]
    events += [{"cat": "gpu_memset", "name": "Memset", "dur": 1}] * 5 + [{"ph": "M"}]
    assert launch.summary(events) == {
        "kernels": 3, "kernels_us": 11, "longest_us": {"weigh": 10, "Memset": 1},
    }  # fmt: skip


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
