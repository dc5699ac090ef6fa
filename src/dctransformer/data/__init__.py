"""Prepared data sets: making them from pictures, opening them, reading their triples; knows the codec only."""

from dctransformer.data.info import DatasetInfo
from dctransformer.data.prepare import prepare
from dctransformer.data.store import TripleStore

__all__ = ["DatasetInfo", "TripleStore", "prepare"]
