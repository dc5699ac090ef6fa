"""DCTransformer: generating images with sparse representations."""

from dctransformer.codec import Codec, DCTImage, read_jpeg, write_jpeg
from dctransformer.hub.model import DCTransformer

__version__ = "0.1.0"

__all__ = ["Codec", "DCTImage", "DCTransformer", "__version__", "read_jpeg", "write_jpeg"]
