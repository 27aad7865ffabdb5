"""The pages of the site: the guides of docs/, and one for each loss from its docstring.

python docs/site/pages.py FOLDER writes them; `make docs` then builds the site of them.
"""

import contextlib
import inspect
import io
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batch
import formula

import pairops
from pairops import losses
from pairops.nn.classes import class_name
from pairops.ops.pairs.signatures import arguments, sections
from support.documentation_tables import table

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def sentence_and_rest(loss: Callable[..., Any]) -> tuple[str, str]:
    """Return the first sentence of a docstring in one line, and what follows up to `Args:`."""
    text = (inspect.getdoc(loss) or "").partition("\nArgs:\n")[0]
    head, _, rest = text.partition("\n\n")
    return " ".join(head.split()), rest.strip()


def of_arguments(loss: Callable[..., Any]) -> str:
    """A row for each argument: its name, its default, what it is."""
    text = inspect.getdoc(loss) or ""
    known = arguments(text, "Args") | arguments(text, "Keyword Args")
    rows = []
    for name, parameter in inspect.signature(loss).parameters.items():
        default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        rows.append([f"`{name}`", default, " ".join(known.get(name, "").split())])
    return table(["argument", "default", "what it is"], rows)


def signature(loss: Callable[..., Any]) -> str:
    """The call with the arguments that must be given, and those that are the loss's own."""
    shared = losses.objective.registration.SHARED
    shown, star = [], False
    for name, parameter in inspect.signature(loss).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if name in shared:
                continue
            if not star:
                shown.append("*")
                star = True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        shown.append(f"{name}{default}")
    call = f"pairops.{loss.__name__}({', '.join([*shown, '...'])})"
    return "\n".join(textwrap.wrap(call, 90, subsequent_indent="    ", break_long_words=False))


def explained(loss: Callable[..., Any]) -> str:
    """What the loss computes of the common batch, and who serves it on a CPU."""
    given, said = batch.given(loss), io.StringIO()
    x = given.pop(next(iter(given)))
    try:
        with contextlib.redirect_stdout(said):
            pairops.explain(loss, x, **given)
    except ValueError as error:
        return str(error)
    return said.getvalue().strip()


def of_loss(name: str, folder: Path) -> str:
    loss = losses.LOSSES[name]
    sentence, rest = sentence_and_rest(loss)
    written, remark = formula.split(sentence)
    why = batch.draw(loss, folder / "weights" / f"{name}.svg")
    parts = [f"# {name}", formula.mathml(written)]
    if remark:
        parts.append(f"{remark[0].upper()}{remark[1:].rstrip('.')}.")
    parts += [
        rest,
        f"```python\n{signature(loss)}\n```",
        f"As a Module: `pairops.nn.{class_name(name)}`.",
    ]
    parts.append("## The weight of a pair")
    if why is None:
        parts.append(f"![weight of each pair by its cosine](weights/{name}.svg)")
        parts.append(
            f"{batch.CLASSES} classes of {batch.EACH} rows; `pairops.pair_weights({name}, x, ...)` "
            "is the derivative of the loss by a pair's similarity, or by its distance. A weight "
            "below 0 pulls rows together; of a distance it pushes them apart."
        )
    else:
        parts.append(f"There is no picture: {why}.")
    parts += ["## Arguments", of_arguments(loss)]
    told = sections(inspect.getdoc(loss) or "")
    for title in ("Returns", "Source", "Differs from"):
        if title in told:
            parts += [f"## {title}", textwrap.dedent(told[title]).strip()]
    parts += ["## What is computed, and by whom on a CPU", f"```text\n{explained(loss)}\n```"]
    parts.append("Who serves it on a GPU: [what runs where](../losses.md#what-runs-where).")
    return "\n\n".join([part for part in parts if part]) + "\n"


def of_module(title: str, *names: str) -> str:
    return "\n\n".join([f"# {title}", *[f"::: {name}" for name in names]]) + "\n"


REFERENCE = {
    "primitive": (
        "The primitive",
        [
            f"pairops.{n}"
            for n in (
                "row_stats",
                "Pairs",
                "PositiveRows",
                "Term",
                "lse",
                "total",
                "lowest",
                "highest",
            )
        ]
        + [
            f"pairops.{n}"
            for n in ("partner", "table", "between", "Earlier", "Function", "pair_loss")
        ],
    ),
    "training": ("Training", ["pairops.cached_step", "pairops.CrossBatchMemory"]),
    "inspection": (
        "Looking inside",
        [
            f"pairops.{n}"
            for n in ("explain", "pair_weights", "mine", "estimate_memory", "engine", "set_engine")
        ],
    ),
    "retrieval": ("Retrieval", ["pairops.retrieval"]),
    "modules": ("Modules", ["pairops.nn.LossModule"]),
    "open_clip": ("compat.open_clip", ["pairops.compat.open_clip"]),
    "pml": ("compat.pml", ["pairops.compat.pml"]),
    "sentence_transformers": (
        "compat.sentence_transformers",
        ["pairops.compat.sentence_transformers"],
    ),
}


