"""The error of float32 where sums are long: a gradient of many rows, of which some are computed
again in float64."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

import pairops
from bench.contestants import reason
from bench.gpu.lease import Row, called
from bench.gpu.parts import failed, float32_at, say
from bench.problems import Problem, Setting, problem
from pairops.ops.engines import ENGINES

TEMPERATURE = 0.1
SAMPLED = 64  # rows
CHUNK = 2**27  # similarities in float64: 1 GB

# Of `torch.set_float32_matmul_precision`; an engine that is not here serves "highest" alone.
LEVELS = {"cuda": ("highest", "high"), "triton": ("highest", "high")}


def long_sums(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Relative errors of the gradient of the mean log-sum-exp over negatives, in the 2-norm of
    sampled rows; an engine computes all of them, and sums as in a training step."""
    if (setting.dtype, setting.loss) != ("float32", options.loss[0]):
        return
    given = problem(setting)
    sample = torch.linspace(0, setting.n - 1, min(SAMPLED, setting.n)).long().to(given.x.device)
    truth = gradient_in_float64(given, sample)
    for who in (who for who in options.who if who in ENGINES):
        for level in LEVELS.get(who, ("highest",)):
            row: Row = {**asdict(setting), "loss": "lse(NEG)", "who": called(who), "level": level}
            try:
                with float32_at(level), pairops.engine(who):
                    (gradient,) = torch.autograd.grad(value_of(given), [given.x])
                error = float((gradient[sample].double() - truth).norm() / truth.norm())
            except Exception as error:
                yield failed(setting, who, reason(error)) | row
                continue
            say(setting, who, f"{level:>7}  {error:.2e}")
            yield row | {"gradient_error": error}


def value_of(given: Problem) -> Tensor:
    term = pairops.lse(pairops.NEG, 1 / TEMPERATURE, 0.0)
    return pairops.pair_loss(given.x, given.other, term, combine=lambda sums: sums)


def gradient_in_float64(given: Problem, sample: Tensor) -> Tensor:
    """Of the sampled rows, which are anchors and partners: with u = x/|x| and P the softmax of each
    row over its negatives, dL/du_i = Σ_j (P_ij + P_ji) u_j / (N τ)."""
    x = given.x.detach().double()
    u = F.normalize(x)
    columns = torch.zeros(len(u), len(sample), dtype=u.dtype, device=u.device)
    mine = torch.zeros_like(columns.T)
    for rows in torch.arange(len(u), device=u.device).split(max(1, CHUNK // len(u))):
        shares = (
            (u[rows] @ u.T / TEMPERATURE)
            .masked_fill_(given.other[rows, None] == given.other, -torch.inf)
            .softmax(1)
        )
        columns[rows] = shares[:, sample]
        here = torch.isin(sample, rows)
        mine[here] = shares[sample[here] - rows[0]]
    by_unit = (mine + columns.T) @ u / (len(u) * TEMPERATURE)
    along = (by_unit * u[sample]).sum(1, keepdim=True)
    return (by_unit - along * u[sample]) / x[sample].norm(dim=1, keepdim=True)
