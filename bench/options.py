"""The options of commands: argument types, the folder of results, the extension that some need."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

RESULTS = Path(__file__).parent / "results"


def at_least(least: int) -> Callable[[str], int]:
    """An argument type; argparse turns its ValueError into a message that quotes the argument."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return whole_number


def extension() -> ModuleType:
    """pairops._native; a tree that was never built ends the command with that reason."""
    try:
        from pairops import _native
    except ImportError as error:
        sys.exit(f"this command measures the engine cpu, which cannot be imported: {error}")
    return _native
