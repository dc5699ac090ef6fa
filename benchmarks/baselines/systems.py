"""DCTransformer, Image GPT and VQ-VAE behind one interface: what is trained, sampled, reconstructed and counted."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.image_gpt import ImageGPT
from baselines.loop import RATES, Stage, mean_loss, parameters
from baselines.palette import COLOURS, fit_palette
from baselines.pictures import Batch, PictureSteps, PictureStore, flat_batch, shrink
from baselines.raster import RasterConfig, RasterTransformer, sample_tokens
from baselines.vqvae import SHRINK, VQVAE, VQVAEConfig
from dctransformer.codec import Codec
from dctransformer.codec.grid import Grid
from dctransformer.data.info import DatasetInfo
from dctransformer.data.store import TripleStore
from dctransformer.evaluate.pictures import open_reference
from dctransformer.hub.pretrained import read_weights, write_weights
from dctransformer.model.config import ModelConfig, preset
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import fill
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sampling.rows import Request
from dctransformer.training.config import TrainConfig
from dctransformer.training.setup import Steps
from dctransformer.training.validation import validation_sequences

TOKENS_A_STEP = 2048
"""Predictions a step of every network (a row at least): what DCTransformer's 16 chunks of 128 triples are."""

AUTOENCODER_PARAMETERS = 0.15
"""The autoencoder's part of VQ-VAE's parameters."""

AUTOENCODER_MINUTES = 0.4
"""The autoencoder's part of VQ-VAE's minutes."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The two splits of a prepared data set, as all systems see them.

    Attributes:
        folder: of the data set.
        train: pictures to learn from, before the codec. (DCTransformer learns from their coefficients.)
        held_out: pictures to choose learning rates by, to count bits of and to reconstruct, before the codec, too.
        scored: how many of the held-out pictures losses and bits are taken of.
        decoded: the training pictures after the codec, uint8 ``[n, S, S, 3]``.
    """

    folder: Path
    train: PictureStore
    held_out: PictureStore
    scored: int
    decoded: Tensor

    @classmethod
    def open(cls, folder: str | Path, scored: int, originals: str | Path | None = None) -> Data:
        """Read a prepared data set and the pictures that it was made from.

        Args:
            folder: of the data set.
            scored: how many of the held-out pictures losses and bits are taken of.
            originals: folder that it was prepared from, if it is no longer where it was.

        Raises:
            ValueError: there is none, its pictures are not squares of one size, a split is empty or damaged, or the
                originals are not at hand.
        """
        info = DatasetInfo.load(folder)
        shape = preset("small", quality=info.quality, size=info.side)
        stores = []
        for split in ("train", "validation"):
            store = PictureStore.open(folder, split)
            reference = open_reference(folder, shape, split=split, originals=originals)
            if reference.originals is None:
                raise ValueError(f"the baselines learn from the pictures before the codec, but {reference.why_not}")
            stores.append((store, dataclasses.replace(store, pixels=reference.originals.read(0, len(store)))))
        (coded, train), (_, held_out) = stores
        return cls(Path(folder), train, held_out, scored, coded.pixels)

    @property
    def labels(self) -> int:
        """Number of classes."""
        return len(self.train.info.labels)


