"""Names in csrc/: one word for one thing, and none of the words that those took the place of."""

import re
from pathlib import Path

import pytest

from support.project import ROOT

CSRC = ROOT / "csrc"

# What a name must not have as a part, and what is said instead.
INSTEAD = {
    "told": "descriptor, fingerprint, compile-time parameter",
    "met": "what it is of: holds, partner",
    "alive": "has_pairs",
    "passing": "ring",
    "lanes": "Vector, vector_width",
    "word words": "floats, bits, stride",
    "own owned": "self, self_index",
    "place places placed": "position, inverse_permutation, address, index",
    "owed taken": "what it is of",
    "plane planes": "bits_stride",
    "role roles": "owner, partner",
    "across": "transposed, offset",
    "relate related": "sort_by_label",
    "arrange arranged": "pack, packed",
    "conclude concluded": "finalize, finalized",
    "gather gathers gathered": "forward, accumulator",
    "weigh weighs weighed weighing": "backward",
    "keep keeps kept": "valid, n_valid, has, saved, found",
    "lo hi": "pos_begin, pos_end",
    "order ordered": "permutation, wavefront",
    "free masked": "full, partial",
    "push pushed": "update",
    "again": "update_from",
    "fill filled fills": "neutral, bound, load",
}
WORDS = {word: instead for words, instead in INSTEAD.items() for word in words.split()}

# The standard library's words, and a pair function's, whose key the Python twin shares.
OTHERS = re.compile(r"std::\w+|\bpush_back\b|\bmemory_order_\w+|\bCirclePush\b")
NOT_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)+'""", re.S)
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def blank(match: re.Match[str]) -> str:
    """As many lines, without anything on them."""
    return "\n" * match[0].count("\n") or " "


def refused(text: str) -> list[str]:
    """Names in C++ text that have such a word, each with its line."""
    found = []
    code = OTHERS.sub(blank, NOT_CODE.sub(blank, text))
    for number, line in enumerate(code.splitlines(), 1):
        for name in re.findall(r"[A-Za-z_]\w*", line):
            words = {part.lower() for part in PARTS.findall(name)} & WORDS.keys()
            found += [f"{number}: {name} (say {WORDS[word]})" for word in sorted(words)]
    return found


def files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu"})


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(CSRC)))
def test_names_have_none_of_the_words_that_others_took_the_place_of(path: Path) -> None:
    name = path.relative_to(ROOT)
    assert not refused(path.read_text()), f"{name}:\n" + "\n".join(refused(path.read_text()))
    assert not {part for part in PARTS.findall(path.stem) if part in WORDS}, name


def test_such_a_name_is_found() -> None:
    """With its line; neither comments and strings nor the standard library count."""
    text = (
        '// places\n/* lo\n*/ int keptRows = 1;\nauto s = "kept"; std::free(v.push_back(0));\nlo_'
    )
    assert [line.partition(" (")[0] for line in refused(text)] == ["3: keptRows", "5: lo_"]
