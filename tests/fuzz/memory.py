"""Area "memory": too little of it is a MemoryError, and nothing is left over."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

from support.loss_parameters import LABELLED, ONE_SET, parameters

IMPORTS = ["from fuzz.memory import starved"]

STARVED = """
import resource, torch, pairops
torch.set_num_threads(1)
name, params, engine, n, d, extras, seed = {!r}
loss, few = getattr(pairops, name), torch.arange(60) // 2
torch.manual_seed(seed)
x, labels = torch.randn(n, d), torch.randint(0, n // 4 + 1, (n,))


def step(x, labels):
    leaf = x.detach().requires_grad_()
    loss(leaf, labels, **params).backward()
    return leaf.grad


def size():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))


with pairops.engine(engine):
    before = step(x[:60], few)
    for extra in extras:
        resource.setrlimit(resource.RLIMIT_AS, (size() + (extra << 20), -1))
        try:
            step(x, labels)
            print("served", extra)
        except MemoryError as error:
            print("told", extra, error)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert torch.equal(before, step(x[:60], few))
print("done")
"""


def draw(random: Random) -> list[str]:
    name = random.choice([name for name in LABELLED if name not in ONE_SET])
    params, engine = random.choice(parameters(name)), random.choice(["auto", "blockwise"])
    n, d = random.choice([2000, 6000, 20000]), random.choice([8, 64, 512])
    if name in ("nt_xent_loss", "decoupled_softmax_loss", "lifted_structure_loss", "triplet_loss",
        "smooth_ap_loss",
    ):  # fmt: skip
        n = 2000  # what looks at pairs or triplets one by one
    extras = [0, *sorted(random.choices([1, 2, 4, 6, 12, 20, 40], k=3))]
    return [*IMPORTS, f"starved({name!r}, {params}, {engine!r}, {n}, {d}, {extras}, 1)"]


def starved(*told: object) -> None:
    """told: loss, its parameters, engine, N, D, MiB beyond what the process has, seed."""
    tests = str(Path(__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", STARVED.format(told)], capture_output=True, text=True, check=False,
        timeout=600, env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
    )  # fmt: skip
    assert not found.returncode, f"exit {found.returncode}: {found.stderr[-500:]}"
    assert found.stdout.rstrip().endswith("done"), found.stdout[-500:]
