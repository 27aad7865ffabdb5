"""What a recipe is compiled with can be read, and changes in nobody's absence."""

import pytest

from pairops.ops.engines import triton_engine

if triton_engine.MISSING is not None:
    pytest.skip("needs triton", allow_module_level=True)

from support import triton_text


def test_the_text_that_is_written_for_ms_loss() -> None:
    renew = "to renew it: PYTHONPATH=tests python -m support.triton_text"
    assert triton_text.generated() == triton_text.FILE.read_text(), renew
