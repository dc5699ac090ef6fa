"""Tests of feature extractors: small64, Inception, custom files, and the cache."""

from __future__ import annotations

import base64
import importlib.util
import json
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dctransformer.codec import Codec
from dctransformer.evaluate import features
from dctransformer.evaluate.cache import cache_folder, cached, extract
from dctransformer.evaluate.features import Extractor, open_extractor
from dctransformer.evaluate.metrics import Moments, frechet_distance
from dctransformer.evaluate.pictures import Pictures
from dctransformer.evaluate.small64 import load_small64
from pictures import photo

# A hand-written ONNX file: the mean over places of float [b, 3, 16, 16] by GlobalAveragePool and Flatten.
MEAN_ONNX = base64.b64decode(
    "CAg6YwoZCgF4EgFwIhFHbG9iYWxBdmVyYWdlUG9vbAoPCgFwEgF5IgdGbGF0dGVuEgFnWhwKAXgSFwoVCAESEQoDEgFiCgIIAwoCCBAKAggQYhQKAXkS"
    "DwoNCAESCQoDEgFiCgIIA0IECgAQDQ=="
)


class Mean(nn.Module):
    """An extractor of the mean colour, with half of it as spatial feature."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Average over places."""
        mean = x.float().mean((2, 3))
        return mean, mean[:, :1] / 2


class Flat(nn.Module):
    """A network whose output is not a vector."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the picture unchanged."""
        return x.float()


def photos(count: int, size: int = 64) -> torch.Tensor:
    """Synthetic pictures, uint8 ``[count, size, size, 3]``."""
    return torch.from_numpy(np.stack([photo(size, size, i) for i in range(count)]))


def listed(pictures: torch.Tensor) -> Pictures:
    """A set of pictures in memory."""
    return Pictures("test pictures", len(pictures), lambda a, b: pictures[a:b])


def test_small64_ships_and_is_not_mistaken() -> None:
    """It has 160 and 448 features, independent of the batch; its file is small, and figures carry its name."""
    extractor = open_extractor("small64")
    mean_features, spatial = extractor(photos(3))
    assert mean_features.shape == (3, 160) and spatial is not None and spatial.shape == (3, 7 * 8 * 8)
    torch.testing.assert_close(extractor(photos(3)[1:2])[0], mean_features[1:2], rtol=1e-4, atol=1e-4)
    assert extractor(photos(2, 96))[0].shape == (2, 160)
    other = open_extractor("small64-imagenette")
    assert other.fingerprint != extractor.fingerprint and other.metric("fid") == "small64-imagenette-frechet"
    assert not torch.allclose(other(photos(3))[0], mean_features, rtol=0.1)
    for folder in (Path(features.__file__).parents[1] / "weights" / name for name in (extractor.name, other.name)):
        assert (folder / "features.safetensors").stat().st_size < 1_500_000 and (folder / "README.md").is_file()
    names = [extractor.metric(name) for name in ("fid", "sfid", "precision", "recall", "kid")]
    assert all(name.startswith("small64-") for name in names) and "fid" not in " ".join(names)


def test_small64_sees_damage() -> None:
    """Distances increase with coarser quantisation, blur and noise."""
    extractor, pictures = open_extractor("small64"), photos(60)

    def apart(changed: torch.Tensor) -> float:
        sets = [Moments.of(extractor(x)[0]) for x in (pictures, changed)]
        return frechet_distance(*sets)

    by_quality = [apart(Codec(q).decode(Codec(q).encode(pictures))) for q in (90, 50, 20, 5)]
    assert by_quality == sorted(by_quality) and by_quality[0] > 0
    noise = torch.randint(-40, 41, pictures.shape, generator=torch.Generator().manual_seed(0))
    assert apart((pictures + noise).clamp(0, 255).to(torch.uint8)) > by_quality[1]


def test_spatial_features_are_channels_last() -> None:
    """Spatial features are flattened as NHWC: the first seven are the channels of the top-left place."""
    network, seen = load_small64(), []
    network.stay[1].register_forward_hook(lambda _m, inputs, out: seen.append((inputs[0] + out).relu()))
    _, spatial = network(photos(2))
    torch.testing.assert_close(spatial[:, :7], seen[0][:, :7, 0, 0] * network.gain[1])
    torch.testing.assert_close(spatial[:, 7:14], seen[0][:, :7, 0, 1] * network.gain[1])


