"""Names in `pairops/`: words that docs/design.md has a better one for, and classes of one name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.project import ROOT

# Each with the word to use in its place, or words where it had several meanings.
BETTER = {
    "across": "transposed",
    "alive": "tensors, mask",
    "arrange": "pack",
    "conclude": "finalize",
    "exactly": "no_autocast",
    "free": "full (a tile)",
    "gather": "forward; a term's statistic",
    "gathers": "forward; accumulators",
    "hi": "pos_end",
    "kept": "valid, selected, saved",
    "lanes": "columns",
    "lo": "pos_begin",
    "masked": "partial (a tile)",
    "met": "partner_tensors, synchronized",
    "owed": "gradient",
    "own": "self_index",
    "owned": "owner_tensors, terms",
    "passing": "blocks",
    "places": "inverse_permutation, positions",
    "planes": "tile masks",
    "relate": "sort_by_label",
    "roles": "owner and partner views",
    "taken": "terms_for_engine",
    "told": "fingerprint, descriptor",
    "untraced": "skip_compile",
    "weigh": "backward",
    "wide": "at_least_float32",
    "words": "numbers",
}
WHOLE = {
    "order_x": "permutation_x",
    "order_y": "permutation_y",
    "keep_x": "valid_x",
    "keep_y": "valid_y",
}
OF_TORCH = {"all_gather", "gather", "masked_fill", "masked_fill_"}  # as attributes only
OF_OTHERS = {"break_long_words"}  # keywords of the standard library
# Keywords of public functions: everywhere, and in one file.
PUBLIC = {"own_negatives", "gather_across_devices", "gather_with_grad"}
PUBLIC_IN = {("losses/alignment.py", "own")}
COMPILED = {"native", "_native", "module"}  # whose attributes are named in csrc/
APART = ("compat",)  # whose classes have the names of pytorch-metric-learning


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            owner = node.value
            named = getattr(owner, "attr", getattr(owner, "id", None))
            if node.attr not in OF_TORCH and named not in COMPILED:
                yield line, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.arg | ast.keyword) and node.arg not in OF_OTHERS:
            yield line, node.arg or ""
        elif isinstance(node, ast.ImportFrom):
            yield from [(line, part) for part in (node.module or "").split(".")]
        elif isinstance(node, ast.alias):
            yield from [(line, part) for part in (node.asname or node.name).split(".")]
        elif isinstance(node, ast.Global | ast.Nonlocal):
            yield from [(line, name) for name in node.names]


def parts(name: str) -> set[str]:
    """The words of an identifier, in either way of joining them."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def faults(root: Path) -> list[str]:
    found = []
    classes = defaultdict(list)
    for path in sorted((root / "pairops").rglob("*.py")):
        file = path.relative_to(root)
        tree = ast.parse(path.read_text())
        for line, name in [(1, path.stem), *identifiers(tree)]:
            if name in PUBLIC or ("/".join(file.parts[1:]), name) in PUBLIC_IN:
                continue
            instead = [BETTER[word] for word in sorted(parts(name) & set(BETTER))]
            instead += [WHOLE[name]] if name in WHOLE else []
            if instead:
                found.append(f"{file}:{line}: {name}; say {', '.join(instead)}")
        if file.parts[1] not in APART:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    classes[node.name].append(f"{file}:{node.lineno}")
    found += [f"two classes {name}: {', '.join(at)}" for name, at in classes.items() if len(at) > 1]
    return found


def test_names_say_what_they_mean() -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(own_first): ...", "own_first; say self_index"),
        ("x.relation.order_x", "order_x; say permutation_x"),
        ("from a.relate_at_once import b", "relate_at_once; say sort_by_label"),
        ("class ToldTwice: ...", "ToldTwice; say fingerprint, descriptor"),
        ("f(met=True)", "met; say partner_tensors, synchronized"),
        ("class A: ...\nclass B:\n    class A: ...", "two classes A"),
    ],
)
def test_a_word_is_found(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "pairops").mkdir()
    (tmp_path / "pairops" / "module.py").write_text(text)
    (fault,) = faults(tmp_path)
    assert expected in fault


def test_words_of_torch_and_of_the_extension_are_theirs(tmp_path: Path) -> None:
    (tmp_path / "pairops").mkdir()
    text = "s.gather(1, at).masked_fill_(m, 0); extension.native.relate(); kernels.module.relate()"
    (tmp_path / "pairops" / "module.py").write_text(text)
    assert faults(tmp_path) == []
