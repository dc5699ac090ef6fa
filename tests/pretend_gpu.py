"""A simulated device: tensors that report ``cuda`` or ``mps``, compute on the CPU, and reject CPU tensors.

It finds mistakes that are hidden on a CPU: tensors on the wrong device, `Tensor.numpy` of device tensors, fp64 on a
device without it, and synchronisation of the host with the device. Streams, graphs, kernels and memory are not
simulated.

To PyTorch, the tensors are CPU tensors with a wrapper. Only ``device``, ``is_cuda`` and ``is_mps`` report the simulated
device, so that the autograd engine starts no threads for it and other tests are not affected.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
    "aten::repeat_interleave.Tensor",
}  # fmt: skip
"""Operations for which the host waits: it needs their result, or the size of it."""

INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
FACTORIES = {
    "empty", "zeros", "ones", "full", "arange", "rand", "randn", "randint", "randperm", "linspace", "eye",
    "empty_strided", "scalar_tensor", "new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like",
    "ones_like", "full_like", "rand_like", "randn_like", "tril_indices", "triu_indices",
}  # fmt: skip
COPIES = {"tensor", "as_tensor", "asarray", "new_tensor"}
"""Functions that copy numbers of the host to a device, and wait for it."""


class DeviceTensor(torch.Tensor):
    """A tensor of the simulated device; ``inner`` holds its values on the CPU."""

    inner: Tensor
    where: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, inner: Tensor, where: torch.device) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=inner.device,
        )  # fmt: skip
        tensor.inner, tensor.where = inner, where
        return tensor

    def __repr__(self) -> str:
        return f"{self.where}({self.inner!r})"

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.where

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.where.type == "cuda"

    @property
    def is_mps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.where.type == "mps"

    @property
    def is_cpu(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return False

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert a {self.where} tensor to numpy; use .cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        copied = DeviceTensor(self.inner.detach().clone(), self.where).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a pretended device outside of pretend_device()")


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, DeviceTensor) else x


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors among the arguments."""
    tensors: list[Tensor] = []

    def collect(parts: Any) -> None:
        for x in parts:
            if isinstance(x, Tensor):
                tensors.append(x)
            elif type(x) in (list, tuple):
                collect(x)

    collect(args)
    collect(kwargs.values())
    return tensors


