"""One interface to train, sample, reconstruct and measure DCTransformer, Image GPT and VQ-VAE."""

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
from measure import decisions

PREDICTIONS_PER_STEP = 2048
"""Predictions per training step of every network: 16 chunks of 128 triples for DCTransformer. A batch has at least one
row, even if the row has more predictions."""

AUTOENCODER_PARAMETERS = 0.15
"""The autoencoder's fraction of VQ-VAE's parameters."""

AUTOENCODER_MINUTES = 0.4
"""The autoencoder's fraction of VQ-VAE's training time."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The training and validation splits of a prepared data set, common to all systems.

    Attributes:
        folder: folder of the data set.
        train: training pictures before the codec. (DCTransformer is trained on their quantised coefficients.)
        held_out: validation pictures before the codec, for choosing learning rates, counting bits and reconstruction.
        scored: number of held-out pictures used for losses and bits.
        decoded: the training pictures after the codec, uint8 ``[n, S, S, 3]``.
    """

    folder: Path
    train: PictureStore
    held_out: PictureStore
    scored: int
    decoded: Tensor

    @classmethod
    def open(cls, folder: str | Path, scored: int, originals: str | Path | None = None) -> Data:
        """Read a prepared data set and its original pictures.

        Args:
            folder: folder of the data set.
            scored: number of held-out pictures used for losses and bits.
            originals: folder that the data set was prepared from, if it has moved since.

        Raises:
            ValueError: the data set is missing, its pictures are not squares of one size, a split is empty or damaged,
                or the originals are not available.
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
    """A generative model of pictures: one or more networks, trained one after another."""

    def __init__(self, name: str, data: Data):
        self.name, self.data = name, data
        self.networks: dict[str, Any] = {}
        """The trained networks by stage name."""

    @abc.abstractmethod
    def stages(self) -> list[Stage]:
        """The training stages in order; a later stage may use the networks of earlier ones."""

    @property
    @abc.abstractmethod
    def tokens(self) -> float:
        """Mean number of sequential sampling steps per picture."""

    @abc.abstractmethod
    def draw(self, labels: list[int], config: SampleConfig, first: int = 0) -> Tensor:
        """Generate one picture per label, numbered from ``first``: uint8 ``[n, S, S, 3]``."""

    @abc.abstractmethod
    def reconstructed(self) -> Tensor:
        """The held-out pictures, encoded to the system's representation and decoded: uint8 ``[n, S, S, 3]``."""

    @abc.abstractmethod
    def bits(self) -> float:
        """Mean code length of the first held-out pictures in bits per picture, exact for the representation."""

    @property
    def parameters(self) -> int:
        """Number of trained values of all networks."""
        return sum(parameters(stage.make()) for stage in self.stages())

    def save(self, folder: Path) -> None:
        """Write the weights of the networks, one folder per stage."""
        for name, network in self.networks.items():
            # Weight files can't hold booleans, such as the codebook's flag that it is initialised.
            state = {k: v if v.is_floating_point() else v.float() for k, v in network.state_dict().items()}
            write_weights(state, folder / name)

    def load(self, folder: Path) -> None:
        """Load the networks that `save` wrote.

        Raises:
            ValueError: a file is missing, damaged or of another shape.
        """
        for stage in self.stages():
            network = stage.make()
            network.load_state_dict(read_weights(folder / stage.name, network.state_dict()))
            self.networks[stage.name] = network.eval().requires_grad_(False)


