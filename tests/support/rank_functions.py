"""What the ranks of a test run: functions of (group, what this rank is given)."""

import contextlib
import os
import runpy
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pairops


@contextlib.contextmanager
def setting(given: dict[str, Any]) -> Iterator[None]:
    """gathered: the bytes below which all rows are gathered at once, 0 unless told.  engine."""
    with (
        mock.patch("pairops.ops.row_stats.ring_blocks.GATHERED", given.get("gathered", 0)),
        pairops.engine(given.get("engine", "auto")),
    ):
        yield


def step(group: Any, given: dict[str, Any]) -> dict[Any, Any]:
    """Value and gradients of a loss on this rank's rows.

    given: loss, args, keywords, leaves: the names or places of what has a gradient.  weights: of
    the rows of "none".
    """
    leaves = {}
    args, keywords = list(given["args"]), dict(given["keywords"])
    for at in given["leaves"]:
        where: Any = args if isinstance(at, int) else keywords
        where[at] = leaves[at] = where[at].clone().requires_grad_()
    with setting(given):
        loss, aux = getattr(pairops, given["loss"]), None
        if "seen" not in given:
            value = loss(*args, **keywords, group=group)
        else:
            value, aux = loss.with_aux(*args, **keywords, group=group)
            aux = {name: getattr(aux, name) for name in given["seen"]}
        weights = given.get("weights", torch.ones_like(value))
        gradients = torch.autograd.grad(
            (value * weights).sum(),
            list(leaves.values()),
            allow_unused=True,
            materialize_grads=True,
        )
    return {"value": value.detach(), "aux": aux, **dict(zip(leaves, gradients, strict=True))}


def penalty(group: Any, given: dict[str, Any]) -> tuple[str, str] | dict[str, Tensor]:
    """The value and gradient of a loss with a penalty on its gradient."""
    x = given["x"].clone().requires_grad_()
    with setting(given):
        value = getattr(pairops, given["loss"])(x, given["labels"], group=group)
        (g,) = torch.autograd.grad(value, x, create_graph=True)
        # g is W times this rank's rows of the batch's gradient.
        (second,) = torch.autograd.grad((g * given["direction"]).sum(), x)
    return {"first": g.detach(), "second": second}


