"""Sources of pictures: image files, Parquet, archives, `datasets`; here or at a URL.

A source lists its pictures first (`Source.items`, cheap, in a fixed order) and reads them later, one at a time and in
any process (`Source.read`).
"""

from dctransformer.data.sources.base import Item, Source, text
from dctransformer.data.sources.recognise import is_single_picture, is_url, open_source

__all__ = ["Item", "Source", "is_single_picture", "is_url", "open_source", "text"]