class DCTransformerSystem(System):
    """DCTransformer, trained for unconditional and class-conditional generation only."""

    def __init__(self, config: ModelConfig, data: Data):
        """Open the triples of the data set.

        Args:
            config: shape of the model; quality, size and labels are replaced by those of the data.
            data: the data set.
        """
        super().__init__("DCTransformer", data)
        self.store, self.held_out = (TripleStore.open(data.folder, s, progress=False) for s in ("train", "validation"))
        info, names = self.store.info, tuple(self.store.info.labels)
        self.config = dataclasses.replace(
            config, quality=info.quality, size=info.side, num_labels=len(names), label_names=names
        )

    def stages(self) -> list[Stage]:
        """The single stage ``model``."""
        batch = max(1, PREDICTIONS_PER_STEP // self.config.stride)

        def batches(config: TrainConfig) -> Steps:
            return Steps(self.store, self.config, config)

        def loss(network: DCTransformer) -> float:
            return self._bits(network) * math.log(2) / (float(np.diff(self.store.offsets).mean()) + 1)

        listed = float(self.store.listed(self.config.texture_rank).mean()) + 1
        return [Stage("model", lambda: DCTransformer(self.config), batches, loss, batch, listed)]

    @property
    def tokens(self) -> float:
        """Mean sequential decisions per training picture: triples of structure, texture channels in use, the stop."""
        return decisions(self.store, self.config.texture_rank) + 1

    def draw(self, labels: list[int], config: SampleConfig, first: int = 0) -> Tensor:
        """Generate pictures with the sampling engine."""
        requests = [Request(first + i, label) for i, label in enumerate(labels)]
        grid = Grid.of_size(self.config.size, self.config.size)
        return fill(self.networks["model"], requests, grid, config).pixels()

    def reconstructed(self) -> Tensor:
        """The held-out pictures as decoded from their JPEG coefficients."""
        codec, info = Codec(self.held_out.info.quality), self.held_out.info
        triples = [self.held_out.triples(i) for i in range(len(self.held_out))]
        return codec.decode(codec.from_triples(triples, info.side, info.side))

    def bits(self) -> float:
        """Mean code length of the quantised DCT coefficients in bits per picture."""
        return self._bits(self.networks["model"])

    def _bits(self, network: DCTransformer) -> float:
        pictures = range(min(self.data.scored, len(self.held_out)))
        lengths = code_lengths(network, validation_sequences(self.held_out, self.config, pictures))
        return float(lengths.bits.sum()) / len(pictures)


class TokenSystem(System):
    """Base of Image GPT and VQ-VAE: pictures are square grids of tokens, modelled by a Transformer."""

    prior: str
    """Stage name of the Transformer."""
    rates: tuple[float, ...] = RATES
    """Learning rates to choose from for the Transformer."""
    raster: RasterConfig

    @abc.abstractmethod
    def to_tokens(self, pictures: Tensor) -> Tensor:
        """Convert pictures uint8 ``[B, S, S, 3]`` to tokens int64 ``[B, L]``."""

    @abc.abstractmethod
    def to_pictures(self, tokens: Tensor) -> Tensor:
        """Convert tokens to pictures, the approximate inverse of `to_tokens`."""

    def transformer(self, make: Callable[[], RasterTransformer], share: float = 1.0) -> Stage:
        """The stage that trains the Transformer."""

        def batches(config: TrainConfig) -> PictureSteps:
            return PictureSteps(self.data.train, config, self._batch)

        batch = max(1, PREDICTIONS_PER_STEP // self.raster.length)
        return Stage(
            self.prior, make, batches, lambda n: mean_loss(n, self._held_out()), batch, self.raster.length, share,
            self.rates,
        )  # fmt: skip

    @property
    def tokens(self) -> float:
        """Number of tokens in the grid."""
        return float(self.raster.length)

    def draw(self, labels: list[int], config: SampleConfig, first: int = 0) -> Tensor:
        """Generate pictures with a KV cache."""
        return self.to_pictures(sample_tokens(self.networks[self.prior], labels, config, first=first))

    def reconstructed(self) -> Tensor:
        """The held-out pictures converted to tokens and back."""
        parts = self.data.held_out.pixels.split(64)
        return torch.cat([self.to_pictures(self.to_tokens(part)) for part in parts])

    def bits(self) -> float:
        """Mean code length of the tokens in bits per picture."""
        return mean_loss(self.networks[self.prior], self._held_out()) * self.raster.length / math.log(2)

    def _batch(self, pictures: Tensor, labels: Tensor) -> Batch:
        return flat_batch(self.to_tokens(pictures), labels)

    def _held_out(self) -> list[Batch]:
        rows = max(1, 4 * PREDICTIONS_PER_STEP // self.raster.length)
        held_out, count = self.data.held_out, self.data.scored
        parts = zip(held_out.pixels[:count].split(rows), held_out.labels[:count].split(rows), strict=True)
        return [self._batch(pictures, labels) for pictures, labels in parts]


class ImageGPTSystem(TokenSystem):
    """Image GPT at one resolution."""

    prior = "model"
    rates = (3e-4, 1e-3, 3e-3)

    def __init__(self, raster: RasterConfig, data: Data, seed: int = 0):
        """Check the resolution.

        Args:
            raster: shape of the Transformer.
            data: the data set.
            seed: seed of the palette.

        Raises:
            ValueError: the side of the token grid does not divide that of the pictures.
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
        """Palette of the training pictures, uint8 ``[K, 3]``."""
        return fit_palette(shrink(self.data.train.pixels, self.raster.side), self.raster.kinds, self.seed)

    @functools.cached_property
    def _converter(self) -> ImageGPT:
        """A small network whose palette converts pictures; its Transformer is not used."""
        return ImageGPT(dataclasses.replace(self.raster, layers=1, hidden=8), self.palette)

    @property
    def parameters(self) -> int:
        """Number of trained values; the palette, which is not counted, need not be fitted for it."""
        return parameters(ImageGPT(self.raster))

    def stages(self) -> list[Stage]:
        """The single stage ``model``."""
        return [self.transformer(lambda: ImageGPT(self.raster, self.palette))]

    def to_tokens(self, pictures: Tensor) -> Tensor:
        """Convert pictures to indices of the nearest palette colours."""
        return self._converter.tokens(pictures)

    def to_pictures(self, tokens: Tensor) -> Tensor:
        """Convert indices to palette colours, enlarged to the size of the data."""
        return self._converter.pictures(tokens, self.data.train.info.side)


class VQVAESystem(TokenSystem):
    """VQ-VAE and its prior, trained one after another."""

    prior = "prior"

    def __init__(self, autoencoder: VQVAEConfig, raster: RasterConfig, data: Data):
        """Combine an autoencoder with a prior.

        Args:
            autoencoder: shape of the autoencoder.
            raster: shape of the prior.
            data: the data set.
        """
        super().__init__("VQ-VAE + prior", data)
        self.autoencoder, self.raster = autoencoder, raster

    def stages(self) -> list[Stage]:
        """The stages ``autoencoder`` and ``prior``."""
        size = self.data.train.info.side
        held_out = self.data.held_out

        def whole(pictures: Tensor, labels: Tensor) -> Batch:
            return flat_batch(pictures, labels, size**2)

        def batches(config: TrainConfig) -> PictureSteps:
            return PictureSteps(self.data.train, config, whole)

        def loss(network: nn.Module) -> float:
            pairs = zip(held_out.pixels.split(64), held_out.labels.split(64), strict=True)
            return mean_loss(network, [whole(*pair) for pair in pairs])

        batch = max(1, PREDICTIONS_PER_STEP // self.raster.length)
        first = Stage("autoencoder", lambda: VQVAE(self.autoencoder), batches, loss, batch, size**2,
                      AUTOENCODER_MINUTES, rates=(5e-4, 1.5e-3, 4.5e-3))  # fmt: skip
        return [first, self.transformer(lambda: RasterTransformer(self.raster), 1 - AUTOENCODER_MINUTES)]

    def to_tokens(self, pictures: Tensor) -> Tensor:
        """Convert pictures to code indices."""
        network = self.networks["autoencoder"]
        return network.tokens(pictures.to(network.device)).cpu()

    def to_pictures(self, tokens: Tensor) -> Tensor:
        """Decode code indices to pictures."""
        network = self.networks["autoencoder"]
        return torch.cat([network.pictures(part.to(network.device)).cpu() for part in tokens.split(64)])


# Equal parameters -----------------------------------------------------------------------------------------------------


def systems(config: ModelConfig, data: Data, sides: tuple[int, ...], seed: int = 0) -> list[System]:
    """Create DCTransformer and its baselines with equal numbers of parameters.

    The Transformers have the width and the number of heads of DCTransformer, and as many layers as its three decoders
    together; the width of their feed-forward layers is chosen to match the number of parameters.

    Args:
        config: shape of DCTransformer.
        data: the data set.
        sides: sides of Image GPT's token grids, in pixels.
        seed: seed of the palettes.

    Returns:
        DCTransformer, VQ-VAE and one Image GPT per side.

    Raises:
        ValueError: DCTransformer has too few parameters to be matched, or a side does not divide that of the pictures.
    """
    dctransformer = DCTransformerSystem(config, data)
    size, target = data.train.info.side, dctransformer.parameters
    layers = len(config.channel) + len(config.position) + len(config.value)

    def raster(side: int, budget: int) -> RasterConfig:
        shape = RasterConfig(side, COLOURS, data.labels, config.width, config.heads, layers)
        return with_parameters(shape, budget)

    autoencoder = autoencoder_within(AUTOENCODER_PARAMETERS * target)
    rest = target - parameters(VQVAE(autoencoder))
    gpts = [ImageGPTSystem(raster(side, target), data, seed) for side in sides]
    return [dctransformer, VQVAESystem(autoencoder, raster(size // SHRINK, rest), data), *gpts]


def with_parameters(config: RasterConfig, target: int) -> RasterConfig:
    """Set the feed-forward width (a multiple of 8) so that the number of parameters is closest to ``target``.

    Raises:
        ValueError: even the narrowest Transformer has more parameters.
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
    """Choose the widest autoencoder (a multiple of 8 channels) with at most ``budget`` parameters.

    Raises:
        ValueError: even the narrowest autoencoder has more parameters.
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
