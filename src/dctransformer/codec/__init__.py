"""Pixels, DCT images, triples and JPEG files, exactly as libjpeg has them; knows nothing of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dctransformer import lazy_names

if TYPE_CHECKING:
    from dctransformer.codec.codec import Codec
    from dctransformer.codec.dct_image import DCTImage
    from dctransformer.codec.jpeg import huffman_bytes, read_jpeg, read_jpeg_bytes, write_jpeg, write_jpeg_bytes
    from dctransformer.codec.segments import check_scans
    from dctransformer.codec.tables import quant_tables, value_limits

__all__ = [
    "Codec",
    "DCTImage",
    "check_scans",
    "huffman_bytes",
    "quant_tables",
    "read_jpeg",
    "read_jpeg_bytes",
    "value_limits",
    "write_jpeg",
    "write_jpeg_bytes",
]

__getattr__ = lazy_names(
    __name__,
    {
        "codec": ["Codec"],
        "dct_image": ["DCTImage"],
        "jpeg": ["huffman_bytes", "read_jpeg", "read_jpeg_bytes", "write_jpeg", "write_jpeg_bytes"],
        "segments": ["check_scans"],
        "tables": ["quant_tables", "value_limits"],
    },
)
