"""Estimates of memory: against what processes were measured to take, for every loss, and errors."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from bench.memory.peak import MIB
from bench.problems import LEARNED, Setting
from pairops import estimate_memory, losses
from pairops.inspection.memory_estimate import Memory
from pairops.ops.engines.memory import WORKING, SizedCall
from pairops.ops.pairs.distances import Measure
from pairops.ops.terms.term import POS, lse
from support.exhaustive import exhaustive
from support.loss_parameters import AGAINST_PROXIES

SETTINGS = {  # by engine, and by how much the measurement may differ
    ("cpu", 0.15): [
        Setting("ms", 8192, d=256),
        Setting("ms", 8192, d=256, dtype="bfloat16"),
        Setting("supcon", 8192, d=256),
        Setting("info_nce", 8192, d=256),
        Setting("siglip", 8192, d=256, dtype="bfloat16"),
        Setting("triplet", 8192, d=256),
    ],
    ("blockwise", 0.2): [Setting("supcon", 4096, d=256)],
    ("dense", 0.05): [Setting(loss, 3000, d=64) for loss in ("ms", "siglip", "triplet")],
}
MEASURED = [
    pytest.param(
        engine, setting, within, id=f"{engine}-{setting.loss}-{setting.dtype}",
        marks=() if (engine, setting.loss) == ("cpu", "ms") else exhaustive,
    )
    for (engine, within), settings in SETTINGS.items()
    for setting in settings
]  # fmt: skip
MEASURE = """
import json, sys, torch
from bench.contestants import contestants
from bench.memory.peak import growth
from bench.problems import Setting

