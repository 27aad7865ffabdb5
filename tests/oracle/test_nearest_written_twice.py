"""Holds the oracles over numbers and of nearest rows against a second writing, as their code is."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

import oracle
from support.oracle_samples import agree, leaf, sample, two_sets


@pytest.mark.parametrize("weighted", [False, True])
def test_conr_as_its_code_for_ages(weighted):
    """Whole matrices; pairs that are no positives have the logit 0. Two views, so none is alone."""
    x = sample(30)[0]
    generator = torch.Generator().manual_seed(0)
    ages = torch.randint(8, (15, 1), generator=generator).repeat(2, 1).double()
    guess = ages + torch.randn(30, 1, generator=generator, dtype=torch.float64)
    w = torch.rand(30, 1, generator=generator, dtype=torch.float64) if weighted else torch.ones(())
    between_ages, between_guesses = (ages - ages.T).abs(), (guess - guess.T).abs()
    near = between_ages <= 1
    mistaken = ~near & (between_guesses <= 1)
    near = near & ~torch.eye(30, dtype=torch.bool)
    assert near.any(1).all()
    assert mistaken.any(1).any()
    assert not mistaken.any(1).all()
    logits = normalize(x) @ normalize(x).T / 0.07
    push = (w * torch.exp(between_ages * 0.01) * torch.exp(logits * mistaken) * mistaken).sum(1)
    pull = torch.exp(logits * near)
    each = -torch.log(pull / (pull.sum(1) + push)[:, None]) * near
    losses = each.sum(1) / near.sum(1) * mistaken.any(1)
    expected = (w.reshape(-1) * losses).mean()
    given = {"weight": w[:, 0]} if weighted else {}
    values = oracle.conr_loss(x, ages[:, 0], guess[:, 0], **given)
    agree(oracle.reduce(values, **given), expected, x)


def test_conr_as_its_paper_in_loops():
    x, values = sample(14)[0], torch.arange(14).double() * 5 % 7 / 2
    guess, u = values.flip(0), normalize(x)
    total = 0
    for i in range(14):
        pos = [j for j in range(14) if j != i and abs(values[i] - values[j]) <= 0.5]
        far = [j for j in range(14) if abs(values[i] - values[j]) > 0.5]
        neg = [j for j in far if abs(guess[i] - guess[j]) <= 0.5]
        if pos and neg:
            e = [torch.exp(u[i] @ u[j] / 0.2) for j in range(14)]
            pushed = sum(e[n] * torch.exp(0.3 * abs(values[i] - values[n])) for n in neg)
            for p in pos:
                total = total - torch.log(e[p] / (sum(e[j] for j in pos) + pushed)) / len(pos)
    given = {"width": 0.5, "temperature": 0.2, "eta": 0.3, "constant": False}
    agree(oracle.conr_loss(x, values, guess, **given).sum(), total, x)


def test_supremix_in_loops():
    x, values = sample(14)[0], torch.arange(14).double() * 3 % 5 / 2
    u, total = normalize(x), 0
    for i in range(14):
        pos = [j for j in range(14) if j != i and values[j] == values[i]]
        others = [j for j in range(14) if j != i]
        z = [u[i] @ u[j] / 0.3 for j in range(14)]
        denominator = sum((abs(values[i] - values[j]) + 1) * torch.exp(z[j]) for j in others)
        for p in pos:
            total = total - (z[p] - torch.log(denominator)) / len(pos)
    agree(oracle.supremix_loss(x, values).sum(), total, x)


def test_nnclr_as_in_its_paper():
    (x, y), queue = two_sets(), sample(40, seed=2)[0].detach()

    def way(x, y):
        found = normalize(queue)[(normalize(x) @ normalize(queue).T).argmax(1)]
        return cross_entropy(found @ normalize(y).T / 0.1, torch.arange(30))

    expected = way(x.detach(), y) / 2 + way(y.detach(), x) / 2
    agree(oracle.nnclr_loss(x, y, queue).mean(), expected, x, y)
    alone = oracle.nnclr_loss(x, y, queue, symmetric=False)
    agree(alone.mean(), way(x.detach(), y), y)


def test_soft_triplets_as_their_code():
    """Every label has two rows or more: the code takes a lone row for its own positive."""
    x, teacher = sample(30)[0], leaf(sample(30, D=5, seed=1)[0])
    labels = torch.arange(30) % 7
    same = (labels[:, None] == labels).double()
    d, taught = (torch.cdist(z, z).clamp(min=1e-6) for z in (x, teacher))
    p = torch.sort(d - 9999999.0 * (1 - same), dim=1, descending=True).indices[:, :1]
    n = torch.sort(d + 9999999.0 * same, dim=1).indices[:, :1]
    picked = torch.cat([d.gather(1, p), d.gather(1, n)], 1)
    share = softmax(torch.cat([taught.gather(1, p), taught.gather(1, n)], 1), 1).detach()
    expected = (-share * log_softmax(picked, 1)).mean(0).sum()
    actual = oracle.soft_triplet_loss(x, labels, teacher, normalize=False)
    agree(actual.mean(), expected, x)
    assert torch.autograd.grad(actual.sum(), teacher, allow_unused=True) == (None,)
    assert not oracle.soft_triplet_loss(x, torch.arange(30), teacher).any()
    assert not oracle.soft_triplet_loss(x, torch.zeros(30).long(), teacher).any()
