"""The compiled engine of the CPU runs on it, with two threads."""

from collections.abc import Iterator

import pytest
import torch

from support.on_cpu import device as device


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
