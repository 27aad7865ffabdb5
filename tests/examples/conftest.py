"""The examples run on the CPU."""

from collections.abc import Callable
from types import ModuleType

import pytest

from support.on_cpu import device as device


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[ModuleType, list[str]], str]:
    """What a program says when it refuses its options."""

    def said(program: ModuleType, arguments: list[str]) -> str:
        with pytest.raises(SystemExit):
            program.main(arguments)
        return capsys.readouterr().err

    return said
