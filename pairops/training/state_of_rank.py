"""State of one rank: tensors that a Module moves, saves and copies, but no buffers."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Self


class StateOfRank(nn.Module):
    """A Module with tensors of its rank alone: moved, saved and loaded with it, but no buffers.

    The attributes named in `_kept` are tensors without gradient that `.to()` moves, `state_dict`
    has, and `load_state_dict` fills. DistributedDataParallel overwrites buffers with those of the
    first rank before every forward pass, and FullyShardedDataParallel when it begins: hence they
    are none. Copies and pickles are those of any attribute.
    """

    _state_names: ClassVar[tuple[str, ...]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._state_names:
            setattr(self, name, fn(getattr(self, name)))
        return self

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Return the buffers; of this Module alone, the tensors of this rank too.

        What moves, saves or loads one Module after the other asks with recurse=False, and gets
        them. What synchronises ranks asks for a tree of Modules, and does not.

        Args:
            prefix: the text before every name.
            recurse: True for a tree of Modules, False for this Module alone.
            remove_duplicate: as in `torch.nn.Module`.
        """
        buffers = super().named_buffers(prefix, recurse, remove_duplicate)
        if recurse:
            return buffers
        begin = prefix + "." * bool(prefix)
        return chain(buffers, [(begin + name, getattr(self, name)) for name in self._state_names])

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(
            {prefix + name: getattr(self, name).detach() for name in self._state_names}
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in self._state_names:
            key, held = prefix + name, getattr(self, name)
            if key not in state_dict:
                missing_keys.extend([key] * strict)
                continue
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            given = state_dict[key]
            if not isinstance(given, Tensor) or given.shape != held.shape:
                kind = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
                error_msgs.append(f"{key} is {kind}; it must be a tensor {tuple(held.shape)}")
            elif local_metadata.get("assign_to_params_buffers", False):
                setattr(self, name, given.detach())
            else:
                held.copy_(given)
