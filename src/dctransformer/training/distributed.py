"""Several processes that train one model together: who they are, what they tell each other, who holds which weights.

The processes are started by ``torchrun``, ``accelerate launch`` or anything else that sets RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. One process alone needs none of that: everything here then does nothing.

* ``ddp``: every process holds all weights; gradients are averaged while they are computed.
* ``fsdp``: each holds its share of every layer (PyTorch's `fully_shard`) and borrows the rest when a layer's turn
  comes, so that weights, gradients, the optimiser's state and the average of the weights are divided by the processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dctransformer.model.dctransformer import DCTransformer
from dctransformer.model.layers import Layer

TIMEOUT = datetime.timedelta(hours=2)
"""How long processes wait for each other: a sample sheet of large pictures takes the first one a while."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """One process among those of a training. Make it with `join`."""

    rank: int = 0
    """Number of this process."""
    count: int = 1
    """How many there are, on all machines."""
    local_rank: int = 0
    """Number of this process on its machine."""
    joined: bool = False
    """Whether `join` began the process group, so that `leave` ends it."""
    meshes: list[DeviceMesh] = dataclasses.field(default_factory=list, compare=False)
    """What `shard` laid weights out on."""

    @classmethod
    def join(cls) -> Processes:
        """Meet the processes that the environment speaks of.

        Raises:
            ValueError: the environment speaks of several, but does not say who is who or where they meet.
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
        # Small messages go between CPUs, so that they never wait for a GPU's queue.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=count, timeout=TIMEOUT)
        return cls(rank, count, local_rank, joined=True)

    def leave(self) -> None:
        """Part from the others.

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
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """The process's own device of the wanted kind.

        Raises:
            ValueError: there are more processes here than GPUs.
        """
        if self.count == 1 or wanted.type != "cuda":
            return wanted
        here = torch.cuda.device_count()
        if self.local_rank >= here:
            raise ValueError(f"there are more processes on this machine than its {here} GPUs; start {here}")
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def rows(self, batch: int) -> range:
        """The process's rows of a global batch.

        Raises:
            ValueError: they can't be dealt evenly.
        """
        if batch % self.count:
            raise ValueError(f"batch {batch} can't be dealt to {self.count} processes; make it a multiple of them")
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def told(self, numbers: Sequence[float]) -> list[list[float]]:
        """What each process says: a list of numbers from each, in order of rank, the same everywhere."""
        if self.count == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64)
        theirs = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(theirs, mine)
        return [t.tolist() for t in theirs]

    def as_first(self, choice: str, choices: Sequence[str]) -> str:
        """What the first process chose."""
        return choices[int(self.told([choices.index(choice)])[0][0])]

    def total(self, x: Tensor) -> Tensor:
        """Sum of the processes' tensors (on the CPU, one shape), the same everywhere."""
        if self.count > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def wait(self) -> None:
        """Go on when everybody is here."""
        self.told([0])

    @contextlib.contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """The first process of each machine runs the block before the others do: what it stores, they find."""
        if self.local_rank:
            self.wait()
        try:
            yield
        finally:
            if not self.local_rank:
                self.wait()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Go on only if all processes can: where one raises `ValueError`, all end, and one of them says why.

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
        failures = [rank for rank, (bad,) in enumerate(self.told([failed is not None])) if bad]
        if failures:
            raise SystemExit(2) if failed is None or self.rank != failures[0] else failed


# Weights of which each process holds all, or a share ------------------------------------------------------------------


def choose(kind: Literal["auto", "ddp", "fsdp"], model: nn.Module, processes: Processes, device: torch.device) -> str:
    """``single``, ``ddp`` or ``fsdp``; auto shards where all states would take more than a third of a GPU's memory."""
    if processes.count == 1:
        return "single"
    if kind != "auto":
        return kind
    if device.type != "cuda":
        return "ddp"
    states = 5 * 4 * sum(p.numel() for p in model.parameters())  # weight, gradient, two moments, average
    return "fsdp" if 3 * states > torch.cuda.get_device_properties(device).total_memory else "ddp"


def replicate(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """A module whose backward passes average the gradients of ``model`` over the processes."""
    numbers = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer versions of PyTorch have another name for it, older ones don't know that name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(model, device_ids=numbers, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(model: DCTransformer, processes: Processes, device: torch.device) -> None:
    """Leave each process its share of every parameter, a layer at a time (in place).

    A cross-attention's keys and values are made before its layer runs, so what makes them is a unit of its own.
    """
    mesh = init_device_mesh(device.type, (processes.count,))
    processes.meshes.append(mesh)
    for layer in (m for m in model.modules() if isinstance(m, Layer)):
        if layer.cross is not None:
            attention = layer.cross.inner
            for part in ("key_value", "key_norm"):
                if hasattr(attention, part):
                    fully_shard(getattr(attention, part), mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def last_pass(module: nn.Module, last: bool) -> Iterator[None]:
    """Backward passes in the block: gradients are averaged over the processes only in the last of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def own(x: Tensor) -> Tensor:
    """The process's share of a tensor (all of one that is not sharded)."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """The whole of a tensor; every process must ask for it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(full: Tensor, x: Tensor) -> Tensor:
    """A whole tensor, known to every process, laid out and placed as ``x`` is."""
    full = full.to(x.device, x.dtype)
    if isinstance(x, DTensor):
        return distribute_tensor(full, x.device_mesh, x.placements, src_data_rank=None)
    return full


def whole_model(model: DCTransformer) -> DCTransformer:
    """The model with all its weights in this process; every process must ask for it."""
    parameters = dict(model.named_parameters())
    if not any(isinstance(p, DTensor) for p in parameters.values()):
        return model
    state = {name: whole(p.detach()) for name, p in parameters.items()}
    copy = DCTransformer(model.config)
    copy.load_state_dict(state)
    return copy.to(model.device).eval().requires_grad_(False)


# How many chunks at once fit ------------------------------------------------------------------------------------------


def largest_fitting(peak: Callable[[int], float], limit: float, most: int) -> int:
    """The largest size whose peak memory stays under a limit, found by measuring growing sizes.

    Sizes double as long as the line through the last two peaks says that the double fits, so that none is tried that
    does not; the answer is where that line meets the limit.

    Args:
        peak: bytes at the peak of a pass over so many chunks; over 0 chunks, what is taken anyway.
        limit: bytes that there are.
        most: largest size that is of use.

    Returns:
        1 to ``most``.
    """
    size, last, before, here = 1, 0, peak(0), peak(1)
    while size < most:
        slope = max((here - before) / (size - last), 1.0)
        fits = min(int(size + max(limit - here, 0.0) / slope), most)
        if fits < min(2 * size, most):
            return fits
        size, last, before = min(2 * size, most), size, here
        here = peak(size)
    return size