def test_inceptions_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 2,048 features and 2,023 spatial ones, the first 7 channels of mixed_6/conv, channels last."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed; pip install --no-deps torch-fidelity")
    module = features.inception_module()
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: state)
    extractor = open_extractor("inception")
    assert [extractor.metric(name) for name in ("fid", "sfid", "kid")] == ["fid", "sfid", "kid"]
    seen = []
    network = module.FeatureExtractorInceptionV3("x", ["2048"])
    extractor = features.inception_extractor(network)
    network.Mixed_6d.register_forward_pre_hook(lambda m, x: seen.append(m.branch1x1.bn(m.branch1x1.conv(x[0])).relu()))
    mean_features, spatial = extractor(photos(1, 32))
    assert mean_features.shape == (1, 2048) and spatial is not None and spatial.shape == (1, 2023)
    assert seen[0].shape == (1, 192, 17, 17)
    torch.testing.assert_close(spatial[0].view(17, 17, 7), seen[0][0, :7].permute(1, 2, 0))


def test_no_network_for_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Inception's weights, one sentence lists the alternatives."""
    if importlib.util.find_spec("torch_fidelity") is not None:

        def offline(*_args, **options) -> None:
            assert options["weights_only"] and options["check_hash"]
            raise urllib.error.URLError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
        with pytest.raises(ValueError, match=r"Inception weights.*no network.*--features small64"):
            open_extractor("inception")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"torch-fidelity; install it with: pip install"):
        open_extractor("inception")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_file(tmp_path: Path) -> None:
    """A TorchScript network works, figures carry its file name, and outputs that are not vectors are refused."""
    torch.jit.save(torch.jit.script(Mean()), str(tmp_path / "mean.pt"))
    extractor = open_extractor(str(tmp_path / "mean.pt"))
    features, spatial = extractor(photos(2))
    torch.testing.assert_close(features, photos(2).float().mean((1, 2)))
    assert spatial is not None and spatial.shape == (2, 1)
    assert extractor.metric("fid") == "mean-frechet" and len(extractor.fingerprint) == 16
    (tmp_path / "inception.pt").write_bytes((tmp_path / "mean.pt").read_bytes())
    assert open_extractor(str(tmp_path / "inception.pt")).metric("fid") == "inception.pt-frechet"
    torch.jit.save(torch.jit.script(Flat()), str(tmp_path / "flat.pt"))
    with pytest.raises(ValueError, match=r"gives \[2, 3, 64, 64\]; an extractor gives float \[B, D\]"):
        open_extractor(str(tmp_path / "flat.pt"))(photos(2))


