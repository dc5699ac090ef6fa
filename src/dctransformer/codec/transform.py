"""libjpeg's accurate integer transform ("islow"), forward and back, bit for bit.

libjpeg's DCT is integer arithmetic that rounds only at the end of each of its two passes. Up to there a pass is
linear, so a pass *is* an 8×8 integer matrix followed by a rounding shift. The matrices are taken here from
libjpeg's butterflies (jfdctint.c, jidctint.c) and applied as float64 products, which hold integers up to 2⁵³
exactly and run at full speed on any device.

Colour conversion, chroma subsampling ("h2v2" with its alternating bias), edge padding, triangular upsampling follow
libjpeg-turbo as Pillow calls it.

Shapes: B batch, H × W pixels, i × j blocks.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.codec import order
from dctransformer.codec.dct_image import grid_sizes

_CONST_BITS = 13
_PASS1_BITS = 2


def _fix(x: float, bits: int = _CONST_BITS) -> int:
    """Round a constant to fixed point as libjpeg's ``FIX`` does; a negative sign stays outside of the rounding."""
    return int(abs(x) * (1 << bits) + 0.5) * (1 if x > 0 else -1)


def _fix16(x: float) -> int:
    return _fix(x, 16)


# Blocks: forward and inverse DCT --------------------------------------------------------------------------------------


def _odd_part(t4: np.ndarray, t5: np.ndarray, t6: np.ndarray, t7: np.ndarray) -> tuple[np.ndarray, ...]:
    """Compute the rotations that both directions share (figure 8 of Loeffler, Ligtenberg, Moschytz), scaled by 2¹³."""
    z1, z2, z3, z4 = t4 + t7, t5 + t6, t4 + t6, t5 + t7
    z5 = (z3 + z4) * _fix(1.175875602)
    z1, z2 = z1 * -_fix(0.899976223), z2 * -_fix(2.562915447)
    z3, z4 = z3 * -_fix(1.961570560) + z5, z4 * -_fix(0.390180644) + z5
    return (
        t4 * _fix(0.298631336) + z1 + z3,
        t5 * _fix(2.053119869) + z2 + z4,
        t6 * _fix(3.072711026) + z2 + z3,
        t7 * _fix(1.501321110) + z1 + z4,
    )


@functools.cache
def _forward_matrix() -> np.ndarray:
    """Return one forward DCT pass before its rounding shift, scaled by 2¹³: int64 ``[8, 8]`` (frequency, sample)."""
    x = np.eye(8, dtype=np.int64)
    t = [x[k] + x[7 - k] for k in range(4)] + [x[3 - k] - x[4 + k] for k in range(4)]
    t10, t13, t11, t12 = t[0] + t[3], t[0] - t[3], t[1] + t[2], t[1] - t[2]
    z1 = (t12 + t13) * _fix(0.541196100)
    odd7, odd5, odd3, odd1 = _odd_part(*t[4:])
    one = 1 << _CONST_BITS
    return np.stack([
        (t10 + t11) * one, odd1, z1 + t13 * _fix(0.765366865), odd3,
        (t10 - t11) * one, odd5, z1 - t12 * _fix(1.847759065), odd7,
    ])  # fmt: skip


@functools.cache
def _inverse_matrix() -> np.ndarray:
    """Return one inverse DCT pass before its rounding shift, scaled by 2¹³: int64 ``[8, 8]`` (sample, frequency)."""
    x = np.eye(8, dtype=np.int64)
    z1 = (x[2] + x[6]) * _fix(0.541196100)
    t2, t3 = z1 - x[6] * _fix(1.847759065), z1 + x[2] * _fix(0.765366865)
    one = 1 << _CONST_BITS
    t0, t1 = (x[0] + x[4]) * one, (x[0] - x[4]) * one
    even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3]
    odd = _odd_part(x[7], x[5], x[3], x[1])[::-1]
    pairs = list(zip(even, odd, strict=True))
    return np.stack([e + o for e, o in pairs] + [e - o for e, o in reversed(pairs)])


def _two_passes(blocks: Tensor, matrix: np.ndarray, shifts: tuple[int, int]) -> Tensor:
    """Apply a matrix along the last axis and then along the one before it, each with a rounding shift.

    Args:
        blocks: contiguous float64 ``[M, 8, 8]``.
        matrix: int64 ``[8, 8]``.
        shifts: bits dropped after each pass.

    Returns:
        float64 ``[M, 8, 8]`` with the two axes swapped.
    """
    m = torch.from_numpy(matrix).to(blocks).T
    first, second = (m * 2.0**-shift for shift in shifts)
    # Scaling by a power of 2 is exact. A rounding shift adds a half and floors.
    blocks = (blocks.flatten(0, 1) @ first).add_(0.5).floor_().unflatten(0, (-1, 8))
    blocks = blocks.transpose(1, 2).flatten(0, 1)
    return (blocks @ second).add_(0.5).floor_().unflatten(0, (-1, 8))


