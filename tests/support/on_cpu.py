"""The device of tests that are about the CPU, or choose a device themselves.

A folder's conftest.py, or a module, imports `device` in place of that of tests/conftest.py.
"""

import pytest


@pytest.fixture
def device() -> str:
    return "cpu"
