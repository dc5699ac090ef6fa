"""The choice of the device and of its arithmetic."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is a GPU if there is one.

    Raises:
        ValueError: PyTorch has no such device, or it isn't here (a missing CUDA falls back to the CPU with a message).
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {name!r}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; using the CPU", file=sys.stderr)
        return torch.device("cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here; use auto or cpu") from error
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Choose ``fp32`` or ``bf16``.

    ``auto`` takes bf16 on a GPU that has it and on a CPU whose bf16 product is faster, and fp32 on any other device.
    CPUs with AVX-512 BF16 or AMX multiply bf16 two to three times faster than fp32; others emulate it, several times
    slower, so a short product decides.

    Raises:
        ValueError: the device does not compute in this precision; the sentence names those that it has.
    """
    known = ["fp32"] if device.type == "cuda" and not _multiplies_bf16(device) else ["fp32", "bf16"]
    if name not in ("auto", *known):
        raise ValueError(f"{device} does not compute in {name}; choose {' or '.join(known)}")
    if name != "auto" or device.type == "cuda":
        return known[-1] if name == "auto" else name
    if device.type != "cpu":  # nothing is known of it
        return "fp32"
    return "bf16" if _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else "fp32"


def _multiplies_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _product_seconds(dtype: torch.dtype, size: int = 384) -> float:
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return best


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Compute fp32 products and convolutions in full on a GPU, where TF32 keeps only 10 bits of each factor.

    PyTorch allows cuDNN, which does the convolutions, to use TF32 unless it is forbidden. What that costs in bits has
    not been measured. On a CPU nothing changes.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device's memory did not suffice (a CPU's has no type of its own)."""
    refused = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return refused or "can't allocate memory" in str(error)
