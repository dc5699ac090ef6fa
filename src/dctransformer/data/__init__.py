"""From pictures to sequences: preparing data sets, reading their triples, cutting chunks; knows the codec only."""

from dctransformer.data.info import DatasetInfo
from dctransformer.data.prepare import prepare
from dctransformer.data.store import TripleStore

__all__ = ["DatasetInfo", "TripleStore", "prepare"]
