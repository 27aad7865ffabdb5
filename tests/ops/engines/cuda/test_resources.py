"""The program that reads what the kernels take of a GPU: it sees spills, by kernel and GPU."""

import pytest

pytest.importorskip("triton")

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
