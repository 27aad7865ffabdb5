"""A device without float64, such as Apple's MPS, played by the CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WithoutFloat64(TorchDispatchMode):
    """Within this context nothing makes a float64 tensor, the bodies of pairops' ops included."""

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if op.namespace == "pairops":
            with self:
                body = torch._C.DispatchKey.CompositeExplicitAutograd
                result = op._op_dk(body, *args, **(kwargs or {}))
        else:
            result = op(*args, **(kwargs or {}))
        for z in tree_leaves(result):
            if isinstance(z, torch.Tensor) and z.dtype == torch.float64:
                raise TypeError(f"this device has no float64, but {op} made a {tuple(z.shape)}")
        return result
