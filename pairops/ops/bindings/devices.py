"""What is known of a device: its numbers, and of a GPU how work is divided among its processors."""

import contextlib
import functools

import torch
from torch import Tensor


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def has_float64(device: torch.device) -> bool:
    """Does this device know float64? Apple's MPS, say, does not."""
    try:  # Asked of the device each time: an answer kept would cost as much to look up.
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def widest_float(device: torch.device) -> torch.dtype:
    """Of scales, and of sums over ranks or queries: float64, float32 where a device has no more."""
    return torch.float64 if has_float64(device) else torch.float32


def float32_level() -> str:
    """ "highest", "high" or "medium", by whichever of torch's settings is in use."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's newer setting has been touched, and it refuses to mix the two
        chosen = torch.backends.cuda.matmul.fp32_precision
        return {"tf32": "high", "bf16": "medium"}.get(chosen, "highest")


# What torch.compiler.assume_constant_result does, which imports all of the compiler to do it.
capability._dynamo_marked_constant = True  # type: ignore[attr-defined]
float32_level._dynamo_marked_constant = True  # type: ignore[attr-defined]
widest_float._dynamo_marked_constant = True  # type: ignore[attr-defined]


def on_device(z: Tensor) -> contextlib.AbstractContextManager[object]:
    """Kernels are launched on the current device, which need not be that of z."""
    return torch.cuda.device(z.device) if z.is_cuda else contextlib.nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    """How many blocks run at a time at least; where kernels run on the CPU as few as cut."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits(blocks: int, tiles: int, processors: int, bytes_each: int, room: int = 32 << 20) -> int:
    """Into how many parts the columns are cut so that every processor has two blocks.

    bytes_each: of one part's results, of which there is to be no more than `room`.
    """
    wanted = (2 * processors + blocks - 1) // max(blocks, 1)
    return max(1, min(wanted, tiles, room // max(bytes_each, 1)))