class System(abc.ABC):
    """A way to generate pictures."""

    def __init__(self, name: str, data: Data):
        self.name, self.data = name, data
        self.networks: dict[str, Any] = {}
        """The trained networks by their stages' names."""

    @abc.abstractmethod
    def stages(self) -> list[Stage]:
        """What is trained, in order; a later stage may use the networks of the earlier ones."""

    @property
    @abc.abstractmethod
    def tokens(self) -> float:
        """Tokens a picture, each a step of its sampling (DCTransformer: triples of a training picture, their mean)."""

    @abc.abstractmethod
    def draw(self, labels: list[int], config: SampleConfig, first: int = 0) -> Tensor:
        """Generate pictures, one a label, numbered from ``first``: uint8 ``[n, S, S, 3]``."""

    @abc.abstractmethod
    def reconstructed(self) -> Tensor:
        """The held-out pictures as the system's representation holds them: uint8 ``[n, S, S, 3]``."""

    @abc.abstractmethod
    def bits(self) -> float:
        """Exact bits per picture of the representation of the first held-out ones, the mean."""

    @property
    def parameters(self) -> int:
        """Trained numbers of all networks."""
        return sum(parameters(stage.make()) for stage in self.stages())

    def save(self, folder: Path) -> None:
        """Write the networks' weights, a folder a stage."""
        for name, network in self.networks.items():
            # Weight files hold no bool (the codebook's mark that it has begun).
            state = {k: v.float() if v.dtype == torch.bool else v for k, v in network.state_dict().items()}
            write_weights(state, folder / name)

    def load(self, folder: Path) -> None:
        """Take up networks that `save` wrote.

        Raises:
            ValueError: a file is missing, damaged or of another shape.
        """
        for stage in self.stages():
            network = stage.make()
            network.load_state_dict(read_weights(folder / stage.name, network.state_dict()))
            self.networks[stage.name] = network.eval().requires_grad_(False)


