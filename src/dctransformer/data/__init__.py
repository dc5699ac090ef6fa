"""Prepared data sets: making them from pictures, opening them, reading their triples; knows the codec only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dctransformer import lazy_names
from dctransformer.data.info import DatasetInfo
from dctransformer.data.prepare import prepare

if TYPE_CHECKING:
    from dctransformer.data.store import TripleStore

__all__ = ["DatasetInfo", "TripleStore", "prepare"]

# Opening a data set needs PyTorch; preparing one does not, and its workers on other machines start without it.
__getattr__ = lazy_names(__name__, {"store": ["TripleStore"]})
