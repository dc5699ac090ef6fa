"""Several processes that train one model together: their ranks, their messages, and which of them holds which weights.

The processes are started by ``torchrun``, ``accelerate launch`` or anything else that sets RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. One process alone needs none of that: everything here then does nothing.

* ``ddp``: every process holds all weights; gradients are averaged while they are computed.
* ``fsdp``: each holds its share of every layer (PyTorch's `fully_shard`) and gathers the rest when the layer runs, so
  that weights, gradients, the optimiser's state and the EMA are divided by the number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.layers import Attention, Layer

TIMEOUT = datetime.timedelta(hours=2)
"""How long processes wait for each other: a sample sheet of large pictures takes the first one a while."""

MEETING = datetime.timedelta(minutes=5)
"""How long processes wait for each other at the start."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """One process among those of a training. Make it with `join`."""

    rank: int = 0
    """Number of this process."""
    count: int = 1
    """Number of processes on all machines."""
    local_rank: int = 0
    """Number of this process on its machine."""
    joined: bool = False
    """Whether `join` began the process group, so that `leave` ends it."""
    meshes: list[DeviceMesh] = dataclasses.field(default_factory=list, compare=False)
    """Device meshes of the weights that `shard` has sharded."""

    @classmethod
    def join(cls) -> Processes:
        """Meet the processes that the environment names.

        Raises:
            ValueError: the environment names several, but not their ranks or their address; or they did not meet there.
        """
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        usual = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
        try:
            count, rank, local_rank = (int(os.environ.get(name, number)) for name, number in usual.items())
        except ValueError as error:
            raise ValueError(f"{', '.join(usual)} must be numbers; start the processes with torchrun") from error
        if count == 1:
            return cls()
        missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing or not 0 <= rank < count:
            what = f"{', '.join(missing)} missing" if missing else f"RANK is {rank}"
            raise ValueError(f"WORLD_SIZE is {count}, but {what}; start the processes with torchrun")
        # Small messages go between CPUs, so that they never wait for a GPU's queue. All tests of several processes are
        # on CPUs with gloo: several GPUs, and so NCCL, have never run this.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = _meet(rank, count)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
        return cls(rank, count, local_rank, joined=True)

    def leave(self) -> None:
        """Leave the process group.

        The group's threads must end here, not with the interpreter: one that lets go of a tensor while Python shuts
        down aborts a job that is done ("terminate called without an active exception"). They end with the last
        reference to the group, but PyTorch's caches of layouts keep the meshes for ever, and these the group.
        """
        for mesh in self.meshes:
            getattr(mesh, "_pg_registry", {}).clear()  # found again by name where needed
        self.meshes.clear()
        if self.joined:
            dist.destroy_process_group()
        if self.count > 1:
            gc.collect()

    @property
    def local_count(self) -> int:
        """Number of processes on this machine, as far as the environment names it."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.count))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """Return the process's own device of the wanted kind.

        Raises:
            ValueError: there are more processes here than GPUs.
        """
        if self.count == 1 or wanted.type != "cuda":
            return wanted
        gpus = torch.cuda.device_count()
        if self.local_rank >= gpus:
            raise ValueError(f"there are more processes on this machine than its {gpus} GPUs; start {gpus}")
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def rows(self, batch: int) -> range:
        """Return the process's rows of a global batch.

        Raises:
            ValueError: they can't be dealt evenly.
        """
        if batch % self.count:
            raise ValueError(f"batch {batch} can't be dealt to {self.count} processes; make it a multiple of them")
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def all_gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Gather the numbers of every process, in order of rank (as many from each)."""
        if self.count == 1:
            return [list(numbers)]
        sent = torch.tensor(numbers, dtype=torch.float64)
        gathered = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(gathered, sent)
        return [t.tolist() for t in gathered]

    def same_as_first(self, choice: str, choices: Sequence[str]) -> str:
        """Return the first process's choice among some, in every process."""
        return choices[int(self.all_gather([choices.index(choice)])[0][0])]

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum the processes' tensors (on the CPU, of one shape); every process gets the sum."""
        if self.count > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def wait(self) -> None:
        """Go on when every process has come to this point."""
        self.all_gather([0])

    @contextlib.contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Run the block in the first process of each machine before the others, which then find the files it wrote."""
        if self.local_rank:
            self.wait()
        try:
            yield
        finally:
            if not self.local_rank:
                self.wait()

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """Go on only if all processes can: where one raises `ValueError`, all end, and one of them reports it.

        Raises:
            ValueError: the block's, in the first of the processes that failed.
            SystemExit: in the others, with status 2.
        """
        if self.count == 1:
            yield
            return
        failed: ValueError | None = None
        try:
            yield
        except ValueError as error:
            failed = error
        failures = [rank for rank, (bad,) in enumerate(self.all_gather([failed is not None])) if bad]
        if failures:
            raise SystemExit(2) if failed is None or self.rank != failures[0] else failed


def _meet(rank: int, count: int) -> Any:
    """Connect to the store at MASTER_ADDR:MASTER_PORT, where process 0 or torchrun listens, and wait for all processes.

    Raises:
        ValueError: the port is taken, nobody listens there, or a process does not come in time.
    """
    where, seconds = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", f"{MEETING.total_seconds():.0f} s"
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, count, timeout=MEETING)))
        names = [f"dctransformer/rank-{i}" for i in range(count)]
        store.set(names[rank], "here")
        store.wait(names, MEETING)
        store.set_timeout(TIMEOUT)
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise ValueError(
                f"the port of {where} is taken, perhaps by another training; set MASTER_PORT to a free one, "
                "or start torchrun with --rdzv-endpoint localhost:0"
            ) from error
        raise ValueError(
            f"the {count} processes did not meet at {where} within {seconds}; start all of them, each with its RANK "
            "and the same MASTER_ADDR and MASTER_PORT (on one machine: torchrun --rdzv-endpoint localhost:0)"
        ) from error
    return store


# Weights of which each process holds all, or a share ------------------------------------------------------------------


def choose_parallelism(
    kind: Literal["auto", "ddp", "fsdp"], model: nn.Module, processes: Processes, device: torch.device
) -> str:
    """Choose ``single``, ``ddp`` or ``fsdp``; auto shards if all states would fill over a third of a GPU's memory."""
    if processes.count == 1:
        return "single"
    if kind != "auto":
        return kind
    if device.type != "cuda":
        return "ddp"
    states = 5 * 4 * sum(p.numel() for p in model.parameters())  # weight, gradient, two moments, average
    return "fsdp" if 3 * states > torch.cuda.get_device_properties(device).total_memory else "ddp"


