"""The stored form of weights: floating-point tensors, or matrices of int8 with one fp32 scale per row.

The compact form is an ordinary safetensors file. The weight ``NAME`` of a linear or convolutional layer is int8 of its
own shape, and ``NAME.scale`` is fp32 with one number per row (per index of the first dimension): the weight is the
product of both, and a row's scale is its largest absolute value over 127. Embeddings and all other tensors are bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SCALE = ".scale"
"""Suffix to the name of an int8 matrix in the name of its scales."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""Types of weights that can be read as they are, as safetensors names them."""

_LARGEST = 127


def pack_weights(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return a model's tensors as they are to be written.

    Args:
        model: on any device.
        dtype: of floating-point tensors; ``torch.int8`` for the compact form, None for what they are.

    Raises:
        ValueError: the dtype is another integer type.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if dtype is None:
        return tensors
    if dtype != torch.int8:
        if not dtype.is_floating_point:
            raise ValueError(f"weights can't be stored as {dtype}; choose a floating-point type or torch.int8")
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    layers = (nn.Linear, nn.Conv2d)
    matrices = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, layers)}
    result = {}
    for name, tensor in tensors.items():
        if name in matrices:
            result[name], result[name + SCALE] = _quantised(tensor)
        else:
            result[name] = tensor.bfloat16() if tensor.is_floating_point() else tensor
    return result


def _quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix: returns int8 of the same shape, and the fp32 scale of each row."""
    rows = matrix.float().flatten(1)
    scale = rows.abs().amax(1) / _LARGEST
    whole = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return whole.to(torch.int8).view(matrix.shape), scale


def unpack_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a file in fp32; each weight must have passed `check_type`.

    Raises:
        ValueError: a scale is negative or not finite.
    """
    weights = {}
    scales = {name + SCALE for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    for name in (n for n in tensors if n not in scales):
        weights[name] = tensors[name].float()
        if tensors[name].dtype == torch.int8:
            scale = tensors[name + SCALE].float()
            if not (torch.isfinite(scale).all() and bool((scale >= 0).all())):
                raise ValueError(f"{name}{SCALE} holds negative numbers, NaN or infinity")
            weights[name] *= scale.view(-1, *[1] * (weights[name].ndim - 1))
    return weights


def check_type(name: str, shapes: dict[str, list[int]], types: dict[str, str]) -> None:
    """Check the kind of numbers of one weight in a file's header, and that an int8 matrix has its scales.

    Args:
        name: of the weight.
        shapes: of the tensors in the file.
        types: of the same tensors, as safetensors names them.

    Raises:
        ValueError: the weight is neither floating-point nor an int8 matrix with one scale per row.
    """
    shape, scale = shapes[name], name + SCALE
    if types[name] == "I8" and len(shape) > 1:
        if shapes.get(scale) != shape[:1] or types[scale] not in FLOATING:
            raise ValueError(
                f"{name} as I8 without one floating-point number per row in {scale} ({shape[0]} in all): "
                "save the model again"
            )
    elif types[name] not in FLOATING:
        raise ValueError(
            f"{name} as {types[name]}; weights must be floating-point numbers ({', '.join(FLOATING)}), or int8 "
            "matrices: save the model again"
        )
