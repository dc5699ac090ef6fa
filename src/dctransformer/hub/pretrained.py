"""Model folders: find, read and write ``config.json`` and ``model.safetensors``; neither can run code."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from dctransformer.files import first_line, write_tensors, write_text
from dctransformer.hub.compatibility import ADDED, current_name, current_shape, without_retired
from dctransformer.hub.storage import SCALE, check_type, pack_weights, unpack_weights
from dctransformer.model.config import ModelConfig
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sequence.conditions import CONDITIONS
from dctransformer.settings import check_names

CONFIG, WEIGHTS = "config.json", "model.safetensors"

GUIDE = "guide"
"""Folder within a model's that may hold another, weaker one: its `DCTransformer.guide`."""

Network = TypeVar("Network", bound=DCTransformer)

HUB = "hf:"
"""Prefix of models on the Hugging Face hub."""

MAX_CONFIG_BYTES = 100 << 20

SHIPPED = Path(__file__).parent.parent / "weights"
"""Weights that come with the package, a folder each."""


def shipped_names() -> list[str]:
    """Return the names of the weights that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def model_folder(name: str | Path, **hub: Any) -> Path:
    """Find the folder of a model.

    Args:
        name: a run folder, a saved model's folder, the name of shipped weights, or a model on the Hugging Face hub:
            ``hf:owner/name``, or ``hf:owner/name@revision``.
        hub: for a model on the hub, arguments of `huggingface_hub.snapshot_download`: ``revision``, ``token``, …

    Raises:
        ValueError: there is no such model, or the hub can't be reached.
    """
    path = Path(name)
    shipped = str(name) in shipped_names()
    if path.is_dir() and ((path / CONFIG).is_file() or not shipped):  # a data set may be called like shipped weights
        return _complete(path)
    if shipped:
        return SHIPPED / str(name)
    if str(name).startswith(HUB):
        repo, _, revision = str(name).removeprefix(HUB).partition("@")
        if not is_hub_id(repo):
            raise ValueError(f"{str(name)!r} is not the name of a model on the hub; write {HUB}owner/name")
        return _from_hub(repo, {**hub, "revision": hub.get("revision") or revision or None})
    known = ", ".join(shipped_names()) or "none"
    fetch = f", or {HUB}{name} to fetch it from the Hugging Face hub" if is_hub_id(str(name)) else ""
    raise ValueError(
        f"there is no model {str(name)!r}; give a run folder, a model's folder or shipped weights ({known}){fetch}"
    )


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form ``owner/name``."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name, re.ASCII) is not None


def _complete(folder: Path) -> Path:
    for missing in (CONFIG, WEIGHTS):
        if not (folder / missing).is_file():
            raise ValueError(
                f"{folder} holds no {missing}; give the folder of a run with saved weights, or of a saved model"
            )
    return folder


def _from_hub(repo: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [CONFIG, WEIGHTS, f"{GUIDE}/{CONFIG}", f"{GUIDE}/{WEIGHTS}"]
        folder = snapshot_download(repo, allow_patterns=wanted, **options)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = first_line(error)
        raise ValueError(
            f"{HUB}{repo} can't be fetched from the Hugging Face hub ({why}); check the name or the network"
        ) from error
    return _complete(Path(folder))


def check_token(token: str | None) -> None:
    """Check that there is a token for the hub, before the work whose result is to be uploaded.

    Raises:
        ValueError: there is no token.
    """
    import huggingface_hub

    if not (token or huggingface_hub.get_token()):
        raise ValueError(
            "there is no token for the Hugging Face hub; log in with `hf auth login`, or set HF_TOKEN to a token that "
            "can write (https://huggingface.co/settings/tokens)"
        )


@contextlib.contextmanager
def hub_answers(repo: str) -> Iterator[None]:
    """Turn errors of an upload to the hub into one sentence.

    Raises:
        ValueError: the hub can't be reached, or does not allow it.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError(f"HF_HUB_OFFLINE is set, so {repo} can't be uploaded; unset it and try again") from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise ValueError(
                f"the hub does not let this token write {repo}; log in with `hf auth login` and a token that can, "
                "or choose another owner"
            ) from error
        raise ValueError(f"the hub did not take {repo} ({first_line(error)}); try again later") from error
    except OSError as error:
        raise ValueError(f"the hub can't be reached ({first_line(error)}); check the network") from error


def read_config(folder: str | Path) -> ModelConfig:
    """Read the config of a saved model.

    Raises:
        ValueError: the file is missing, is not JSON, or has unknown or impossible fields.
    """
    path = Path(folder) / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{path} can't be read as a model config ({error}); restore it or save the model again"
        ) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
        raise ValueError(f"{path} is not a model config: it has no 'model' section; save the model again")
    try:
        config = ModelConfig.from_dict(without_retired(fields["model"]))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{path} holds a field of the wrong type ({error}); save the model again") from error
    except ValueError as error:
        raise ValueError(f"{path} is not the config of a model: {error}") from error
    check_names(config.conditions, CONDITIONS, f"the conditions of {path}")
    if config.prepared:
        from dctransformer.data.shapes import prepared_shape

        try:
            prepared_shape(config.prepared, config.trained_shape)
        except ValueError as error:
            raise ValueError(f"{path} is not the config of a model: {error}") from None
    return config


