"""What a type checker says of a user's file: a Tensor from every loss, and wrong calls refused."""

import re
from pathlib import Path

import pytest

from pairops import losses
from support.project import ROOT

api = pytest.importorskip("mypy.api")

RIGHT = """\
import functools

import torch
from torch import Tensor

import pairops
from pairops import NEG, POS, Pairs, lse, nn, row_stats


def step(encoder: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    x: Tensor = encoder(images)
    value, aux = pairops.ms_loss.with_aux(x, labels, epsilon=0.2, reduction="mean")
    counts: Tensor = aux.positives
    loss = functools.partial(pairops.supcon_loss, temperature=0.2)
    pairs = Pairs.of(x, labels, distance="l2", group="auto")
    far, near = row_stats(pairs, lse(POS, -1.0, 0.5), lse(NEG, 2.0, 0.5))
    module = nn.TripletLoss(margin=0.1)
    with pairops.engine("dense"):
        total = value + loss(x, labels) + module(x, labels) + far.sum() + near.sum()
    return total + counts.sum()


"""
WRONG = {
    "pairops.ms_loss(x, labels, tempratur=3.0)": "Unexpected keyword argument",
    'pairops.ms_loss(x, labels, reduction="men")': 'Argument "reduction"',
    'pairops.ms_loss(x, labels, alpha="2")': 'Argument "alpha"',
    "pairops.supcon_loss(x)": "Missing positional argument",
    "pairops.ms_loss(x, labels, group=True)": 'Argument "group"',
    "pairops.ms_loss(x, labels, return_aux=True)": "Unexpected keyword argument",
    'pairops.margin_loss(x, labels, distance="l3")': 'Argument "distance"',
}


@pytest.mark.exhaustive
def test_a_user_s_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    revealed = [f"reveal_type(pairops.{name})" for name in losses.LOSSES]
    head = "x, labels = torch.rand(8, 4), torch.arange(8)\n"
    file = tmp_path / "user.py"
    file.write_text(RIGHT + head + "\n".join([*revealed, *WRONG]) + "\n")
    begin = (RIGHT + head).count("\n") + 1
    told, crashed, _ = api.run(["--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(file)])
    assert not crashed
    found: dict[int, str] = {}
    for line in told.splitlines():
        at = re.match(r".*user\.py:(\d+): (?:error|note): (.*)", line)
        if at:
            found.setdefault(int(at[1]), at[2])
    assert min(found) >= begin, told  # nothing is wrong with the file as people write it
    for number, name in enumerate(losses.LOSSES, begin):
        assert re.search(r"Revealed type is .*Loss\[\[x: torch", found[number]), name
    for number, (call, says) in enumerate(WRONG.items(), begin + len(revealed)):
        assert says in found.get(number, ""), f"{call}: {found.get(number)}"
