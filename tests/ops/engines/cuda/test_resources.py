"""The program that reads what the kernels take of a GPU: it sees spills, by kernel and GPU, and
products that may be fused into sums."""

import pytest

pytest.importorskip("triton")

from support.cuda_contraction import unrounded
from support.cuda_resources import kernels_of

DUMP = """
Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN7pairops4cuda1fEv:
  REG:24 STACK:104 SHARED:0 LOCAL:0 CONSTANT[0]:364 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Function _ZN7pairops4cuda1fEv:
  REG:32 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:364 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_a_spill_is_local_memory() -> None:
    found = [(k.architecture, k.registers, k.local) for k in kernels_of(DUMP)]
    assert found == [("80", 24, 104), ("90a", 32, 0)]


PTX = """
.visible .entry _ZN5ShapeILi64ELi4ELi32ELi2ELi0EEE(
	mul.rn.f32 	%f1, %f2, %f3;
	add.rn.f32 	%f4, %f1, %f5;
	fma.rn.f32 	%f6, %f1, %f5, %f4;
}
.visible .entry _ZN5ShapeILi128ELi4ELi32ELi2ELi64EEE(
	mul.f32 	%f1, %f2, %f3;
	sub.ftz.f32 	%f4, %f1, %f5;
}
.visible .entry _ZN5ShapeILi64ELi8ELi64ELi1ELi0EEE(
	mul.f32 	%f1, %f2, %f3;
}
"""


def test_what_is_not_rounded_may_be_fused() -> None:
    """Of two parts alone; the source's own fma is meant."""
    assert list(unrounded(PTX).values()) == [0, 2]