def replicate(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap a model so that backward passes average its gradients over the processes."""
    numbers = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer versions of PyTorch have another name for it, older ones don't know that name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, device_ids=numbers, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Leave each process its share of every parameter, a layer at a time (in place).

    A cross-attention's keys and values are computed before its layer runs, so those projections are units of their own.
    """
    mesh = init_device_mesh(device.type, (processes.count,))
    processes.meshes.append(mesh)
    for layer in (m for m in model.modules() if isinstance(m, Layer)):
        if layer.cross is not None:
            attention = layer.cross.inner
            assert isinstance(attention, Attention)
            for part in (attention.key_value, attention.key_norm):
                if part is not None:
                    fully_shard(part, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def last_pass(module: nn.Module, last: bool) -> Iterator[None]:
    """Average the gradients of the block's backward passes over the processes only if it is the last of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def local_shard(x: Tensor) -> Tensor:
    """Return the process's shard of a tensor (all of one that is not sharded)."""
    return x.to_local() if isinstance(x, DTensor) else x


def gather_full(x: Tensor) -> Tensor:
    """Gather a whole tensor from its shards; every process must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_alike(parts: Sequence[Tensor]) -> list[Tensor]:
    """Gather whole tensors of one shape that are sharded alike, by one message; every process must call it."""
    first = parts[0]
    if not isinstance(first, DTensor):
        return list(parts)
    shape = torch.Size((*first.shape, len(parts)))
    together = DTensor.from_local(
        torch.stack([local_shard(x) for x in parts], -1), first.device_mesh, first.placements, run_check=False,
        shape=shape, stride=torch.empty(shape, device="meta").stride(),
    )  # fmt: skip
    return list(together.full_tensor().unbind(-1))


def placed_like(whole: Tensor, x: Tensor) -> Tensor:
    """Shard and place a whole tensor, which every process has, as ``x`` is."""
    whole = whole.to(x.device, x.dtype)
    if isinstance(x, DTensor):
        return distribute_tensor(whole, x.device_mesh, x.placements, src_data_rank=None)
    return whole


def gather_model(model: nn.Module) -> DCTransformer:
    """Gather the model with all its weights in this process; every process must call it."""
    assert isinstance(model, DCTransformer), "only a DCTransformer is validated and sampled"
    parameters = dict(model.named_parameters())
    if not any(isinstance(p, DTensor) for p in parameters.values()):
        return model
    state = {name: gather_full(p.detach()) for name, p in parameters.items()}
    copy = DCTransformer(model.config)
    copy.load_state_dict(state)
    return copy.to(model.device).eval().requires_grad_(False)
