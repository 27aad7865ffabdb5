"""Facts about devices: dtypes, precision, and how work is divided among a GPU's processors."""

import contextlib
import functools

import torch
from torch import Tensor


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def has_float64(device: torch.device) -> bool:
    """Return whether this device knows float64: Apple's MPS, say, does not."""
    try:  # Ask the device each time: a cached answer would cost as much to look up.
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def widest_float(device: torch.device) -> torch.dtype:
    """Return the dtype of scales, and of sums over ranks or queries: float64, else float32."""
    return torch.float64 if has_float64(device) else torch.float32


def float32_level() -> str:
    """Return "highest", "high" or "medium", by whichever of torch's settings is in use."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to mix this setting with its newer one
        chosen = torch.backends.cuda.matmul.fp32_precision
        return {"tf32": "high", "bf16": "medium"}.get(chosen, "highest")


# As torch.compiler.assume_constant_result does, which would import all of the compiler.
capability._dynamo_marked_constant = True  # type: ignore[attr-defined]
float32_level._dynamo_marked_constant = True  # type: ignore[attr-defined]
widest_float._dynamo_marked_constant = True  # type: ignore[attr-defined]


def on_device(z: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make z's device the current one within a context, since kernels are launched on that."""
    return torch.cuda.device(z.device) if z.is_cuda else contextlib.nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many blocks run at a time at least; on a CPU, for tests, a small number."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def blocks_of_a_processor(warps: int) -> int:
    """Return how many blocks of so many warps a processor runs at a time, if a thread has all the
    registers that one may have."""
    return max(1, 8 // warps)


_WAVES = 8  # of blocks; where there are more of them, the last one hardly counts
_BESIDE = 2  # tiles that a block could visit while it begins, ends, and its results are merged


@functools.lru_cache(maxsize=1024)
def splits(blocks: int, tiles: int, at_a_time: int, bytes_each: int, room: int = 32 << 20) -> int:
    """Return the number of parts of the columns with which a sweep takes the fewest tiles' time.

    Blocks run in waves, `at_a_time` of them, and a wave takes as long as the tiles of a part. So a
    number is good if the waves are almost full, and of equal ones the smallest is the best.

    bytes_each: of one part's results, which take no more than `room` together.
    """
    most = min(tiles, room // max(bytes_each, 1), _WAVES * at_a_time // max(blocks, 1))

    def time(parts: int) -> int:
        waves = -(-blocks * parts // at_a_time)
        return waves * (-(-tiles // parts) + _BESIDE)

    return min(range(1, max(1, most) + 1), key=time)
