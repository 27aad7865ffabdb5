"""Processes that are the ranks of gloo groups: started once, given functions to run by name."""

import contextlib
import importlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

WORLD = 4
TIMEOUT = 60  # seconds that a rank waits for another

# A rank is a copy of one process that has imported what all of them need: seconds less for each.
multiprocessing.set_forkserver_preload(["torch.distributed", "torch.testing", "pairops"])


class Ranks:
    """WORLD processes. Group W holds the first W of them."""

    def __init__(
        self, world: int = WORLD, timeout: float = TIMEOUT, method: str = "forkserver"
    ) -> None:
        """method: "spawn" for processes that read this one's environment as they start."""
        context = multiprocessing.get_context(method)
        self.folder = tempfile.TemporaryDirectory()
        store = os.path.join(self.folder.name, "store")
        self.pipes, self.processes, self.whole = [], [], True
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world, store, timeout, there), daemon=True
            )
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, size: int, function: str, per_rank: Sequence[Any], wait: float = 30) -> Any:
        """What `module:function(group, given)` returned on each rank of the group of `size`.

        An exception comes back as its type's name and its text.
        """
        assert self.whole, "a rank has not returned from an earlier call"
        for rank in range(size):
            self.pipes[rank].send((size, function, per_rank[rank]))
        found = [pipe.recv() if pipe.poll(wait) else "nothing yet" for pipe in self.pipes[:size]]
        self.whole = "nothing yet" not in [got for got in found if isinstance(got, str)]
        assert self.whole, f"{function} does not return on every rank: {found}"
        return found

    def stop(self) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(10)
            process.kill()
        self.folder.cleanup()


def _serve(rank: int, world: int, store: str, timeout: float, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    groups = {size: dist.new_group(list(range(size))) for size in range(1, world)}
    groups[world] = dist.group.WORLD
    while (task := pipe.recv()) is not None:
        size, name, given = task
        module, function = name.split(":")
        try:
            found = getattr(importlib.import_module(module), function)(groups[size], given)
        except Exception as error:
            if os.environ.get("PAIROPS_TEST_TRACEBACKS"):
                traceback.print_exc()
            found = type(error).__name__, str(error)
        pipe.send(found)
    dist.destroy_process_group()
