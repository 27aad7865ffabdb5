"""The notebooks of docs/notebooks, whose code runs here without a kernel.

PYTHONPATH=tests python -m support.notebooks writes into them what their code prints.
"""

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from support.project import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def outputs(code: str, known: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell prints and the value of its last line, as a notebook has them."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), known)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), known) if last else None
    found: list[dict[str, Any]] = []
    if text := printed.getvalue():
        found.append({"name": "stdout", "output_type": "stream", "text": lines(text)})
    if value is not None:
        shown = {"data": {"text/plain": lines(repr(value))}, "execution_count": None}
        found.append(shown | {"metadata": {}, "output_type": "execute_result"})
    return found


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def executed(path: Path) -> dict[str, Any]:
    """A notebook with the outputs that its cells have in a fresh namespace."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = outputs("".join(cell["source"]), known)
    return notebook


def written(notebook: dict[str, Any]) -> str:
    """The text of its file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in NOTEBOOKS:
        path.write_text(written(executed(path)), encoding="utf-8")