def test_an_onnx_file(tmp_path: Path) -> None:
    """Pictures are resized to the fixed input size of an ONNX file."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "mean.onnx").write_bytes(MEAN_ONNX)
    extractor = open_extractor(str(tmp_path / "mean.onnx"))
    assert "16×16" in extractor.resize
    features, spatial = extractor(photos(2, 16))
    torch.testing.assert_close(features, photos(2, 16).float().mean((1, 2)))
    assert spatial is None and extractor(photos(2))[0].shape == (2, 3)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_files_that_are_no_extractor(tmp_path: Path) -> None:
    """Invalid files are refused in one sentence, and no code in them is run."""
    for name in ("a.pt", "a.onnx"):
        (tmp_path / name).write_bytes(b"no network")
        with pytest.raises(ValueError, match=r"a\.(pt|onnx) is not "):
            open_extractor(str(tmp_path / name))
    torch.save({"weights": torch.zeros(2)}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        open_extractor(str(tmp_path / "pickle.pt"))
    with pytest.raises(ValueError, match="choose inception, small64"):
        open_extractor("fidnet")


def counting(pictures: torch.Tensor, fingerprint: str = "1") -> tuple[Extractor, list[int]]:
    """An extractor of mean colours, and the list of the batch sizes that it was called with."""
    batches: list[int] = []

    def network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(len(x))
        return Mean()(x.permute(0, 3, 1, 2))

    return Extractor("mean", fingerprint, "none", network, batch=4), batches


def test_the_cache_is_used_and_follows_the_pixels(tmp_path: Path) -> None:
    """Features are cached; another pixel or another order is another set."""
    pictures = photos(6, 16)
    extractor, batches = counting(pictures)
    first = cached(extractor, listed(pictures), tmp_path)
    second = cached(extractor, listed(pictures), tmp_path)
    plain = extract(extractor, listed(pictures))
    assert batches == [4, 2, 4, 2] and first.digest == second.digest
    for result in (first, second):
        assert torch.equal(result.features, plain.features)
        assert result.spatial is not None and plain.spatial is not None
        assert torch.equal(result.spatial.covariance, plain.spatial.covariance)
    other = pictures.clone()
    other[3, 5, 5, 0] ^= 1
    assert len({listed(x).digest() for x in (pictures, other, pictures.flip(0), pictures[:5])}) == 4
    cached(extractor, listed(other), tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 and not list(tmp_path.rglob("*.part"))


def test_features_of_the_first_pictures_and_moments_of_all(tmp_path: Path) -> None:
    """As many features are kept as requested; a smaller cache is recomputed, a larger one reused."""
    pictures = photos(9, 16)
    everything = extract(counting(pictures)[0], listed(pictures))
    for keep, runs in ((2, 1), (2, 0), (5, 1), (3, 0), (9, 1), (4, 0), (None, 0)):
        extractor, batches = counting(pictures)
        features = cached(extractor, listed(pictures), tmp_path, keep=keep)
        assert bool(batches) == bool(runs) and len(features) == features.moments.count == 9
        assert len(features.features) >= (9 if keep is None else keep)
        assert torch.equal(features.features, everything.features[: len(features.features)])
        torch.testing.assert_close(features.moments.mean, everything.moments.mean)
        torch.testing.assert_close(features.moments.covariance, everything.moments.covariance, rtol=1e-9, atol=1e-9)


def test_a_foreign_or_damaged_cache_costs_only_time(tmp_path: Path) -> None:
    """A damaged cache, or one of another extractor or set, is recomputed with a warning."""
    pictures = photos(6, 16)
    expected = cached(counting(pictures)[0], listed(pictures), tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    tensors = safetensors.torch.load(whole)
    with safetensors.safe_open(path, framework="pt") as file:
        facts = file.metadata()
    foreign = {"dctransformer": json.dumps({**json.loads(facts["dctransformer"]), "fingerprint": "2"})}
    for changed, metadata, message in (
        ({}, foreign, r"holds features of another extractor \(mean, weights 2\)"),
        ({"features": torch.full((6, 3), torch.nan)}, facts, "is damaged"),
        ({"features": tensors["features"][:4]}, facts, "is damaged"),
        ({"features": tensors["features"].flatten()}, facts, "is damaged"),
        (
            {},
            {"dctransformer": json.dumps({**json.loads(facts["dctransformer"]), "pictures": "0"})},
            "is damaged",
        ),
        ({}, {"dctransformer": "[]"}, "is damaged"),
        ({}, None, "is damaged"),
        (None, None, "is damaged"),
    ):
        if changed is None:
            path.write_bytes(whole[:-9])
        else:
            safetensors.torch.save_file({**tensors, **changed}, path, metadata=metadata)
        extractor, batches = counting(pictures)
        with pytest.warns(UserWarning, match=message):
            features = cached(extractor, listed(pictures), tmp_path)
        assert batches == [4, 2] and torch.equal(features.features, expected.features)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("where", ["/proc/nope", "/dev/null/x", "no home"])
def test_a_cache_that_cannot_be_written_costs_only_time(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a writable cache, features are returned with a warning that names the variable to set."""
    pictures = photos(6, 16)
    if where == "no home":

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setenv("DCTRANSFORMER_CACHE", "")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv("DCTRANSFORMER_CACHE", where)
    with pytest.warns(UserWarning, match="set DCTRANSFORMER_CACHE to a folder that can be written"):
        features = cached(counting(pictures)[0], listed(pictures))
    assert torch.equal(features.features, extract(counting(pictures)[0], listed(pictures)).features)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache is in the given folder, or in the user's cache folder."""
    monkeypatch.setenv("DCTRANSFORMER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DCTRANSFORMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/dctransformer")
