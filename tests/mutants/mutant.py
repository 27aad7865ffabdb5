"""One wrong edit of the package, and the tests that are asked about it first."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A mistake that somebody could make: `old`, which stands once in `file`, replaced by `new`."""

    name: str
    file: str  # from the root of the repository
    old: str
    new: str
    likely: tuple[str, ...]  # test files, or tests of a file, that probably catch it

    @property
    def compiled(self) -> bool:
        return self.file.startswith("csrc/")

    def applied(self, root: Path) -> str:
        """The whole text of the file with the edit."""
        text = (root / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has its text {text.count(self.old)} times")
        return text.replace(self.old, self.new)