def _each(change: Callable[[Any], Any], x: Any) -> Any:
    """Apply a function to all tensors among arguments or results."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, dict):
        return {key: _each(change, part) for key, part in x.items()}
    return type(x)(_each(change, part) for part in x) if type(x) in (list, tuple) else x


def _place_of_call() -> str:
    """File and line of the innermost call in this project."""
    frame = sys._getframe(1)
    while frame is not None and "/dctransformer/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "the test"
    return f"{frame.f_code.co_filename.rpartition('/dctransformer/')[2]}:{frame.f_lineno}"


class PretendDevice:
    """Counts the host's reads and copies while a device is simulated.

    Attributes:
        device: the device, with an index.
        reads: number of times the host waited for a value or a size from the device, by operation and code line.
        copies: number of times the host waited for a copy to the device, by code line.
    """

    def __init__(self, kind: str):
        self.device = torch.device(kind, 0)
        self.reads: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()
        self.busy = False
        """Whether an operation on the device's tensors is running: all tensors that it makes are the device's."""

    def forget(self) -> None:
        """Reset the counts to 0."""
        self.reads.clear()
        self.copies.clear()

    def read(self, operation: str) -> None:
        """Count a read by the host."""
        self.reads[f"{operation} at {_place_of_call()}"] += 1

    def copied(self) -> None:
        """Count a copy that the host waits for."""
        self.copies[_place_of_call()] += 1

    def is_device(self, what: Any) -> bool:
        """Whether a device, or its name, is the simulated one."""
        if not isinstance(what, str | torch.device) or what == "auto":
            return False
        return torch.device(what).type == self.device.type

    def place(self, x: Any) -> Any:
        """Move CPU tensors to the simulated device, and leave everything else unchanged."""
        if not isinstance(x, Tensor) or isinstance(x, DeviceTensor):
            return x
        if self.device.type == "mps" and x.dtype in (torch.float64, torch.complex128):
            raise TypeError("the MPS framework doesn't support float64")
        return DeviceTensor(x.detach(), self.device)

    def group(self, tensors: Any) -> dict[tuple[torch.device, torch.dtype], Any]:
        """Group tensors by device and dtype, as PyTorch's optimisers and gradient clipping do."""
        groups: dict[Any, Any] = _group_tensors_by_device_and_dtype(tensors)
        return {(lists[0][0].device, dtype): (lists, where) for (_, dtype), (lists, where) in groups.items()}

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on tensors that may be on the simulated device."""
        name = func._schema.name
        tensors = _tensors(args, kwargs)
        device_tensors = [x for x in tensors if isinstance(x, DeviceTensor)]
        if not device_tensors and not self.busy:
            return func(*args, **kwargs)
        elsewhere = [x for x in tensors if not isinstance(x, DeviceTensor) and x.ndim > 0]
        if device_tensors and elsewhere:
            self._meet(name, args, elsewhere)
        if device_tensors and (name in READS or f"{name}.{func._schema.overload_name}" in READS):
            self.read(name)
        if name in INDEXING and isinstance(args[0], DeviceTensor):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            fills = name != "aten::index" and args[2].numel() == 1  # becomes a masked_fill
            if masks and not fills:
                self.read(f"{name} by a mask")
        result = func(*_each(_inner, args), **_each(_inner, kwargs))
        wrapped = {id(x.inner): x for x in device_tensors}
        return _each(lambda x: wrapped[id(x)] if id(x) in wrapped else self.place(x), result)

    def _meet(self, name: str, args: Any, elsewhere: list[Tensor]) -> None:
        """Reject operations that mix tensors of the device and the CPU, except copies and indices."""
        if name == "aten::copy_":
            if isinstance(args[0], DeviceTensor):
                if not (len(args) > 2 and args[2]):
                    self.copied()
            else:
                self.read(name)
        elif name in INDEXING and isinstance(args[0], DeviceTensor) and all(x.dtype == torch.int64 for x in elsewhere):
            self.copied()
        else:
            shapes = [tuple(x.shape) for x in elsewhere]
            raise RuntimeError(f"{name}: expected all tensors on one device, found {self.device} and cpu: {shapes}")

    def to(self, x: Tensor, device: Any, dtype: torch.dtype | None, non_blocking: bool, copy: bool) -> Tensor:
        """Implement `Tensor.to`."""
        if device is None or self.is_device(device) == isinstance(x, DeviceTensor):
            return x.to(dtype or x.dtype, copy=copy)
        if self.is_device(device):
            assert not (x.requires_grad and torch.is_grad_enabled()), "no gradients between devices"
            if not non_blocking:
                self.copied()
            return self.place(x.to(dtype or x.dtype, copy=True))
        assert isinstance(x, DeviceTensor)
        self.read("to cpu")
        return x.inner.to(dtype or x.dtype, copy=True)


class _Functions(TorchFunctionMode):
    """Intercepts PyTorch functions before they find that there is no such device."""

    def __init__(self, pretended: PretendDevice):
        super().__init__()
        self.pretended = pretended

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute
            return func(*args)
        kwargs, pretended = dict(kwargs or {}), self.pretended
        if func in (Tensor.cpu, Tensor.cuda):
            device = "cpu" if func is Tensor.cpu else "cuda"
            return pretended.to(args[0], device, None, kwargs.get("non_blocking", False), False)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.tolist and isinstance(args[0], DeviceTensor):
            pretended.read("tolist")
            return args[0].inner.tolist()
        if func is Tensor.numpy and isinstance(args[0], DeviceTensor):
            return args[0].numpy()
        device = kwargs.get("device")
        if name in COPIES and (pretended.is_device(device) or (device is None and isinstance(args[0], DeviceTensor))):
            pretended.copied()
            values = args[-1]
            assert not isinstance(values, DeviceTensor) or func is not torch.tensor
            if isinstance(values, DeviceTensor):
                return values.to(kwargs.get("dtype") or values.dtype)
            return pretended.place(torch.tensor(values, dtype=kwargs.get("dtype")))
        if name in FACTORIES and device is not None and not (args and isinstance(args[0], Tensor)):
            on_device = pretended.is_device(device)
            result = func(*args, **{**kwargs, "device": "cpu"})
            return pretended.place(result) if on_device else result
        if name in FACTORIES and args and isinstance(args[0], Tensor):
            on_device = isinstance(args[0], DeviceTensor) if device is None else pretended.is_device(device)
            kwargs.pop("device", None)
            result = func(_inner(args[0]), *args[1:], **kwargs)
            return pretended.place(result) if on_device else result
        before = pretended.busy
        pretended.busy = any(isinstance(x, DeviceTensor) for x in _tensors(args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            pretended.busy = before

    def _to(
        self, x: Tensor, *args: Any, device: Any = None, dtype: torch.dtype | None = None, non_blocking: bool = False,
        copy: bool = False, other: Tensor | None = None, memory_format: Any = None,
    ) -> Tensor:  # fmt: skip
        for arg in args:
            if isinstance(arg, torch.dtype):
                dtype = arg
            elif isinstance(arg, str | torch.device):
                device = arg
            elif isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, bool):
                non_blocking = arg
        return self.pretended.to(x, device, dtype, non_blocking, copy)


class _Operations(TorchDispatchMode):
    """Runs the operations, including those of backward passes."""

    def __init__(self, pretended: PretendDevice):
        super().__init__()
        self.pretended = pretended

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # attributes of tensors are functions, too
            return self.pretended.run(func, args, kwargs or {})


class _Autocast(torch.amp.autocast_mode.autocast):
    """Autocasting on the simulated device, whose tensors are CPU tensors to PyTorch."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type in ("cuda", "mps") else device_type, *args, **kwargs)


