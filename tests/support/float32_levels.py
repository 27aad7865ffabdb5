"""What float32 gradients on a CPU lose below the precision "highest" of torch.

PYTHONPATH=tests python -m support.float32_levels

prints the numbers of docs/numerics.md.
"""

import torch

import pairops
from support.error_rule import distance

LEVELS = ["highest", "high", "medium"]


def error(level: str, engine: str, n: int = 300, d: int = 64) -> float:
    """Of the gradient of `supcon_loss`, the largest error of an entry, of the largest entry."""
    torch.manual_seed(0)
    x, labels = torch.randn(n, d), torch.randint(0, 12, (n,))

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        leaf = x.to(dtype).requires_grad_()
        with pairops.engine(engine):
            return torch.autograd.grad(pairops.supcon_loss(leaf, labels), leaf)[0]

    truth = gradient(torch.float64)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        return distance(gradient(torch.float32), truth) / float(truth.abs().max())
    finally:
        torch.set_float32_matmul_precision(before)


def main() -> None:
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"| engine | {' | '.join(LEVELS)} |")
    print("|---|--:|--:|--:|")
    for engine in ("cpu", "blockwise", "dense"):
        print(f"| {engine} | {' | '.join(f'{error(level, engine):.1e}' for level in LEVELS)} |")


if __name__ == "__main__":
    main()
