"""float32 on a CPU below the precision "highest" of torch."""

import pytest
import torch

from support.float32_levels import LEVELS, error
from support.on_cpu import device as device


@pytest.mark.parametrize("level", LEVELS)
def test_the_engine_of_a_cpu_has_the_same_bits(level: str) -> None:
    assert error(level, "cpu") == error("highest", "cpu") < 2e-6
    assert torch.get_float32_matmul_precision() == "highest"


def test_torch_s_products_are_float32_at_highest() -> None:
    assert error("highest", "blockwise") < 2e-6
