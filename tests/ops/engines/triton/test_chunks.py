"""The chunked path: its chunks, what it launches for each, units of weights, and its memory."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pairops import ALL, NEG, POS, Pairs, highest, lowest, lse, partner, row_stats, total
from pairops.inspection.memory_trace import TensorTrace
from pairops.ops.engines.blockwise import engine as blockwise
from pairops.ops.engines.memory import WORKING, SizedCall
from pairops.ops.engines.triton import chunked, chunks, tile_configs
from pairops.ops.terms import functions
from pairops.ops.terms.functions import FUNCTIONS, hinge
from pairops.ops.terms.term import Term, Wanted
from support.chunked_cost import SCHEMES, cost
from support.engine_comparison import assert_as_dense
from support.exhaustive import exhaustive_but
from support.term_problems import DOUBLE

pytest.importorskip("triton")

from pairops.ops.engines.triton import chunked_launch, weight_bounds
from pairops.ops.engines.triton.chunks import Extent
from pairops.ops.engines.triton.kernels import chunk as chunk_kernels

MIB = 1 << 20
PRECISIONS = {
    dtype: tile_configs.precision(dtype, "highest")
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("two_parts", [False, True])
def test_a_chunk_fits_into_its_room_and_is_cut_at_whole_tiles(
    dtype: torch.dtype, two_parts: bool
) -> None:
    precision = PRECISIONS[dtype]
    sizes = [0, 1, 77, 128, 1000, 4096, 5000, 65_536, 1_000_000]
    for n in sizes:
        for m in sizes:
            rows, cols = chunks.extent(n, m, precision, two_parts)
            assert rows == n or rows % 128 == 0
            assert cols == m or cols % 128 == 0
            assert 0 < rows <= n or n == 0
            assert 0 < cols <= m or m == 0
            taken = rows * chunks.pitch(cols) * chunks.pair_bytes(precision, two_parts)
            assert taken <= 48 * MIB, (n, m)
            if n * m >= 1 << 26:
                assert taken > 40 * MIB, (n, m)
    assert chunks.extent(65_536, 65_536, PRECISIONS[torch.bfloat16], False) == (4096, 2048)


SMALL = Extent(64, 64)  # several chunks each way, the last ones ragged


@pytest.mark.parametrize(
    ("m", "several", "dtype", "columns"),
    exhaustive_but(
        [
            (m, p, dtype, columns)
            for m in (0, 100)
            for p in (1, 9)
            for dtype in (torch.float32, torch.bfloat16)
            for columns in (True, False)
            if m or columns
        ],
        lambda m, p, dtype, columns: m and p > 1 and dtype == torch.bfloat16 and columns,
    ),
)
def test_full_tiles_parts_and_ragged_chunks(
    m: int, several: int, dtype: torch.dtype, columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of small tiles, so that most hold negatives alone; with and without terms of columns."""
    monkeypatch.setattr(chunked_launch, "_TILE", (32, 32))
    monkeypatch.setattr(chunked_launch, "_INTERPRETED", SMALL)
    monkeypatch.setattr(chunked_launch, "processors", lambda _: several)
    n, width = 90, m or 90
    labels, other = torch.arange(n) // 4, torch.arange(width) // 4
    labels[[3, 40, 41]] = other[[7, 8, 60]] = -100

    def run(x: Tensor, a: Tensor, b: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        more = {"ref_emb": y[0], "ref_labels": other} if y else {}
        cols = [lse(ALL, b, partner(a)), highest(NEG)] if columns else []
        rows = [lse(NEG, 5.0, a), total(POS, a, partner(b), function=hinge), lowest(POS)]
        return row_stats(Pairs.of(x, labels, **more), *rows, cols=cols)

    sets = [torch.randn(k, 7, dtype=DOUBLE) for k in (n, m) if k]
    vectors = [torch.rand(k, dtype=DOUBLE) + 0.5 for k in (n, width)]
    assert_as_dense("chunked", run, sets[0], *vectors, *sets[1:], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sweep_over_positives_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks."""
    monkeypatch.setattr(chunked_launch, "_TILE", (32, 32))
    monkeypatch.setattr(chunked_launch, "_INTERPRETED", SMALL)
    labels = torch.arange(90) // 4

    def run(x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        return row_stats(Pairs.of(x, labels), lse(POS, a, 0.3, below=torch.full((90,), 0.5)))

    assert_as_dense("chunked", run, torch.randn(90, 7), torch.rand(90) + 0.5, dtype=dtype)


class Ops(TorchDispatchMode):
    """What torch is asked for, and how much memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


QUESTIONS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
VIEWS = {"slice", "t", "permute", "alias", "detach", "view", "expand", "unsqueeze", "select"}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels of chunks that would be launched. None is: the interpreter makes copies
    of what it is given."""
    launched: list[str] = []

    def run(_self: Any, kernel: Any, *_more: Any, **_meta: Any) -> None:
        launched.append(next(k for k, v in vars(chunk_kernels).items() if v is kernel))

    call = chunked_launch.Chunked
    monkeypatch.setattr(call, "_run", run)
    monkeypatch.setattr(call, "finalize_states", lambda *_: None)
    monkeypatch.setattr(call, "_normalize_backward", lambda _self, _axis, gradient: gradient[0])
    return launched


def passes(
    n: int, m: int, wanted: tuple[bool, bool], terms: list[Term], dtype: torch.dtype = torch.float32
) -> list[Ops]:
    """What torch is asked for in `forward`, and in `backward` by gradients of these sets."""
    x, y = torch.randn(n, 16).to(dtype), torch.randn(m or n, 16).to(dtype)
    labels, other = torch.arange(n) // 4, torch.arange(m or n) // 4
    more = {"ref_emb": y, "ref_labels": other} if m else {}
    pairs = Pairs.of(x, labels, **more)
    shape = pairs.shape
    rows = [t.over(*shape, torch.float32) for t in terms]
    cols = [t.over(*reversed(shape), torch.float32) for t in terms] if m else []
    seen = Ops(), Ops()
    with seen[0]:
        found, _, masks = chunked.forward(pairs, rows, cols)
    given = [torch.rand_like(z) for z in found]
    with seen[1]:
        chunked.backward(pairs, rows, cols, found, given, masks, Wanted(*wanted))
    return list(seen)


@pytest.mark.parametrize(
    ("m", "wanted"), [(0, (True, False)), (1, (True, True)), (1, (True, False)), (1, (False, True))]
)
def test_launches_and_memory_by_chunks(
    m: int, wanted: tuple[bool, bool], counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product and a kernel, and a product for each gradient: no memory, and no question to the
    device, so that a graph can be captured. As many as the table of docs/engines/triton.md says."""
    monkeypatch.setattr(chunked_launch, "_TILE", (32, 32))
    term = lse(NEG, 5.0, 0.1)
    passes(2, m, wanted, [term])  # what is made once for a recipe
    besides = []
    for scale in (1, 3):
        n, extent = 64 * scale, Extent(32, 64)
        monkeypatch.setattr(chunked_launch, "_INTERPRETED", extent)
        counted.clear()
        forward, backward = passes(n, m * n, wanted, [term])
        said = cost(n, m * n, 16, SCHEMES["chunks"]._replace(extent=extent), wanted)
        products = Counter(forward.names + backward.names)
        assert len(counted) + products["mm"] + products["addmm_"] == said.launches
        assert products["mm"] == 2 * -(-n // 32) * -(-n // 64)
        besides.append([
            Counter(z for z in ops.names if z not in VIEWS and z not in ("mm", "addmm_"))
            for ops in (forward, backward)
        ])  # fmt: skip
    assert besides[0] == besides[1], "a chunk does more than products and kernels"
    assert not QUESTIONS & set().union(*besides[0])


def test_units_need_no_pass_where_the_functions_have_bounds(
    counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_launch, "_INTERPRETED", Extent(64, 64))
    cubed = FUNCTIONS.get("cubed_chunks") or functions.Function(
        lambda s, a: a * s * s * s, name="cubed_chunks"
    )
    for term, kernels in (
        (lse(NEG, 5.0, 0.1), {"forward", "backward"}),
        (total(NEG, 5.0, function=cubed), {"forward", "largest_weight", "backward"}),
    ):
        counted.clear()
        seen = passes(64, 0, (True, False), [term], torch.bfloat16)
        assert set(counted) == kernels
        assert not QUESTIONS & set().union(*[ops.names for ops in seen])


@pytest.mark.parametrize("name", [f.name for f in weight_bounds._STEEPEST])
def test_no_slope_is_above_its_bound(name: str) -> None:
    """Arguments of either sign, per owner, per partner and as numbers, of unit rows."""
    function = FUNCTIONS[name]
    s = torch.linspace(-1, 1, 41, dtype=DOUBLE).repeat(30, 1)
    largest = torch.zeros(())
    for _ in range(5):
        args: list[Any] = []
        spread: list[Any] = []
        for _ in range(function.arity):
            of_row, of_column = (4 * torch.randn(k, dtype=DOUBLE) for k in (30, 41))
            number = float(of_row[0])
            kind = int(torch.randint(0, 3, ()))
            args.append((number, of_row, partner(of_column))[kind])
            spread.append((number, of_row.unsqueeze(1), of_column)[kind])
        term = Term("sum", ALL, function, tuple(args)).over(30, 41, DOUBLE)
        slope = torch.as_tensor(function.slopes(s, *spread)[0], dtype=DOUBLE)  # type: ignore[misc]
        bound = torch.as_tensor(weight_bounds._steepest(term), dtype=DOUBLE).expand(30)
        assert bool((slope.abs().expand_as(s).amax(1) <= bound * (1 + 1e-12)).all())
        largest = torch.maximum(largest, bound.amax())
    assert float(largest) < 500, "a bound far above wastes the range of float16"


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_row_has_weights_in_a_unit_of_its_own(dtype: torch.dtype, same: bool) -> None:
    """Where rows alone have a gradient: one that counts 2^−40 as much is as exact as the others. In
    one set it counts as a partner of the others, too, so that its weights are as large as theirs.
    """
    x, y = torch.randn(70, 24).to(dtype), torch.randn(90, 24).to(dtype)
    labels, other = torch.randint(0, 7, (70,)), torch.randint(0, 7, (90,))
    cotangent = torch.exp2(torch.linspace(0, -40, 70))

    def gradient(engine: Any, x: Tensor, y: Tensor) -> Tensor:
        more = {} if same else {"ref_emb": y, "ref_labels": other}
        pairs = Pairs.of(x, labels, **more)
        wide = DOUBLE if x.dtype == DOUBLE else torch.float32
        term = lse(NEG, 9.0, 0.2).over(*pairs.shape, wide)
        found, _, masks = engine.forward(pairs, [term], [])
        given, wanted = [cotangent.to(wide)], Wanted(True, False)
        dx: Tensor = engine.backward(pairs, [term], [], found, given, masks, wanted)[0]
        return dx

    truth = gradient(blockwise, x.double(), y.double())
    error = (gradient(chunked, x, y) - truth).norm(dim=1) / truth.norm(dim=1)
    assert float(error.max()) < 2e-3


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(("m", "wanted"), [(0, (True, False)), (700, (True, True))])
def test_memory_is_what_is_promised(
    m: int, wanted: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, of which a CPU makes no other copies than a GPU."""
    monkeypatch.setattr(chunks, "ROOM", MIB)
    monkeypatch.setattr(chunked_launch, "_TILE", (128, 128))
    n, d = 800, 128
    precision = PRECISIONS[torch.float32]
    extent = chunks.extent(n, m or n, precision, False)
    monkeypatch.setattr(chunked_launch, "_INTERPRETED", extent)
    x, y = torch.randn(n, d), torch.randn(m or n, d)
    more = {"ref_emb": y, "ref_labels": torch.arange(m) // 4} if m else {}
    pairs = Pairs.of(x, torch.arange(n) // 4, **more)
    term = lse(NEG, 5.0, 0.1).over(n, m or n, torch.float32)
    call = SizedCall(n, m or n, d, not m, x.dtype, [term], [], wanted=wanted)
    with TensorTrace([x, y]) as trace:
        found, _, masks = chunked.forward(pairs, [term], [])
    promised = WORKING["chunked"].forward(call)
    assert 0.8 * promised < trace.peak < 1.1 * promised
    with TensorTrace([x, y, *found]) as trace:
        chunked.backward(pairs, [term], [], found, [torch.ones(n)], masks, Wanted(*wanted))
    promised = WORKING["chunked"].backward(call)
    assert 0.8 * promised < trace.peak < 1.1 * promised