def forward_blocks(samples: Tensor, table: Tensor) -> Tensor:
    """Transform and quantise a plane of whole blocks.

    Args:
        samples: 0..255, float32 ``[B, 8i, 8j]``.
        table: quantisation steps int ``[64]``, zigzag order.

    Returns:
        int16 ``[B, i, j, 64]``, zigzag order.
    """
    batch, height, width = samples.shape
    rows, cols = height // 8, width // 8
    blocks = (samples - 128).view(batch, rows, 8, cols, 8).transpose(2, 3).to(torch.float64)
    shifts = (_CONST_BITS - _PASS1_BITS, _CONST_BITS + _PASS1_BITS)
    # libjpeg takes rows first; the result comes transposed, and transposed tables and zigzag make up for that.
    blocks = _two_passes(blocks.reshape(-1, 8, 8), _forward_matrix(), shifts).float().flatten(1)
    # The DCT leaves a factor of 8. libjpeg rounds halves away from 0; the quotients are far from float32's limits.
    step = 8 * table.to(samples)[_from(_TRANSPOSED_UNZIGZAG, samples)]
    half = (step / 2).floor_()
    levels = (blocks + torch.copysign(half, blocks)).div_(step).to(torch.int16)
    return levels.index_select(1, _from(_TRANSPOSED_ZIGZAG, samples)).view(batch, rows, cols, 64)


def inverse_blocks(coefficients: Tensor, table: Tensor) -> Tensor:
    """Dequantise a plane of blocks and transform it back to samples.

    Exact for every coefficient that an encoder can produce; far outside, libjpeg's own builds differ.

    Args:
        coefficients: integers ``[B, i, j, 64]``, zigzag order.
        table: quantisation steps int ``[64]``, zigzag order.

    Returns:
        float32 samples, whole numbers 0..255, ``[B, 8i, 8j]``.
    """
    batch, rows, cols = coefficients.shape[:3]
    # libjpeg takes columns first, so the blocks go in transposed.
    natural = coefficients.reshape(-1, 64).index_select(1, _from(_TRANSPOSED_UNZIGZAG, coefficients))
    step = table.to(coefficients.device, torch.float64)[_from(_TRANSPOSED_UNZIGZAG, coefficients)]
    shifts = (_CONST_BITS - _PASS1_BITS, _CONST_BITS + _PASS1_BITS + 3)
    blocks = _two_passes((natural * step).unflatten(1, (8, 8)), _inverse_matrix(), shifts)
    samples = (blocks.float() + 128).clamp_(0, 255)
    return samples.unflatten(0, (batch, rows, cols)).transpose(2, 3).reshape(batch, 8 * rows, 8 * cols)


_TRANSPOSED_ZIGZAG = order.ZIGZAG % 8 * 8 + order.ZIGZAG // 8
_TRANSPOSED_UNZIGZAG = np.argsort(_TRANSPOSED_ZIGZAG)


def _from(index: np.ndarray, like: Tensor) -> Tensor:
    """Return an index array on the device of a tensor."""
    return torch.from_numpy(index).to(like.device)


# Pixels to planes -----------------------------------------------------------------------------------------------------

# The fixed-point sums of colour conversion stay below 2²⁴, where float32 holds every integer.


def _shift16(x: Tensor) -> Tensor:
    """Compute ``x >> 16`` of whole numbers, in place."""
    return x.mul_(2.0**-16).floor_()


def _ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert RGB to YCbCr (jccolor.c): uint8 ``[B, H, W, 3]`` to three float32 ``[B, H, W]``."""
    r, g, b = rgb.permute(3, 0, 1, 2).contiguous().float()

    def mix(red: float, green: float, blue: float, offset: int) -> Tensor:
        return _shift16((_fix16(red) * r).add_(g, alpha=_fix16(green)).add_(b, alpha=_fix16(blue)).add_(offset))

    half, centre = 1 << 15, 128 << 16
    return (
        mix(0.29900, 0.58700, 0.11400, half),
        mix(-0.16874, -0.33126, 0.5, centre + half - 1),
        mix(0.5, -0.41869, -0.08131, centre + half - 1),
    )


def _extend(plane: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of float32 ``[B, ·, ·]`` up to a size."""
    down, across = height - plane.shape[1], width - plane.shape[2]
    return F.pad(plane[:, None], (0, across, 0, down), mode="replicate")[:, 0] if down or across else plane


def _halve(plane: Tensor) -> Tensor:
    """Average 2×2 samples, rounding down and up in alternate columns (h2v2): ``[B, 2m, 2n]`` to ``[B, m, n]``."""
    total = plane[:, ::2] + plane[:, 1::2]
    total = total[..., ::2] + total[..., 1::2]
    bias = 1 + torch.arange(total.shape[2], device=plane.device) % 2
    return (total + bias).mul_(0.25).floor_()


