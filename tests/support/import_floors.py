"""The floors of the package: who imports whom, sub-package by sub-package, read from the sources.

python tests/support/import_floors.py fails at a cycle, of sub-packages or of files, above eight
floors, and at a module of pairops/ that stands beside the folders.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_FLOORS = 8
BESIDE_FOLDERS = {"__init__.py", "__main__.py", "progress.py", "_native.pyi", "py.typed"}

Imports = Mapping[str, set[str]]


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, module: str, deferred: bool) -> Iterator[str]:
    """What a file imports, as absolute names of modules or of what is in them.

    deferred: also within functions, where a cycle of files does no harm.
    """
    tree = ast.parse(path.read_text())
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.Import):
            yield from [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            source = ".".join([*parents, *filter(None, [node.module])])
            source = source if node.level else node.module or ""
            yield from [f"{source}.{name.name}" for name in node.names]


def files(root: Path, deferred: bool) -> Imports:
    """Every module of pairops with the modules of pairops that it imports."""
    paths = {module_of(path, root): path for path in sorted((root / "pairops").rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = {name for name in imported(path, module, deferred) if name.startswith("pairops")}
        known = {name if name in paths else name.rpartition(".")[0] for name in names}
        found[module] = (known & set(paths)) - {module}
    return found


def sub_package(module: str) -> str:
    """pairops.losses, pairops.ops.engines: the folder, as deep as house rules speak of it."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1:2] == ["ops"] else 2])


def sub_packages(modules: Imports) -> Imports:
    found: dict[str, set[str]] = {}
    for module, others in modules.items():
        own = sub_package(module)
        found.setdefault(own, set()).update({sub_package(other) for other in others} - {own})
    return found


def cycle(graph: Imports) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def floors(graph: Imports) -> list[list[str]]:
    """Floor 0 imports nothing of the package; each other one stands on the floor below."""
    floor: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        floor[name] = 1 + max([floor[other] for other in graph.get(name, ())], default=-1)
    return [
        sorted(name for name in floor if floor[name] == level)
        for level in range(1 + max(floor.values()))
    ]


def faults(root: Path) -> list[str]:
    beside = {path.name for path in (root / "pairops").iterdir() if path.suffix in (".py", ".pyi")}
    found = [f"pairops/{name} stands beside the folders" for name in beside - BESIDE_FOLDERS]
    modules, packages = files(root, deferred=False), sub_packages(files(root, deferred=True))
    for what, graph in (("files", modules), ("sub-packages", packages)):
        if circle := cycle(graph):
            found.append(f"a cycle of {what}: {' -> '.join(circle)}")
    if not cycle(packages) and len(floors(packages)) > MOST_FLOORS:
        found.append(f"{len(floors(packages))} floors; there may be {MOST_FLOORS}")
    return found


def main() -> int:
    found = faults(ROOT)
    for line in found:
        print(line)
    packages = sub_packages(files(ROOT, deferred=True))
    if not cycle(packages):
        for level, names in reversed(list(enumerate(floors(packages)))):
            print(f"floor {level}: {', '.join(names)}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
