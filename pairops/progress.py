"""Progress of a long call, shown on a terminal."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(
    progress: bool | None, total: int, desc: str, unit: str
) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of units that are done.

    progress: None shows a bar on a terminal, if tqdm is installed; True shows it anywhere, False
    nowhere. A call of less than two seconds shows none.
    """
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as error:
        if progress:
            raise ImportError("progress is True, which needs tqdm: pip install tqdm") from error
        progress = False
    if progress is False:
        yield lambda _: None
        return
    hidden = None if progress is None else False  # None: tqdm hides it where there is no terminal
    with tqdm(total=total, desc=desc, unit=unit, disable=hidden, delay=2) as shown:
        yield shown.update
