"""Pairs from Python packages: the first sentence of a docstring, and the code below it."""

import ast
import gc
import os
import random
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

# Tests are a third of the code, with hardly a docstring. A site-packages inside a folder is either
# a folder of its own in the list or belongs to another environment.
PASSED_OVER = {"test", "tests", "testing", "site-packages", "dist-packages", "__pycache__"}
LEAST_WORDS = 4  # of a docstring: by "Run the module." nothing can be found
LEAST_PIECES = 6  # of code, different ones: `return self._shape` is anyone's
TESTED_SHARE = 1 / 8

WORD = re.compile(r"[A-Za-z]+|[0-9]+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*\[(])")


@dataclass(frozen=True)
class Pair:
    """One function: what it says that it does, how it does it, and where it stands."""

    docstring: str
    code: str
    name: str
    file: str  # from the folder that was searched, with slashes
    line: int

    @property
    def group(self) -> str:
        """What goes into training or into the test as a whole: all copies of one file.

        pip/_vendor/rich/table.py is rich/table.py of a slightly different version.
        """
        return "/".join(self.file.split("/")[-2:])


def installed() -> list[Path]:
    """The standard library and the packages installed beside it."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return list(dict.fromkeys(Path(paths[name]).resolve() for name in names))


def sources(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """All .py files below the folders in a fixed order, each with its path from its folder."""
    found = []
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner[:] = sorted(n for n in inner if n not in PASSED_OVER and not n.startswith("."))
            for name in sorted(names):
                path = Path(place, name)
                if path.suffix == ".py":
                    found.append((path.relative_to(folder).as_posix(), path))
    return found


def functions(body: Sequence[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions and methods, also behind an `if` or a `try`; what is inside one is its code."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield statement
            case ast.ClassDef():
                yield from functions(statement.body)
            case ast.If() | ast.Try():
                yield from functions([*statement.body, *statement.orelse])


def first_sentence(docstring: str) -> str:
    paragraph = docstring.strip().split("\n\n")[0]
    return SENTENCE_END.split(" ".join(paragraph.split()))[0]


def code_of(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]) -> str:
    """The lines below the docstring, without the function's name.

    The name is most often the docstring in short. With it, also where the code says it once more,
    finding the code would be a matter of comparing strings.
    """
    code = "\n".join(lines[function.body[0].end_lineno : function.body[-1].end_lineno])
    if function.name in code:
        code = re.sub(rf"\b{function.name}\b", "", code)
    return code


def pairs_of(text: str, file: str) -> Iterator[Pair]:
    """The pairs of one file; a SyntaxError and its like are the caller's."""
    lines = text.split("\n")
    for function in functions(ast.parse(text).body):
        docstring = ast.get_docstring(function, clean=False)
        if docstring is None or len(function.body) < 2:
            continue
        if function.body[1].lineno == function.body[0].end_lineno:  # """Says it."""; return 1
            continue
        sentence, code = first_sentence(docstring), code_of(function, lines)
        if len(WORD.findall(sentence)) < LEAST_WORDS:
            continue
        if len(set(WORD.findall(code))) < LEAST_PIECES:
            continue
        yield Pair(sentence, code, function.name, file, function.lineno)


def read(folders: Sequence[Path], share: float = 1.0) -> list[Pair]:
    """The pairs of a share of the files that can be read, in the same order every time."""
    found: list[Pair] = []
    files = sources(folders)
    files = random.Random(0).sample(files, round(share * len(files))) if share < 1 else files
    # A page of code is some thousand objects, and none of them is garbage before the next file: the
    # collector would look at all of them again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
            for name, path in tqdm(files, desc="reading", unit="file"):
                try:
                    text = path.read_text(encoding="utf-8-sig")
                    if '"""' in text or "'''" in text:
                        found.extend(pairs_of(text, name))
                except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                    continue  # not for this Python, not UTF-8, not ours to read, nested too deeply
    finally:
        if collecting:
            gc.enable()
    return found


def without_doubles(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pair of each docstring and of each code; case, signs and spaces do not count.

    Where two functions have one docstring, the code of each answers the other's question too: a
    loss would push away, and a measure count as an error, what is right.
    """
    kept = []
    docstrings: set[str] = set()
    codes: set[str] = set()
    for pair in pairs:
        docstring, code = (" ".join(WORD.findall(t)).lower() for t in (pair.docstring, pair.code))
        if docstring not in docstrings and code not in codes:
            kept.append(pair)
            docstrings.add(docstring)
            codes.add(code)
    return kept


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """For training and for the test: by file, so that none is in both; the same every time."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        tested = zlib.crc32(pair.group.encode()) < TESTED_SHARE * 2**32
        sides[tested].append(pair)
    return sides