def encode_rgb(rgb: Tensor, luma_table: Tensor, chroma_table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the quantised 4:2:0 coefficients of pictures (paper, section 3.1), as libjpeg's encoder computes them.

    Args:
        rgb: uint8 ``[B, H, W, 3]``, any size.
        luma_table: int ``[64]``, zigzag order.
        chroma_table: int ``[64]``, zigzag order.

    Returns:
        luma int16 ``[B, ⌈H/8⌉, ⌈W/8⌉, 64]``, cb and cr int16 ``[B, ⌈H/16⌉, ⌈W/16⌉, 64]``.
    """
    height, width = rgb.shape[1:3]
    luma_grid, chroma_grid = grid_sizes(height, width, (2, 2))
    y, cb, cr = _ycc(rgb)
    luma = forward_blocks(_extend(y, 8 * luma_grid[0], 8 * luma_grid[1]), luma_table)
    chroma = []
    for plane in (cb, cr):
        # Pixels are repeated to the right edge but only to an even number of rows; then rows of the small plane are.
        small = _halve(_extend(plane, height + height % 2, 16 * chroma_grid[1]))
        chroma.append(forward_blocks(_extend(small, 8 * chroma_grid[0], 8 * chroma_grid[1]), chroma_table))
    return luma, chroma[0], chroma[1]


def encode_grey(grey: Tensor, luma_table: Tensor) -> Tensor:
    """Return the quantised coefficients of grey pictures: uint8 ``[B, H, W]`` to int16 ``[B, ⌈H/8⌉, ⌈W/8⌉, 64]``."""
    (rows, cols), _ = grid_sizes(grey.shape[1], grey.shape[2], (1, 1))
    return forward_blocks(_extend(grey.float(), 8 * rows, 8 * cols), luma_table)


# Planes to pixels -----------------------------------------------------------------------------------------------------


def _double(plane: Tensor, dim: int, bias: tuple[int, int], divisor: int) -> Tensor:
    """Double a plane along ``dim`` by a triangle filter: three parts each sample itself, one part its neighbour."""
    size = plane.shape[dim]
    first, last = plane.narrow(dim, 0, 1), plane.narrow(dim, size - 1, 1)
    before = torch.cat([first, plane.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([plane.narrow(dim, 1, size - 1), last], dim)
    halves = [(3 * plane).add_(side).add_(b) for side, b in ((before, bias[0]), (after, bias[1]))]
    doubled = torch.stack(halves, dim=dim + 1).flatten(dim, dim + 1)
    return doubled.div_(divisor).floor_() if divisor > 1 else doubled


def upsample(plane: Tensor, step: tuple[int, int], height: int, width: int) -> Tensor:
    """Return a chroma plane at luma's resolution, as libjpeg-turbo's "fancy" upsampling does it (jdsample.c).

    Args:
        plane: float32 ``[B, ·, ·]`` samples, at least as many as the picture needs.
        step: luma samples per chroma sample, down and across.
        height: of the picture.
        width: of the picture.

    Returns:
        float32 ``[B, height, width]``.
    """
    down, across = step
    # Samples beyond the picture's own are padding: the filter repeats the last real one instead.
    plane = plane[:, : -(-height // down), : -(-width // across)]
    wide = plane.shape[2] > 2
    if step == (2, 2) and wide:
        plane = _double(_double(plane, 1, (0, 0), 1), 2, (8, 7), 16)
    elif step == (1, 2) and wide:
        plane = _double(plane, 2, (1, 2), 4)
    elif step == (2, 1):
        plane = _double(plane, 1, (1, 2), 4)
    else:
        plane = plane.repeat_interleave(down, 1).repeat_interleave(across, 2)
    return plane[:, :height, :width]


def _rgb(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    """Convert YCbCr to RGB (jdcolor.c): three float32 ``[B, H, W]`` to uint8 ``[B, H, W, 3]``."""
    cb, cr = cb - 128, cr - 128
    half = 1 << 15
    r = y + _shift16(_fix16(1.40200) * cr + half)
    g = y + _shift16((-_fix16(0.34414) * cb).sub_(cr, alpha=_fix16(0.71414)).add_(half))
    b = y + _shift16(_fix16(1.77200) * cb + half)
    return torch.stack([part.clamp_(0, 255).to(torch.uint8) for part in (r, g, b)], dim=-1)


def decode(
    luma: Tensor,
    cb: Tensor | None,
    cr: Tensor | None,
    luma_table: Tensor,
    chroma_table: Tensor | None,
    height: int,
    width: int,
    chroma_step: tuple[int, int],
) -> Tensor:
    """Return the pixels of coefficients, as libjpeg-turbo's decoder (Pillow's) computes them.

    Args: as the attributes of `DCTImage`.

    Returns:
        uint8 ``[B, height, width, 3]``; grey pictures have three equal components.
    """
    y = inverse_blocks(luma, luma_table)[:, :height, :width]
    if cb is None or cr is None or chroma_table is None:
        return y.to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()
    blue, red = (upsample(inverse_blocks(part, chroma_table), chroma_step, height, width) for part in (cb, cr))
    return _rgb(y, blue, red)
