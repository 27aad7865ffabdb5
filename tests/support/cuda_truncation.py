"""The CUDA kernels on a CPU that truncates sums as tensor cores do, beside dense torch.

PYTHONPATH=tests python -m support.cuda_truncation

prints the numbers of docs/numerics.md.
"""

import torch
from torch import Tensor

import pairops
from pairops import NEG, Pairs, lse, row_stats
from support.cuda_in_one_sum import in_one_sum, kernels
from support.cuda_on_host import build
from support.engine_comparison import beside_dense, finite
from support.error_rule import Dense, distance, times_allowed
from support.term_problems import gpu_problem

COLUMNS = [1024, 16384]
SIGNS = ["random", "columns of one sign", "all of one sign"]


def problem(signs: str, n: int, m: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = torch.randn(n, d), torch.randn(m, d)
    if signs != "random":
        y = y.abs()
    if signs == "all of one sign":
        x = x.abs()
    return x, y, 0.5 + torch.rand(n)


def statistics_and_gradient(x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
    """Log-sum-exps over all of y, and what they make of x."""
    leaf = x.clone().requires_grad_()
    labels, others = torch.zeros(len(x), dtype=torch.long), torch.ones(len(y), dtype=torch.long)
    pairs = Pairs.of(leaf, labels, ref_emb=y, ref_labels=others)
    (found,) = row_stats(pairs, lse(NEG, 10.0, 0.0))
    (gradient,) = torch.autograd.grad((found * weight.to(found.dtype)).sum(), leaf)
    return [found.detach(), gradient]


def errors(signs: str, n: int, m: int, d: int) -> list[tuple[float, float]]:
    """The 2-norm of the error, relative to the truth: ours, and dense torch's worst."""
    x, y, weight = problem(signs, n, m, d)
    with pairops.engine("dense"):
        truth = statistics_and_gradient(x.double(), y.double(), weight)
        dense = Dense(lambda: statistics_and_gradient(x, y, weight))
        of_dense = [list(dense.result(k)) for k in range(2)]
    with pairops.engine("cuda"):
        ours = statistics_and_gradient(x, y, weight)

    def error(found: Tensor, right: Tensor) -> float:
        return float((found - right).norm() / right.norm())

    return [
        (error(ours[k], truth[k]), max(error(z, truth[k]) for z in of_dense[k])) for k in range(2)
    ]


def of_16_bits(d: int) -> tuple[float, ...]:
    """Of log-sum-exps of bfloat16 rows: the largest error, as a multiple of what the rule allows,
    and of the gradient the largest error relative to the largest entry, ours and dense torch's."""
    x, y, weight = problem("all of one sign", 16, 70, d)
    x, y = x.bfloat16(), y.bfloat16()

    def of(engine: str, dtype: torch.dtype) -> list[Tensor]:
        with pairops.engine(engine):
            return statistics_and_gradient(x.to(dtype), y.to(dtype), weight)

    ours, truth = of("cuda", torch.bfloat16), of("dense", torch.float64)
    dense = Dense(lambda: of("dense", torch.bfloat16))
    of_gradient = [distance(z, truth[1]) for z in (ours[1], *dense.result(1))]
    largest = float(truth[1].abs().max())
    return (
        float(truth[0].abs().max()),
        distance(ours[0], truth[0]),
        times_allowed(ours[0], dense.result(0), truth[0]),
        of_gradient[0] / largest,
        max(of_gradient[1:]) / largest,
    )


def statistics_beyond_the_rule(seeds: int) -> tuple[int, list[float]]:
    """How many statistics of every kind of term there are, and of those beyond the rule the error
    as a multiple of what it allows."""
    count, beyond = 0, []
    for seed in range(seeds):
        torch.manual_seed(seed)
        leaves, run = gpu_problem(150)
        ours, dense, truth = beside_dense("cuda", run, *leaves)
        statistics = len(ours) - len(leaves)
        count += statistics
        for k in range(statistics):
            a, b = finite([ours[k], truth[k]])
            times = times_allowed(a, dense.result(k), b)
            beyond += [times] * (times > 1)
    return count, beyond


def main() -> None:
    cases = [(signs, m) for signs in SIGNS for m in COLUMNS]
    with kernels(in_one_sum()) as of:
        one = [of(errors, signs, 16, m, 64)[1] for signs, m in cases]
        one_of_numbers, _ = of(errors, SIGNS[-1], 16, 70, 700)[0]
    with kernels(build.MODULE) as of:
        print("| signs | columns | dense torch | one sum | two levels |")
        print("|---|--:|--:|--:|--:|")
        for (signs, m), (in_one, _) in zip(cases, one, strict=True):
            ours, dense = of(errors, signs, 16, m, 64)[1]
            print(f"| {signs} | {m:,} | {dense:.1e} | {in_one:.1e} | {ours:.1e} |")
        ours, dense = of(errors, SIGNS[-1], 16, 70, 700)[0]
        print("\nlog-sum-exps of D = 700, all of one sign: ", end="")
        print(f"{one_of_numbers:.1e} in one sum, {ours:.1e} on two levels, dense torch {dense:.1e}")
        print("\n| bfloat16, D | value | error | of what is allowed | error of dX | dense torch |")
        print("|--:|--:|--:|--:|--:|--:|")
        for d in (256, 512, 1024):
            value, error, times, ours, dense = of(of_16_bits, d)
            print(f"| {d:,} | {value:.1f} | {error:.1e} | {times:.2g} | {ours:.1e} | {dense:.1e} |")
        count, beyond = of(statistics_beyond_the_rule, 6)
        times = ", ".join(f"{z:.2f}" for z in beyond)
        print(
            f"\n{len(beyond)} of {count} statistics beyond the rule, times what it allows: {times}"
        )


if __name__ == "__main__":
    main()
