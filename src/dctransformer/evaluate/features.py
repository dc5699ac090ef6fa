"""Feature extractors: networks that turn pictures into the vectors whose distances are measured.

Four kinds, one contract (`Extractor`): torch-fidelity's Inception, the shipped `NAMES`, and anybody's TorchScript
or ONNX file. Only Inception's figures bear the published names (``fid``, …); all others carry the extractor's name.

Shapes: B pictures, H × W pixels, D features, S spatial features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dctransformer.evaluate.small64 import NAMES, SIDE, load_small64, weights_file

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]

PUBLISHED = "inception"

METRIC_NAMES = {
    "fid": "frechet",
    "sfid": "spatial-frechet",
    "precision": "precision",
    "recall": "recall",
    "kid": "kernel",
}
"""Name of each metric for another network than Inception, after that network's name."""

SPATIAL_CHANNELS = 7
"""Channels of Inception's ``mixed_6/conv`` that sFID takes (Nash et al. 2021, section 5.1)."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into features.

    Attributes:
        name: ``inception``, one of `NAMES` or a file's name.
        fingerprint: hash of its weights; cached features are only good for the same one.
        resize: how pictures of any size reach the network, for reports.
        network: uint8 ``[B, H, W, 3]`` to fp32 ``[B, D]`` and, if it has such, ``[B, S]`` spatial features.
        batch: pictures at a time.
    """

    name: str
    fingerprint: str
    resize: str
    network: Network
    batch: int = 64

    def metric(self, name: str) -> str:
        """Return a metric's name in reports: ``fid`` for Inception, ``small64-frechet`` and the like otherwise."""
        return name if self.name == PUBLISHED else f"{self.name}-{METRIC_NAMES[name]}"

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features of a batch, on the CPU.

        Args:
            pictures: uint8 ``[B, H, W, 3]``.

        Returns:
            fp32 ``[B, D]``, and ``[B, S]`` or None.

        Raises:
            ValueError: the network fails on them, or gives no such features, or NaN or infinity.
        """
        with torch.inference_mode():
            try:
                found = self.network(pictures)
            except RuntimeError as error:
                raise ValueError(
                    f"the extractor {self.name} fails on uint8 pictures [B, 3, H, W] ({_last_line(error)}); "
                    "give one that takes them"
                ) from error
        features, spatial = (None if part is None else part.detach().float().cpu() for part in found)
        for part in (features, spatial):
            if part is not None and not torch.isfinite(part).all():
                raise ValueError(f"the extractor {self.name} gives NaN or infinity; check it, and the pictures")
        assert features is not None
        return features, spatial


def open_extractor(what: str, device: torch.device | str = "cpu") -> Extractor:
    """Find an extractor.

    Args:
        what: ``inception`` (downloaded once), one of `NAMES`, or a TorchScript or ONNX file (``.onnx``). A file's
            network takes uint8 ``[B, 3, H, W]`` (ONNX may take float, 0 to 255, and a fixed size, to which pictures
            are then resized) and gives float ``[B, D]``, or two such: features and spatial features.
        device: where it runs (ONNX always runs on the CPU).

    Raises:
        ValueError: there is no such extractor, or it can't be loaded or downloaded.
    """
    if what == PUBLISHED:
        return _inception(torch.device(device))
    if what in NAMES:
        network = load_small64(weights_file(what)).to(device)
        resize = f"bilinear with antialiasing to {SIDE}×{SIDE}, in float; none at that size"
        fingerprint = _hash(weights_file(what).read_bytes())
        return Extractor(what, fingerprint, resize, lambda x: network(x.to(device)), 256)
    path = Path(what)
    if not path.is_file():
        known = ", ".join((PUBLISHED, *NAMES))
        raise ValueError(f"there is no extractor {what!r}; choose {known}, or a TorchScript or .onnx file")
    return _onnx(path) if path.suffix == ".onnx" else _torchscript(path, torch.device(device))


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__


def _name(path: Path) -> str:
    """Return the name of a user's network, never that of an extractor of this package."""
    return path.name if path.stem in (PUBLISHED, *NAMES) else path.stem