torch.set_num_threads(1)
told = [(engine, Setting(**setting)) for engine, setting in json.loads(sys.argv[1])]
print(json.dumps([growth(contestants()[engine], setting) for engine, setting in told]))
"""


@pytest.fixture(scope="module")
def peaks(request: pytest.FixtureRequest) -> dict[tuple[str, Setting], float]:
    """MiB of all that is asked for, in one process, which hands back at once what is freed."""
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    told = [(a.params["engine"], a.params["setting"]) for a in asked if a and "within" in a.params]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([(e, asdict(one)) for e, one in told])],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            # Of glibc: what takes 256 KiB or more has pages of its own.
            "MALLOC_MMAP_THRESHOLD_": str(1 << 18),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(told, json.loads(done.stdout), strict=True))


@pytest.mark.xdist_group("measured")  # all in one process, which measures once
@pytest.mark.skipif(sys.platform != "linux", reason="other allocators keep what is freed")
@pytest.mark.parametrize(("engine", "setting", "within"), MEASURED)
def test_what_is_estimated_is_what_is_measured(
    engine: str, setting: Setting, within: float, peaks: dict[tuple[str, Setting], float]
) -> None:
    dtype = getattr(torch, setting.dtype)
    learned = {
        name: torch.tensor(z, requires_grad=True)
        for name, z in LEARNED.get(setting.loss, {}).items()
    }
    loss = partial(getattr(losses, f"{setting.loss}_loss"), **learned)
    taken = estimate_memory(setting.n, setting.d, dtype=dtype, loss=loss, engine=engine)
    assert peaks[engine, setting] == pytest.approx(taken.pairops / MIB, rel=within)


def of(loss: Any, n: int = 4096, engine: str = "cpu", **more: Any) -> Memory:
    m = n if loss in AGAINST_PROXIES else None
    return estimate_memory(n, 32, m, loss=loss, engine=engine, **more)


# One has positive pairs for rows, and one keeps N numbers for each row.
OTHERS = ["auc_loss", "smooth_ap_loss"]


@pytest.mark.parametrize("loss", [name for name in losses.__all__ if name not in OTHERS])
def test_every_loss_has_an_estimate_that_grows_with_n_alone(loss: str) -> None:
    once, twice = (of(loss, n, engine="auto") for n in (65_536, 131_072))
    # Some make wide copies of a number of rows at a time, whatever n.
    least = 1.2 if loss in ("cwcl_loss", "gram_matching_loss") else 1.7
    assert least < twice.pairops / once.pairops < 2.2
    if loss == "gram_matching_loss":  # it has no pairs, by any engine
        assert twice.dense == twice.pairops
    else:
        assert 3.9 < twice.dense / once.dense < 4.1
    assert twice.inputs == pytest.approx(2 * once.inputs, abs=8)
    assert once.pairops > 65_536 * 32 * 4, "there is a gradient"


@pytest.mark.parametrize("engine", ["cuda", "triton", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_engines_of_gpus_are_estimated_without_one(engine: str, dtype: torch.dtype) -> None:
    size = 65_536 * 256
    for m, gradients in ((None, 1), (65_536, 2)):
        taken = estimate_memory(
            65_536, 256, m, dtype=dtype, loss="supcon_loss", engine=engine
        ).pairops
        # A gradient in float32 and a copy of each set, at least; not much more than some of these.
        assert gradients * size * 4 < taken < gradients * size * 4 * 8


def test_inputs_are_those_of_a_call() -> None:
    rows = 1000 * 32
    assert of("ms_loss", 1000).inputs == 4 * rows + 8 * 1000
    assert of("info_nce_loss", 1000).inputs == 2 * 4 * rows
    assert of("siglip_loss", 1000).inputs == 2 * 4 * rows
    assert estimate_memory(1000, 32, 500, loss="ms_loss").inputs == 6 * rows + 8 * 1500
    assert estimate_memory(1000, 32, 3000, loss="multi_positive_loss").inputs == 16 * rows


def test_dense_is_itself() -> None:
    memory = of("ms_loss", engine="dense")
    assert memory.pairops == memory.dense


def test_a_loss_may_be_a_function() -> None:
    named = of("triplet_loss")
    assert of(partial(losses.triplet_loss, margin=0.2)) == named
    assert of(lambda x, labels: losses.triplet_loss(x, labels)) == named
    module = of(pairops.nn.SupConLoss())
    assert module.dense == pytest.approx(of("supcon_loss").dense, rel=0.1)
    learned = torch.tensor(0.1, requires_grad=True)
    supcon = of(partial(losses.supcon_loss, temperature=learned))
    assert supcon.pairops > of("supcon_loss").pairops


def test_a_rank_has_its_share_and_blocks_of_the_others() -> None:
    alone, one = of("ms_loss", 65_536), of("ms_loss", 4 * 65_536, world_size=4)
    assert one.inputs == alone.inputs
    assert alone.pairops < one.pairops < 4 * alone.pairops
    assert 3.9 * alone.dense < one.dense < 4.1 * alone.dense
    more = of("ms_loss", 64 * 65_536, world_size=64)
    assert more.pairops == pytest.approx(one.pairops, rel=0.2), "blocks are as many as before"


def test_few_rows_of_several_ranks_are_gathered() -> None:
    few, many = (of("ms_loss", 1000 * ranks, world_size=ranks) for ranks in (4, 64))
    assert many.pairops > 4 * few.pairops


def test_it_can_be_read() -> None:
    memory = Memory(65_536, None, 128, torch.float32, 1, 98 * MIB, 100 << 30)
    assert str(memory) == ("65,536 × 65,536, D = 128, float32: pairops 98 MiB, dense torch 100 GiB")
    assert "5 × 7, D = 3, bfloat16: pairops 1.5 KiB" in str(
        Memory(5, 7, 3, torch.bfloat16, 1, 1536, 1)
    )


def test_native_keeps_squared_norms_and_tiles_for_either_anchor() -> None:
    """By snr a tile is closeness, and that divided by the variances of its rows and of its columns;
    its weights are two tiles likewise."""
    n = 4096
    of_rows = partial(SizedCall, n, n, 32, True, torch.float32, [lse(POS, 1.0, 0.0)], [])
    similarity, squared, snr = (
        of_rows(measure=measure) for measure in (None, Measure("sqeuclidean"), Measure("snr"))
    )
    native = WORKING["cpu"]
    assert native.forward(squared) - native.forward(similarity) == 4 * n
    assert native.backward(squared) - native.backward(similarity) == 3 * 4 * n
    tile = 4 * 96**2 * torch.get_num_threads()
    assert native.forward(snr) - native.forward(squared) == 4 * n + 2 * tile
    assert native.backward(snr) - native.backward(squared) == 4 * n + 3 * tile


def test_extremes_of_similarities_take_their_gradient_alone() -> None:
    """Of the forward pass the most is a copy of the rows."""
    size = 4 * 65_536 * 32
    assert size < of("triplet_loss", 65_536).pairops < 2 * size


def test_no_rows_take_next_to_nothing() -> None:
    assert of("ms_loss", 0).pairops < MIB


def test_what_goes_on_around_it_is_no_matter() -> None:
    expected = of("ms_loss")
    with torch.inference_mode():
        assert of("ms_loss") == expected
    with torch.no_grad(), pairops.engine("blockwise"), torch.autocast("cpu"):
        assert of("ms_loss") == expected
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    "loss",
    [
        partial(losses.triplet_loss, mining="semihard"),
        partial(losses.triplet_loss, mining="all"),
        partial(losses.lifted_structure_loss, form="original"),
        losses.smooth_ap_loss,
    ],
    ids=["semihard", "all", "original", "smooth_ap"],
)
def test_what_depends_on_labels_is_said_to(loss: Any) -> None:
    with pytest.raises(ValueError, match="depends on the labels"):
        estimate_memory(64, 8, loss=loss)


def _over_a_graph(x: Tensor, labels: Tensor, graph: Tensor) -> Tensor:
    return (x + labels + graph).sum()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"n": 1.5}, TypeError, "n is float; it must be an int"),
        ({"n": -1}, ValueError, "n is -1; it must be at least 0"),
        ({"m": True}, TypeError, "m is bool; it must be an int"),
        ({"d": 0}, ValueError, "d is 0; it must be at least 1"),
        ({"world_size": 0}, ValueError, "world_size is 0; it must be at least 1"),
        ({"dtype": torch.int8}, TypeError, "dtype is torch.int8; it must be one of torch.float16"),
        (
            {"loss": "ms"},
            ValueError,
            "loss is 'ms'; it must be one of alignment_loss, arcface_loss, auc",
        ),
        ({"loss": 3}, TypeError, "loss is int; it must be a name or a function"),
        (
            {"loss": _over_a_graph},
            TypeError,
            r"loss requires \(x, labels, graph\); it must",
        ),
        ({"engine": "metal"}, ValueError, "engine is 'metal'; it must be one of auto, cpu"),
        ({"loss": "proxy_nca_loss"}, ValueError, "m is None; of a loss with proxies it must be"),
        ({"loss": "n_pair_loss", "m": 7}, ValueError, "m is 7; of a loss without a second set it"),
        (
            {"loss": "multi_positive_loss", "m": 9},
            ValueError,
            "m is 9 and n is 8; m must be a multiple of n",
        ),
        ({"loss": "tal_loss", "m": 9}, ValueError, "y has 9 rows; it must have 8"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        estimate_memory(**{"n": 8, "d": 4, **arguments})
