"""The options that both trainings have: where to look for code, and where the picture goes."""

import argparse
from pathlib import Path

from docstrings import installed


def parse(
    parser: argparse.ArgumentParser, picture: str, arguments: list[str] | None
) -> argparse.Namespace:
    """Add --folders and --output to the parser's options, and read and check these two.

    picture: the name of the picture where --output is not given.
    """
    parser.add_argument(
        "--folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        default=argparse.SUPPRESS,  # too long to be printed
        help="where to look for .py files, instead of the standard library and what is installed",
    )
    parser.add_argument("--output", type=Path, default=picture, help="the picture's path")
    options = parser.parse_args(arguments, argparse.Namespace(folders=installed()))
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"--folders must name folders, and {folder} is none")
    if options.output.is_dir():
        parser.error(f"--output must name a file, and {options.output} is a folder")
    return options