def of_notebook(path: Path) -> str:
    """The text of a notebook, its code, and below each cell what that printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            printed = "".join(output.get("text") or output["data"]["text/plain"])
            parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def copied(path: Path, folder: Path) -> None:
    """Copy a guide; what lies outside of docs is named, and is no link."""

    def kept(link: re.Match[str]) -> str:
        target = (path.parent / link[2].partition("#")[0]).resolve()
        inside = link[0].replace(".ipynb)", ".md)")  # a notebook is a page too
        return inside if target.is_relative_to(DOCS) else link[1]

    text = of_notebook(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    text = re.sub(r"\[([^\]]*)\]\(([^)]*)\)", kept, text)
    target = (folder / path.relative_to(DOCS)).with_suffix(".md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def front(folder: Path) -> None:
    """The README as the front page, with its links and pictures where they are here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](docs/README.md)", "](pages.md)").replace("](docs/", "](")
    text = re.sub(r"\[([^\]]*)\]\((?:CHANGELOG|CONTRIBUTING)\.md\)", r"\1", text)
    text = text.replace("](bench/results/ms-cpu.png)", "](ms-cpu.png)")
    # A page is called by its name here, and by its file in a clone.
    text = re.sub(
        r"\[docs/(\w+)(?:\.md)?\]\(", lambda file: f"[{file[1].replace('_', ' ')}](", text
    )
    text = re.sub(r"`(\w+_loss)`(?=,| \|)", r"[`\1`](loss/\1.md)", text)  # those of the table
    (folder / "index.md").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "bench/results/ms-cpu.png", folder / "ms-cpu.png")
    shutil.copy(DOCS / "site" / "site.css", folder / "site.css")


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    front(folder)
    for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]:
        if path != DOCS / "README.md":
            copied(path, folder)
    for path in [*DOCS.glob("*.png"), DOCS / "api.txt"]:
        shutil.copy(path, folder / path.name)
    copied(DOCS / "README.md", folder)
    (folder / "README.md").rename(folder / "pages.md")
    (folder / "loss").mkdir()
    for name in losses.LOSSES:
        (folder / "loss" / f"{name}.md").write_text(
            of_loss(name, folder / "loss"), encoding="utf-8"
        )
    (folder / "reference").mkdir()
    for name, (title, members) in REFERENCE.items():
        (folder / "reference" / f"{name}.md").write_text(
            of_module(title, *members), encoding="utf-8"
        )

    (folder.parent / "mkdocs.yml").write_text(configuration(folder), encoding="utf-8")


def configuration(folder: Path) -> str:
    """What mkdocs.yml says, and the list of pages."""
    tasks = [
        ("Supervised metric learning", "supervised"), ("Two towers", "two_towers"),
        ("False negatives", "false_negatives"), ("Several labels", "several_labels"),
        ("Numbers as labels", "numbers_as_labels"), ("Memory", "memory"),
        ("Several GPUs", "several_gpus"), ("Big batches", "big_batches"),
        ("Evaluation", "evaluation"), ("Your own loss", "own_loss"),
    ]  # fmt: skip
    guides = [
        ("Install", "install"), *[(title, f"guides/{name}") for title, name in tasks],
        ("Examples", "examples"), ("Notebook: quickstart", "notebooks/quickstart"),
        ("Notebook: from pytorch-metric-learning", "notebooks/from_pytorch_metric_learning"),
        ("Notebook: your own loss", "notebooks/own_loss"), ("Coming from", "coming_from"),
        ("Papers", "papers"),
        ("Training, in full", "training"), ("Several processes, in full", "distributed"),
        ("Retrieval, in full", "retrieval"), ("Questions", "faq"),
    ]  # fmt: skip
    inside = [
        ("Design", "design"), ("Engines", "engines/README"), ("cpu", "engines/cpu"),
        ("cuda", "engines/cuda"), ("triton", "engines/triton"),
        ("blockwise, dense", "engines/blockwise_and_dense"), ("Numerics", "numerics"),
        ("Benchmarks", "benchmarks"), ("Testing", "testing"),
    ]  # fmt: skip
    nav: list[Any] = [
        {"pairops": "index.md"},
        {"Guides": [{title: f"{name}.md"} for title, name in guides]},
        {"Losses": [{"All": "losses.md"}, *[f"loss/{name}.md" for name in sorted(losses.LOSSES)]]},
        {"Reference": [{title: f"reference/{name}.md"} for name, (title, _) in REFERENCE.items()]},
        {"Inside": [{title: f"{name}.md"} for title, name in inside]},
        {"All pages": "pages.md"},
    ]
    given = {
        "INHERIT": str(DOCS / "site" / "mkdocs.yml"), "docs_dir": str(folder),
        "site_dir": str(ROOT / "build" / "docs"), "nav": nav,
    }  # fmt: skip
    return json.dumps(given, indent=1)  # which is YAML too


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