def write_config(config: ModelConfig, folder: str | Path) -> None:
    """Write ``config.json`` as an atomic write."""
    text = json.dumps({"format": "dctransformer", "model": config.to_dict()}, indent=2, ensure_ascii=False)
    write_text(Path(folder) / CONFIG, text + "\n")


def write_weights(tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Write ``model.safetensors`` as an atomic write."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(Path(folder) / WEIGHTS, tensors, {"format": "pt"})


def read_weights(folder: str | Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read ``model.safetensors`` in fp32.

    Args:
        folder: of a saved model.
        expected: the state that the config describes; names and shapes must be the same.

    Raises:
        ValueError: the file is damaged or does not fit.
    """
    path = Path(folder) / WEIGHTS
    check_header(folder, expected)
    try:
        tensors = unpack_weights({current_name(name): tensor for name, tensor in load_file(path).items()})
    except (OSError, MemoryError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{path} is damaged ({name} holds NaN, infinity or numbers too large for fp32); "
                "copy or download it again"
            )
    added = {name: torch.zeros(expected[name].shape) for name in ADDED if name in expected}
    return added | {name: tensor.reshape(current_shape(name, [*tensor.shape])) for name, tensor in tensors.items()}


def check_header(folder: str | Path, expected: dict[str, Tensor]) -> None:
    """Compare the header of ``model.safetensors`` with what the config needs; no weights are read.

    Args:
        folder: of a saved model.
        expected: the state that the config needs, on any device (``meta`` allocates nothing).

    Raises:
        ValueError: names, shapes or kinds of numbers differ, or the header is damaged.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = {current_name(name): name for name in file.keys()}  # noqa: SIM118 (not a dict)
            known = expected.keys() | {name + SCALE for name in expected}
            slices = {name: file.get_slice(names[name]) for name in names.keys() & known}
            shapes = {name: current_shape(name, part.get_shape()) for name, part in slices.items()}
            types = {name: str(part.get_dtype()) for name, part in slices.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    scales = {name + SCALE for name in expected if types.get(name) == "I8"}
    for name in sorted((names.keys() - scales) | expected.keys()):
        if name in ADDED and name in expected and name not in names:
            continue
        if name not in expected or shapes.get(name) != list(expected[name].shape):
            raise ValueError(f"{path} does not fit its {CONFIG} (at {name}); copy or download both again")
        try:
            check_type(name, shapes, types)
        except ValueError as error:
            raise ValueError(f"{path} holds {error}") from error


def load_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    make: Callable[[ModelConfig], Network] = DCTransformer,
    **hub: Any,
) -> Network:
    """Load a model, with its guide if it has one, for use (fp32, eval mode).

    Args:
        name: a run folder, a saved model's folder, the name of shipped weights, or ``hf:owner/name``.
        device: where to put it.
        make: builds the network from its config.
        hub: for a model on the hub, arguments of `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: there is no such model, or its files are damaged or don't fit each other.
    """
    folder = model_folder(name, **hub)
    model = _load(folder, device, make)
    if has_guide(folder):
        try:
            model.attach_guide(_load(folder / GUIDE, device, make))
        except ValueError as error:
            raise ValueError(f"{folder / GUIDE} can't guide this model ({error}), or remove the folder") from None
    return model


def has_guide(folder: Path) -> bool:
    """Return whether a model's folder holds a guide that is complete (one may be in training there)."""
    return all((folder / GUIDE / name).is_file() for name in (CONFIG, WEIGHTS))


def _load(folder: Path, device: str | torch.device, make: Callable[[ModelConfig], Network]) -> Network:
    config = read_config(folder)
    with torch.device("meta"):
        check_header(folder, make(config).state_dict())
    model = make(config)
    model.load_state_dict(read_weights(folder, model.state_dict()))
    return model.eval().to(device)


def save_model(model: DCTransformer, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model's `WEIGHTS` and `CONFIG`, each as an atomic write, and those of its guide if it has one.

    Args:
        model: on any device.
        folder: created if needed.
        dtype: of the stored floating-point weights; ``torch.int8`` for the compact form of `dctransformer.hub.storage`;
            None keeps the present one.

    Raises:
        ValueError: the folder can't be written, or weights can't be stored as that dtype.
    """
    write_weights(pack_weights(model, dtype), folder)
    write_config(model.config, folder)
    if model.guide is not None:
        save_model(model.guide, Path(folder) / GUIDE, dtype)
