"""The kernel that sorts labels by counting, against the torch calls that it stands for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings.cuda import Kernels, Packed
from pairops.ops.bindings.extension import DTYPES
from pairops.ops.pairs import intervals
from support.engine_names import DEVICE

if cuda_kernels.BACKEND is None:
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)

LEAST, MOST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
VALUES = [0, 1, 2, -100, -1, -7, 1 << 62, LEAST, MOST]
labels_of = st.lists(st.sampled_from(VALUES), min_size=1, max_size=40)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def by_kernel(
    z: Tensor,
    labels: Tensor | None,
    others: Tensor | None,
    ignored: int | None,
    exclude_self: bool,
    normalize: bool,
    related: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None, Packed]:
    """places, keep, scale and the arrangement of one set; unrelated: of one compared with."""
    n, d = z.shape
    kernels = Kernels(cuda_kernels.installed(), z.dtype, d, level="highest")
    packed = kernels.room(z)
    positions = torch.full((5, n), -9)
    valid = torch.zeros(n, dtype=torch.bool)
    scale = torch.full((n,), -9.0, dtype=torch.float64) if normalize else None
    wanted = [positions[k].data_ptr() if related or k == 0 else None for k in range(5)]
    high, rest = packed.scales
    written = tuple([t.data_ptr() for t in (packed.rows, high, rest, packed.valid_count)])
    kernels.module.sort_by_label(
        z.data_ptr(), DTYPES[z.dtype], n, d, address(labels), address(others),
        0 if others is None else others.shape[0], ignored, exclude_self, normalize, tuple(wanted),
        valid.data_ptr(), address(scale), kernels.panels, kernels.parts, written,
        cuda_kernels.stream_of(z),
    )  # fmt: skip
    return positions, valid, scale, packed


def as_bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16 if tensor.dtype == torch.float16 else torch.int32)


def check_packed(found: Packed, z: Tensor, scale: Any, order: Tensor, valid: Tensor) -> None:
    expected = torch.ops.pairops.pack(z, scale, order, valid, "highest")
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(as_bits(ours), as_bits(theirs)), "bit for bit, with the padding"
    assert found.valid_count.item() == expected[2].item() == valid.sum()


def check_scale(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=2**-51, atol=0, equal_nan=True)


def check(
    x: Tensor, y: Tensor | None, labels: Tensor | None, others: Tensor | None, *rest: Any
) -> None:
    ignored, exclude_self, normalize = rest
    expected = intervals._by_torch(x, y, labels, others, *rest, torch.float64)
    positions, valid, scale, packed = by_kernel(x, labels, others, *rest)
    assert torch.equal(positions, expected[0])
    assert torch.equal(valid, expected[1])
    check_packed(packed, x, scale, positions[0], valid)
    if normalize:
        check_scale(scale, expected[-1 if y is None else -2])
    if y is None:
        return
    positions, valid, scale, packed = by_kernel(
        y, others, None, ignored, exclude_self, normalize, related=False
    )
    if others is not None:
        assert torch.equal(positions[0], expected[2])
        assert torch.equal(valid, expected[3])
    assert bool((positions[1:] == -9).all()), "nothing else was asked for"
    check_packed(packed, y, scale, positions[0], valid)
    if normalize:
        check_scale(scale, expected[-1])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    a=labels_of,
    b=st.none() | labels_of,
    ignored=st.sampled_from([-100, None, 0, MOST]),
    exclude_self=st.booleans(),
    normalize=st.booleans(),
)
def test_as_by_torch(
    a: list[int], b: list[int] | None, ignored: int | None, exclude_self: bool, normalize: bool
) -> None:
    with torch.device(DEVICE):
        x, labels = torch.randn(len(a), 3), torch.tensor(a)
        y = others = None
        if b is not None:
            y, others = torch.randn(len(b), 3), torch.tensor(b)
        check(x, y, labels, others, ignored, exclude_self, normalize)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("n", [1, 127, 128, 129])
def test_paired_by_index(n: int, exclude_self: bool) -> None:
    check(torch.randn(n, 5), torch.randn(n, 5), None, None, None, exclude_self, True)


@pytest.mark.parametrize("classes", [1, 7, 300])
def test_several_blocks_of_rows(classes: int) -> None:
    labels, others = torch.randint(classes, (300,)), torch.randint(classes, (190,))
    labels[::9] = -100
    others[::5] = -100
    x, y = torch.randn(300, 70), torch.randn(190, 70)
    check(x, None, labels, None, -100, True, True)
    check(x, y, labels, others, -100, False, True)
    check(x, y, torch.full_like(labels, -100), others, -100, False, True)
    check(x, y, labels, torch.full_like(others, 3), None, False, False)


@pytest.mark.parametrize("d", [1, 31, 64, 129])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_of_all_sizes(dtype: torch.dtype, d: int) -> None:
    x = torch.randn(40, d)
    x[3], x[5], x[7, 0], x[9, 0] = 0, 5e-13, torch.nan, torch.inf
    x[11] *= 1e-20
    labels = torch.arange(40) % 5
    labels[7:9] = -100
    check(x.to(dtype), None, labels, None, -100, True, True)
    labels[7:9] = 1
    check(x.to(dtype), None, labels, None, -100, True, True)


def test_only_the_relation() -> None:
    x, labels = torch.randn(5, 3), torch.tensor([2, 1, 2, 0, 1])
    positions = torch.empty(5, 5, dtype=torch.int64)
    cuda_kernels.installed().module.sort_by_label(
        x.data_ptr(), "float32", 5, 3, labels.data_ptr(), None, 0, None, True, False,
        tuple([row.data_ptr() for row in positions]), None, None, 0, 1, None,
        cuda_kernels.stream_of(x),
    )  # fmt: skip
    assert torch.equal(
        positions,
        intervals._by_torch(x, None, labels, None, None, True, False, torch.float64)[0],
    )
