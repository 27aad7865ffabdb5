"""By how much a step raises the peak of a process's memory, measured in a process of its own.

PYTHONPATH=tests python -m support.peak_memory

prints what docs/numerics.md says of a gradient penalty.
"""

import os
import subprocess
import sys

STEP = """
import sys, torch, pairops
from bench.memory.peak import forget_peak, peak_resident

def step(n, kind):
    d = {
        "positive rows": 512, "smooth_ap_loss": 128, "cwcl_loss": 128, "gram_matching_loss": 128,
    }.get(kind, 64)
    x = torch.randn(n, d, requires_grad=True)
    labels = torch.arange(n) // (64 if kind == "positive rows" else 4)
    start = forget_peak()
    if kind == "info_nce_loss":
        value = pairops.info_nce_loss(x, x.roll(1, 0))
    elif kind == "all directions":
        ids = torch.arange(n) // 2
        value = pairops.info_nce_loss(
            x, x.detach().roll(1, 0), directions=("xy", "yx", "xx", "yy"), partition="joint",
            false_negatives=0.1, ids=ids, own_negatives=x.detach()[:, None],
        )
    elif kind == "list":
        rows, cols = torch.randint(0, n, (2, 20000))
        value = pairops.ms_loss(x, None, positives=(rows, cols), exclude_self=False)
    elif kind == "rows of a list":
        y = torch.randn(8192, 64)
        listed = torch.arange(8).repeat_interleave(4096), torch.arange(4096).repeat(8)
        rows = pairops.PositiveRows.of(pairops.Pairs.listed(x, *listed, ref_emb=y))
        value = pairops.row_stats(rows.pairs, pairops.lse("neg", 1.0, rows.score))[0].sum()
    elif kind == "positive rows":
        rows = pairops.PositiveRows.of(pairops.Pairs.of(x, labels))
        term = pairops.total("pos", 9.0, rows.score, function=pairops.functions.sigmoid)
        value = pairops.row_stats(rows.pairs, term)[0].sum()
    elif kind.startswith("between"):
        u = torch.randn(n, 64, requires_grad=kind.endswith("learned"))
        term = pairops.lse(
            "neg", pairops.between(u, u.roll(1, 0)), 2.0, 0.5, function=pairops.functions.gated
        )
        value = pairops.row_stats(pairops.Pairs.of(x, labels), term)[0].mean()
    elif kind == "gram_matching_loss":
        value = pairops.gram_matching_loss(x, x.detach().roll(1, 1))
    elif kind == "cwcl_loss":
        value = pairops.cwcl_loss(x, x.roll(1, 0), x.detach().roll(1, 1))
    elif kind == "smooth_ap_loss":
        value = pairops.smooth_ap_loss(x, torch.randperm(n) // 8)
    else:
        value = getattr(pairops, kind.split()[0])(x, labels)
    if kind.endswith("penalty"):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        value = value + gradient.square().sum()
    value.backward()
    return peak_resident() - start

torch.set_num_threads(2)
n, kind, engine = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with pairops.engine(engine):
    step(64, kind)  # loads what is loaded once
    print(step(n, kind))
"""


def growth(n: int, kind: str, engine: str = "blockwise") -> float:
    """MiB by which forward and backward raise the process's peak: its own, as the record that
    getrusage reads begins with the peak of the process that starts it, which may hide all."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(n), kind, engine],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    print("| engine | N | one matrix, MiB | three runs, MiB |")
    print("|---|--:|--:|--:|")
    for engine, n in (("blockwise", 4096), ("blockwise", 8192), ("dense", 4096)):
        runs = sorted(growth(n, "ms_loss penalty", engine) for _ in range(3))
        shown = ", ".join(f"{run:.0f}" for run in runs)
        print(f"| {engine} | {n:,} | {n * n * 4 >> 20} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