class _NoInference:
    """Replaces `torch.inference_mode`, which does not support tensor wrappers, by `torch.no_grad`."""

    @staticmethod
    def enter(mode: Any) -> None:
        mode.before = torch.is_grad_enabled()
        torch.set_grad_enabled(mode.before and not mode.mode)

    @staticmethod
    def exit(mode: Any, *args: Any) -> None:
        torch.set_grad_enabled(mode.before)


@contextlib.contextmanager
def pretend_device(kind: str = "cuda") -> Iterator[PretendDevice]:
    """Simulate a device inside the block.

    Args:
        kind: ``cuda``, or ``mps``, which has no fp64.
    """
    pretended = PretendDevice(kind)
    patches: dict[Any, dict[str, Callable]] = {
        torch.inference_mode: {"__enter__": _NoInference.enter, "__exit__": _NoInference.exit},
        torch: {"autocast": _Autocast},
        torch.amp: {"autocast": _Autocast},
        torch.nn.utils.clip_grad: {"_group_tensors_by_device_and_dtype": pretended.group},
    }
    if kind == "cuda":
        patches[torch.cuda] = {
            "is_available": lambda: True,
            "is_bf16_supported": lambda *args, **kwargs: True,
            "synchronize": lambda *args: None,
            "device_count": lambda: 1,
            "device": lambda device: contextlib.nullcontext(),
            "get_device_capability": lambda device=None: (9, 0),
        }
    with contextlib.ExitStack() as stack:
        for module, replaced in patches.items():
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(module, name, value))
        swap = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, swap)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Functions(pretended))
        stack.enter_context(_Operations(pretended))
        yield pretended


def on_host(x: Tensor) -> Tensor:
    """A copy of a tensor on the CPU, which is not counted as a read."""
    return _inner(x).detach()