class DCTransformerSystem(System):
    """The method itself, trained for generating alone."""

    def __init__(self, config: ModelConfig, data: Data):
        """Args: config: the shape; quality, size and labels are taken from the data."""
        super().__init__("DCTransformer", data)
        self.store, self.held_out = (TripleStore.open(data.folder, s, progress=False) for s in ("train", "validation"))
        info, names = self.store.info, tuple(self.store.info.labels)
        self.config = dataclasses.replace(
            config, quality=info.quality, size=info.side, num_labels=len(names), label_names=names
        )

    def stages(self) -> list[Stage]:
        """One."""
        batch = max(1, TOKENS_A_STEP // self.config.stride)

        def batches(config: TrainConfig) -> Steps:
            return Steps(self.store, self.config, config)

        def loss(network: DCTransformer) -> float:
            return self._bits(network) * math.log(2) / self.tokens

        return [Stage("model", lambda: DCTransformer(self.config), batches, loss, batch, self.tokens)]

    @property
    def tokens(self) -> float:
        """Triples and the stop."""
        return float(np.diff(self.store.offsets).mean()) + 1

    def draw(self, labels: list[int], config: SampleConfig, first: int = 0) -> Tensor:
        """By the sampling engine."""
        requests = [Request(first + i, label) for i, label in enumerate(labels)]
        grid = Grid.of_size(self.config.size, self.config.size)
        return fill(self.networks["model"], requests, grid, config).pixels()

    def reconstructed(self) -> Tensor:
        """The JPEG files themselves."""
        codec, info = Codec(self.held_out.info.quality), self.held_out.info
        triples = [self.held_out.triples(i) for i in range(len(self.held_out))]
        return codec.decode(codec.from_triples(triples, info.side, info.side))

    def bits(self) -> float:
        """Of the quantised DCT coefficients."""
        return self._bits(self.networks["model"])

    def _bits(self, network: DCTransformer) -> float:
        pictures = range(min(self.data.scored, len(self.held_out)))
        lengths = code_lengths(network, validation_sequences(self.held_out, self.config, pictures))
        return float(lengths.bits.sum()) / len(pictures)


class TokenSystem(System):
    """What Image GPT and VQ-VAE share: pictures as a square of tokens, and the Transformer over them."""

    prior: str
    """Name of the Transformer's stage."""
    rates: tuple[float, ...] = RATES
    """Learning rates that are tried for it."""
    raster: RasterConfig

    @abc.abstractmethod
    def to_tokens(self, pictures: Tensor) -> Tensor:
        """uint8 ``[B, S, S, 3]`` to int64 ``[B, L]``."""

    @abc.abstractmethod
    def to_pictures(self, tokens: Tensor) -> Tensor:
        """Inverse of `to_tokens`, as far as there is one."""

    def transformer(self, make: Callable[[], RasterTransformer], share: float = 1.0) -> Stage:
        """The Transformer's stage."""

        def batches(config: TrainConfig) -> PictureSteps:
            return PictureSteps(self.data.train, config, self._batch)

        batch = max(1, TOKENS_A_STEP // self.raster.length)
        return Stage(
            self.prior, make, batches, lambda n: mean_loss(n, self._held_out()), batch, self.raster.length, share,
            self.rates,
        )  # fmt: skip

    @property
    def tokens(self) -> float:
        """All of the square."""
        return float(self.raster.length)

    def draw(self, labels: list[int], config: SampleConfig, first: int = 0) -> Tensor:
        """With key/value caches."""
        return self.to_pictures(sample_tokens(self.networks[self.prior], labels, config, first=first))

    def reconstructed(self) -> Tensor:
        """There and back."""
        parts = self.data.held_out.pixels.split(64)
        return torch.cat([self.to_pictures(self.to_tokens(part)) for part in parts])

    def bits(self) -> float:
        """Of the tokens."""
        return mean_loss(self.networks[self.prior], self._held_out()) * self.raster.length / math.log(2)

    def _batch(self, pictures: Tensor, labels: Tensor) -> Batch:
        return flat_batch(self.to_tokens(pictures), labels)

    def _held_out(self) -> list[Batch]:
        rows = max(1, 4 * TOKENS_A_STEP // self.raster.length)
        known = self.data.held_out
        parts = zip(known.pixels[: self.data.scored].split(rows), known.labels[: self.data.scored].split(rows),
                    strict=True)  # fmt: skip
        return [self._batch(pictures, labels) for pictures, labels in parts]


class ImageGPTSystem(TokenSystem):
    """Image GPT at a given side."""

    prior = "model"
    rates = (3e-4, 1e-3, 3e-3)

    def __init__(self, raster: RasterConfig, data: Data, seed: int = 0):
        """Args: raster: the shape; data; seed: of the palette.

        Raises:
            ValueError: the side does not divide that of the pictures.
        """
        super().__init__(f"Image GPT, {raster.side} px", data)
        size = data.train.info.side
        if raster.side < 1 or size % raster.side:
            raise ValueError(
                f"Image GPT's side {raster.side} does not divide the pictures' {size} pixels; choose another"
            )
        self.raster, self.seed = raster, seed

    @functools.cached_property
    def palette(self) -> Tensor:
        """uint8 ``[K, 3]``, of the training pictures."""
        return fit_palette(shrink(self.data.train.pixels, self.raster.side), self.raster.kinds, self.seed)

    @functools.cached_property
    def _reader(self) -> ImageGPT:
        """Reads and writes pictures; its Transformer is not used."""
        return ImageGPT(dataclasses.replace(self.raster, layers=1, hidden=8), self.palette)

    @property
    def parameters(self) -> int:
        """The palette is none of them, and need not be fitted to count."""
        return parameters(ImageGPT(self.raster))

    def stages(self) -> list[Stage]:
        """One."""
        return [self.transformer(lambda: ImageGPT(self.raster, self.palette))]

    def to_tokens(self, pictures: Tensor) -> Tensor:
        """Nearest colours."""
        return self._reader.tokens(pictures)

    def to_pictures(self, tokens: Tensor) -> Tensor:
        """The palette's colours, enlarged to the data's size."""
        return self._reader.pictures(tokens, self.data.train.info.side)


class VQVAESystem(TokenSystem):
    """VQ-VAE and its prior, trained one after the other."""

    prior = "prior"

    def __init__(self, autoencoder: VQVAEConfig, raster: RasterConfig, data: Data):
        """Args: autoencoder: its shape; raster: the prior's; data."""
        super().__init__("VQ-VAE + prior", data)
        self.autoencoder, self.raster = autoencoder, raster

    def stages(self) -> list[Stage]:
        """Autoencoder, prior."""
        size = self.data.train.info.side
        known = self.data.held_out

        def whole(pictures: Tensor, labels: Tensor) -> Batch:
            return flat_batch(pictures, labels, size**2)

        def batches(config: TrainConfig) -> PictureSteps:
            return PictureSteps(self.data.train, config, whole)

        def loss(network: nn.Module) -> float:
            return mean_loss(network, [whole(*pair) for pair in zip(known.pixels.split(64), known.labels.split(64),
                                                                    strict=True)])  # fmt: skip

        batch = max(1, TOKENS_A_STEP // self.raster.length)
        first = Stage("autoencoder", lambda: VQVAE(self.autoencoder), batches, loss, batch, size**2,
                      AUTOENCODER_MINUTES, rates=(5e-4, 1.5e-3, 4.5e-3))  # fmt: skip
        return [first, self.transformer(lambda: RasterTransformer(self.raster), 1 - AUTOENCODER_MINUTES)]

    def to_tokens(self, pictures: Tensor) -> Tensor:
        """Numbers of the codes."""
        network = self.networks["autoencoder"]
        return network.tokens(pictures.to(network.device)).cpu()

    def to_pictures(self, tokens: Tensor) -> Tensor:
        """The decoder's pictures."""
        network = self.networks["autoencoder"]
        return torch.cat([network.pictures(part.to(network.device)).cpu() for part in tokens.split(64)])


# Equal parameters -----------------------------------------------------------------------------------------------------


def systems(config: ModelConfig, data: Data, sides: tuple[int, ...], seed: int = 0) -> list[System]:
    """DCTransformer and what it is compared with, all of as many parameters.

    The Transformers are as wide and have as many heads as DCTransformer, and as many layers as its three decoders
    together; the width of their feed-forward layers makes up the count.

    Args:
        config: DCTransformer's shape.
        data: what they learn.
        sides: Image GPT's, in pixels.
        seed: of the palettes.

    Raises:
        ValueError: DCTransformer is too small to be matched, or a side does not fit.
    """
    ours = DCTransformerSystem(config, data)
    size, target = data.train.info.side, ours.parameters
    layers = len(config.channel) + len(config.position) + len(config.value)

    def raster(side: int, budget: int) -> RasterConfig:
        shape = RasterConfig(side, COLOURS, data.labels, config.width, config.heads, layers)
        return with_parameters(shape, budget)

    autoencoder = autoencoder_within(AUTOENCODER_PARAMETERS * target)
    rest = target - parameters(VQVAE(autoencoder))
    gpts = [ImageGPTSystem(raster(side, target), data, seed) for side in sides]
    return [ours, VQVAESystem(autoencoder, raster(size // SHRINK, rest), data), *gpts]


def with_parameters(config: RasterConfig, target: int) -> RasterConfig:
    """The config whose feed-forward width (a multiple of 8) brings the parameters nearest to ``target``.

    Raises:
        ValueError: even the narrowest has more.
    """

    def count(hidden: int) -> int:
        with torch.device("meta"):
            return parameters(RasterTransformer(dataclasses.replace(config, hidden=hidden)))

    least, each = count(8), count(16) - count(8)
    hidden = 8 * (1 + round((target - least) / each))
    if hidden < 8:
        raise ValueError(f"{target:,} parameters are too few for a Transformer of width {config.width}; take more")
    return dataclasses.replace(config, hidden=hidden)


def autoencoder_within(budget: float) -> VQVAEConfig:
    """The widest autoencoder (in steps of 8 channels) of at most ``budget`` parameters.

    Raises:
        ValueError: even the narrowest has more.
    """

    def count(channels: int) -> int:
        with torch.device("meta"):
            return parameters(VQVAE(VQVAEConfig(channels)))

    if count(8) > budget:
        raise ValueError(f"{budget:,.0f} parameters are too few for an autoencoder; take a larger preset")
    channels = 8
    while count(channels + 8) <= budget:
        channels += 8
    return VQVAEConfig(channels)