def remembered(group: Any, given: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Losses and gradients of some batches with a memory."""
    memory = pairops.CrossBatchMemory(
        given["loss"], given["batches"][0]["x"].shape[1], given["size"], group=group,
        dtype=torch.float64,
    )  # fmt: skip
    found = []
    with setting(given):
        for batch in given["batches"]:
            x = batch["x"].clone().requires_grad_()
            value = memory(x, batch["labels"], ids=batch.get("ids"))
            found.append({"value": value.detach(), "x": torch.autograd.grad(value, x)[0]})
    return found


def trained(group: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Value and averaged gradients of a step of a network under DistributedDataParallel."""
    network = torch.nn.parallel.DistributedDataParallel(
        given["network"], process_group=group, broadcast_buffers=False
    )

    def loss(x: Tensor) -> Tensor:
        return pairops.ms_loss(x, given["labels"], group=group)

    with setting(given):
        if given["way"] == "cached":
            value = pairops.cached_step(loss, (network, given["inputs"]), chunk_size=5)
        else:
            value = loss(network(given["inputs"]))
            value.backward()
    gradients = {name: p.grad for name, p in given["network"].named_parameters()}
    return {"value": value.detach(), **gradients}


def several(group: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Of one step what training code does with losses besides a plain backward pass."""
    x = given["x"].clone().requires_grad_()
    labels = given["labels"]
    with setting(given):
        both = pairops.ms_loss(x, labels, group=group) + pairops.supcon_loss(x, labels, group=group)
        both.backward(retain_graph=True)
        both.backward()
        with torch.no_grad():
            seen = pairops.ms_loss(x, labels, group=group)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = pairops.ms_loss(x, labels, group=group)
        compiled = torch.compile(pairops.ms_loss, backend="eager")(x, labels, group=group)
        module = pairops.nn.MSLoss(group=group)(x, labels)
        square = pairops.Function(lambda s: s * s, name="square_of_ranks")
        own = pairops.pair_loss(
            x, labels, pairops.total(pairops.NEG, function=square), combine=torch.sqrt, group=group
        )
    values = {"seen": seen, "cast": cast, "compiled": compiled, "module": module}
    return {"x": x.grad, "own": own.detach()} | {k: v.detach() for k, v in values.items()}


def kept(group: Any, given: dict[str, Any]) -> bool:
    """Does the value of a loss hold embeddings when its backward pass is over?"""
    leaf = torch.randn(6, 4).requires_grad_()
    x = leaf * 2
    with setting(given):
        value = getattr(pairops, given["loss"])(x, torch.arange(6) // 2, group=group)
        value.backward()
    seen = weakref.ref(x.untyped_storage())
    del x
    return seen() is not None


def sent(group: Any, given: dict[str, Any]) -> dict[str, int]:
    """The bytes that this rank hands to torch.distributed, by what takes them."""
    counted = {"p2p": 0, "all_gather": 0, "all_reduce": 0}
    others = dist.get_world_size(group) - 1
    batch, all_gather, all_reduce = dist.batch_isend_irecv, dist.all_gather, dist.all_reduce

    def count(name: str, tensor: Tensor, times: int) -> None:
        counted[name] += times * tensor.numel() * tensor.element_size()

    def counting_gather(every: Any, tensor: Tensor, *args: Any, **keywords: Any) -> Any:
        count("all_gather", tensor, others)
        return all_gather(every, tensor, *args, **keywords)

    def counting_reduce(tensor: Tensor, *args: Any, **keywords: Any) -> Any:
        count("all_reduce", tensor, 1)
        return all_reduce(tensor, *args, **keywords)

    def counting_batch(operations: list[Any]) -> Any:
        for operation in operations:
            if operation.op is dist.isend:
                count("p2p", operation.tensor, 1)
        return batch(operations)

    with (
        mock.patch.object(dist, "batch_isend_irecv", counting_batch),
        mock.patch.object(dist, "all_gather", counting_gather),
        mock.patch.object(dist, "all_reduce", counting_reduce),
    ):
        step(group, given)
    return counted


class Held(TorchDispatchMode):
    """The most bytes of tensors that were made within this context and held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        for z in tree_leaves(result):
            storage = z.untyped_storage() if isinstance(z, Tensor) else None
            if storage is not None and not hasattr(storage, "counted"):
                storage.counted = True
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, count: int) -> None:
        self.now -= count


def peak(group: Any, given: dict[str, Any]) -> tuple[int, int]:
    """By how many bytes a loss and its gradient let this process's resident memory grow, and how
    many tensors of torch held at once."""
    generator = torch.Generator().manual_seed(dist.get_rank(group))
    x = torch.randn(given["rows"], given["d"], generator=generator)
    labels = torch.randint(0, 64, (given["rows"],), generator=generator)

    def run(count: int) -> None:
        leaf = x.detach()[:count].requires_grad_()
        with setting(given):
            getattr(pairops, given["loss"])(leaf, labels[:count], group=group).backward()

    run(64)  # loads what is loaded once
    dist.barrier(group)
    # The kernel may take pages that lay idle meanwhile: what is here before must be resident.
    x.sum()
    run(64)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = _status("VmRSS")
    run(given["rows"])
    grown = _status("VmHWM") - before
    with Held() as held:
        run(given["rows"])
    return grown, held.most


def _status(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def leave(group: Any, given: dict[str, Any]) -> None:
    """Steps without end; one rank dies in the middle of one."""
    rank = dist.get_rank(group)
    for count in range(1000):
        with mock.patch(
            "pairops.ops.distributed.ring._exchange", _dying(rank == given["dies"] and count == 2)
        ):
            step(group, given)


def _dying(dies: bool) -> Any:
    from pairops.ops.distributed.ring import _exchange

    def exchange(*call: Any) -> Any:
        if dies:
            os._exit(9)
        return _exchange(*call)

    return exchange


def call(group: Any, given: dict[str, Any]) -> Any:
    """`given["what"]` of torch, dist, pairops, group, and what else is given: an expression."""
    names = {"torch": torch, "dist": dist, "pairops": pairops, "group": group, **given}
    return eval(given["what"], names)


class Remembering(torch.nn.Module):
    """A network with a memory inside of it."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(6, 4).double()
        self.memory = pairops.CrossBatchMemory(pairops.supcon_loss, 4, 64, group=group)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.memory(self.encoder(x), labels)
        return value


def wrapped(group: Any, given: dict[str, Any]) -> list[Any]:
    """What a memory holds, and the losses, where a model is wrapped that has remembered already."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(1)
    model = Remembering(group)
    first, *batches = given["batches"]
    found = [float(model(*first).detach())]
    whole: Any = model
    if given["wrapper"] == "ddp":
        whole = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
    elif given["wrapper"] == "fully_shard":
        fully_shard(model, mesh=dist.DeviceMesh.from_group(group, "cpu"))
    for batch in batches:
        value = whole(*batch)
        value.backward()
        found.append(float(value.detach()))
    return [model.memory.labels, found]


def fully_sharded(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """One step of SGD of a loss with parameters of its own, sharded over the ranks: those
    parameters, whole, after it.

    given: module, its name in pairops.nn; keywords; args, what it is called with.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    loss = getattr(pairops.nn, given["module"])(**given["keywords"])
    ranks = list(range(dist.get_world_size(group)))
    mesh = DeviceMesh.from_group(group, "cpu", mesh=torch.tensor(ranks))
    sharded = fully_shard(loss, mesh=mesh)
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
    sharded(*given["args"]).backward()
    optimizer.step()
    return [own.full_tensor().detach() for own in sharded.parameters()]


def script(_group: Any, given: dict[str, Any]) -> dict[str, float]:
    """The numbers `wanted` that the script at `path`, one for torchrun, has when it ends."""
    rank, world = dist.get_rank(), dist.get_world_size()
    as_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "TORCHELASTIC_RUN_ID": 0}
    as_torchrun |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "LOCAL_WORLD_SIZE": world}
    with (
        mock.patch.dict(os.environ, {name: str(value) for name, value in as_torchrun.items()}),
        mock.patch.object(dist, "init_process_group"),  # this process has its group already
        mock.patch.object(dist, "destroy_process_group"),
        contextlib.redirect_stdout(None),
    ):
        known = runpy.run_path(given["path"], run_name="__main__")
    return {name: torch.as_tensor(known[name]).item() for name in given["wanted"]}