def _two(found: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Check the output of a user's network."""
    parts = list(found) if isinstance(found, (tuple, list)) else [found]
    tensors = [torch.as_tensor(part) for part in parts]
    if not 1 <= len(tensors) <= 2 or any(t.ndim != 2 or not t.is_floating_point() for t in tensors):
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise ValueError(f"{name} gives {shapes}; an extractor gives float [B, D], or two such (features, spatial)")
    return tensors[0], tensors[1] if len(tensors) == 2 else None


# Users' own files -----------------------------------------------------------------------------------------------------


def _torchscript(path: Path, device: torch.device) -> Extractor:
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a TorchScript file ({_last_line(error)}); save it with torch.jit.save"
        ) from error

    def network(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        return _two(module(pictures.permute(0, 3, 1, 2).contiguous().to(device)), path.name)

    return Extractor(_name(path), _hash(path.read_bytes()), f"whatever {path.name} does itself", network)


def _onnx(path: Path) -> Extractor:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("ONNX files need onnxruntime; install it with: pip install 'dctransformer[onnx]'") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions have no common class but Exception.
    except Exception as error:
        raise ValueError(
            f"{path} is not an ONNX model that can be loaded ({_last_line(error)}); export it again"
        ) from error
    entry = session.get_inputs()[0]
    if entry.type not in ("tensor(uint8)", "tensor(float)") or len(entry.shape) != 4:
        raise ValueError(f"{path} takes {entry.type} {entry.shape}; an extractor takes uint8 or float [B, 3, H, W]")
    size = tuple(entry.shape[2:])
    is_fixed = all(isinstance(side, int) for side in size)

    def network(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        x = pictures.permute(0, 3, 1, 2)
        if is_fixed and tuple(x.shape[2:]) != size:
            x = F.interpolate(x.float(), size, mode="bilinear", antialias=True, align_corners=False)
        x = x.float() if entry.type == "tensor(float)" else x.round().to(torch.uint8) if x.is_floating_point() else x
        try:
            found = session.run(None, {entry.name: x.contiguous().numpy()})
        except Exception as error:
            raise ValueError(
                f"{path} fails on the pictures ({_last_line(error)}); export it for uint8 [B, 3, H, W]"
            ) from error
        return _two(found, path.name)

    resize = f"bilinear with antialiasing to {size[1]}×{size[0]}" if is_fixed else f"whatever {path.name} does itself"
    return Extractor(_name(path), _hash(path.read_bytes()), resize, network)


# Inception ------------------------------------------------------------------------------------------------------------


def _inception(device: torch.device) -> Extractor:
    """Load torch-fidelity's port of the Inception network behind published FIDs.

    Features are pool_3's 2,048. Spatial features are the first 7 channels of the graph's node ``mixed_6/conv``, which
    is ``Mixed_6d.branch1x1`` in the port, ``[B, 17, 17, 7]`` flattened with channels last: 2,023.

    Raises:
        ValueError: torch-fidelity is not installed, or the weights can't be downloaded.
    """
    module = inception_module()
    try:
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    except (OSError, RuntimeError, EOFError) as error:
        place = Path(torch.hub.get_dir(), "checkpoints")
        raise ValueError(
            f"the Inception weights can't be had ({_last_line(error)}); they are downloaded once, which needs a "
            f"network: try again with one, put the file {module.URL_INCEPTION_V3} into {place}, or use "
            "--features small64-imagenette, whose distances compare with each other but not with published ones"
        ) from error
    return inception_extractor(network.to(device))


def inception_module() -> types.ModuleType:
    """Import torch-fidelity's Inception module alone.

    Importing the package imports torchvision, too, for other networks. torchvision is not needed here and, built for
    another torch, it fails, so the module is loaded without its package's ``__init__`` where that was not imported
    already. Its download is made to check the file's hash and to read no pickled code.

    Raises:
        ValueError: torch-fidelity is not installed.
    """
    if "torch_fidelity" not in sys.modules:
        spec = importlib.util.find_spec("torch_fidelity")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "the Inception network needs torch-fidelity; install it with: pip install 'dctransformer[inception]' "
                "(or, without torchvision: pip install --no-deps torch-fidelity), or use --features small64-imagenette"
            )
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
        try:
            module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        finally:
            # What else imports torch_fidelity later gets the real package.
            del sys.modules["torch_fidelity"]
    else:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    def load(url: str, progress: bool = True) -> Any:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=progress, check_hash=True, weights_only=True
        )

    setattr(module, "load_state_dict_from_url", load)  # noqa: B010 (a module's attribute)
    return module


def inception_extractor(network: Any) -> Extractor:
    """Return the extractor of a network of torch-fidelity's class ``FeatureExtractorInceptionV3``."""
    spatial: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        spatial.append(output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))

    network.Mixed_6d.branch1x1.register_forward_hook(keep)
    state = network.state_dict()
    digest = _hash(b"".join(state[name].cpu().numpy().tobytes() for name in sorted(state)))
    device = next(iter(state.values())).device

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        spatial.clear()
        (features,) = network(pictures.permute(0, 3, 1, 2).contiguous().to(device))
        return features, spatial.pop()

    return Extractor(PUBLISHED, digest, "bilinear without antialiasing to 299×299 as TensorFlow 1 does it", run)
