"""Holds the oracles of losses with a teacher against a second writing, in loops."""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

import oracle
from support.oracle_samples import agree, leaf, sample, two_sets


def test_cwcl_in_loops():
    (x, y), teacher = two_sets(), leaf(sample(30, D=5, seed=1)[0])
    p, q, u = normalize(x), normalize(y), normalize(teacher.detach())
    expected = cross_entropy(q @ p.T / 0.2, torch.arange(30))
    for i in range(30):
        w = [float(u[i] @ u[j]) / 2 + 0.5 for j in range(30)]
        denominator = sum(torch.exp(p[i] @ q[j] / 0.2) for j in range(30))
        for j in range(30):
            share = torch.exp(p[i] @ q[j] / 0.2) / denominator
            expected = expected - w[j] / sum(w) * torch.log(share) / 30
    actual = oracle.cwcl_loss(x, y, teacher, temperature=0.2)
    agree(actual.mean(), expected, x, y)
    assert torch.autograd.grad(actual.sum(), teacher, allow_unused=True) == (None,)


def test_gram_matching_by_matrices():
    x, teacher = sample(30)[0], leaf(sample(30, D=5, seed=1)[0])
    p, u = normalize(x), normalize(teacher.detach())
    expected = torch.linalg.matrix_norm(p @ p.T - u @ u.T).square() / 30**2
    agree(oracle.gram_matching_loss(x, teacher).mean(), expected, x)
    other = sample(20, seed=2)[0]
    wanted = x @ other.T - teacher.detach() @ teacher.detach()[:20].T
    actual = oracle.gram_matching_loss(
        x, teacher, ref_emb=other, ref_teacher=teacher[:20], distance="dot"
    )
    agree(actual.mean(), wanted.square().mean(), x, other)


def test_distillation_as_torch_has_it():
    (x, y), u, v = two_sets(), leaf(sample(30, D=5, seed=1)[0]), sample(30, D=5, seed=2)[0]
    ours = log_softmax(normalize(x) @ normalize(y).T / 0.2, 1)
    target = log_softmax(normalize(u.detach()) @ normalize(v.detach()).T / 0.3, 1)
    one, other = (
        kl_div(a, b, reduction="batchmean", log_target=True)
        for a, b in ((ours, target), (target, ours))
    )
    given = {"temperature": 0.2, "teacher_temperature": 0.3}
    actual = oracle.distillation_loss(x, y, u, v, **given)
    agree(actual.mean(), one, x, y)
    assert torch.autograd.grad(actual.sum(), u, allow_unused=True) == (None,)
    both = oracle.distillation_loss(x, y, u, v, divergence="jeffreys", **given)
    agree(both.mean(), (one + other) / 2, x, y)
