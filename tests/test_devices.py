"""Tests of all code that uses a device on simulated devices: placement of tensors, synchronisation, fp64.

CUDA graphs, compilation, memory measurement and speed are tested on a real GPU in `test_gpu`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dctransformer import DCTransformer
from dctransformer.cli import main
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.features import inception_extractor, open_extractor
from dctransformer.model.config import preset
from dctransformer.model.texture_state import TextureState
from dctransformer.sampling import drawing
from dctransformer.sampling import texture as texture_sampling
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample
from dctransformer.sampling.likelihood import code_lengths, triple_bits
from dctransformer.sampling.texture import NoiseKey, fill_texture
from dctransformer.sampling.tiles import CompletionJob, complete
from dctransformer.sequence import conditions
from dctransformer.sequence.chunks import ChunkBatch, Sequence, cut_chunks
from dctransformer.sequence.runs import Runs, round_up
from dctransformer.sequence.texture import sample_texture
from dctransformer.tasks.edit import Options, colorize, continue_, inpaint, upscale
from dctransformer.tasks.likelihood import likelihood
from dctransformer.training.config import TrainConfig
from dctransformer.training.trainer import Trainer
from pictures import photo
from pretend_gpu import DeviceTensor, PretendDevice, on_host, pretend_device
from test_model_distribution import triples_of
from test_texture import SMALL, random_picture

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="a device is here; it need not be pretended"
)

GRID = Grid(1, 2)
CONFIG = SampleConfig(seed=3, graphs=False, precision="fp32", workers=1)


@pytest.fixture(autouse=True)
def few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the number of turns in which finished pictures idle."""
    monkeypatch.setattr(texture_sampling, "TURNS_PER_READ", 2)


def network(texture_from: int = 1, *, channels: float = -1.0, **changes: Any) -> DCTransformer:
    """A tiny model with non-zero weights; its pictures have few triples and channels (more with ``channels``)."""
    torch.manual_seed(0)
    settings = {"chunk": 4, "overlap": 0, "quality": 12, "size": 16, "num_labels": 2, **SMALL, **changes}
    model = DCTransformer(preset("tiny", texture_from=texture_from, conditions=conditions.NAMES, **settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        if texture_from < 4:
            model.channel_head.after.weight += 1
            model.texture.use_bias.weight += channels
        else:
            model.channel_head.after.weight -= 2
    return model


def on_device(model: DCTransformer, pretended: PretendDevice) -> DCTransformer:
    """Move the complete model to the device."""
    model = model.to(pretended.device)
    assert model.device == pretended.device
    assert all(isinstance(t, DeviceTensor) for t in [*model.parameters(), *model.buffers()])
    pretended.forget()
    return model


def sequences(model: DCTransformer) -> list[Sequence]:
    """The sequences of two pictures."""
    return [Sequence.from_triples(triples_of(random_picture(k, 0.03, GRID), GRID), GRID, k) for k in range(2)]


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "texture_from", "settings"),
    [
        ("cuda", 1, {}),
        ("cuda", 1, {"guidance": 1.5, "top_p": 0.9, "min_p": 0.05}),
        ("cuda", 4, {"guidance": 1.5, "temperature": 0.0}),
        ("mps", 1, {"guidance": 1.5, "top_p": 0.9}),
        ("mps", 4, {}),
    ],
)
def test_samples_on_a_device_equal_those_on_the_cpu(kind: str, texture_from: int, settings: dict[str, float]) -> None:
    """Samples equal those of the CPU, with and without guidance, drawn in fp64 and fp32."""
    model, config = network(texture_from, overlap=1), dataclasses.replace(CONFIG, **settings)
    expected = sample(model, 2, config, labels=[0, 1], size=(16, 32))
    with pretend_device(kind) as pretended:
        samples = sample(on_device(model, pretended), 2, config, labels=[0, 1], size=(16, 32))
    assert torch.equal(samples.mcus, expected.mcus)
    assert int(samples.mcus.count_nonzero()) > 4


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_guided_samples_on_a_device_equal_those_on_the_cpu(kind: str) -> None:
    """A guide that was loaded on the CPU follows its model to the device when pictures are drawn."""
    model, config = network(overlap=1), dataclasses.replace(CONFIG, guidance=1.5, min_p=0.02)
    model.attach_guide(network(overlap=1, width=16, heads=2))
    expected = sample(model, 2, config, labels=[0, 1], size=(16, 32))
    with pretend_device(kind) as pretended:
        samples = sample(on_device(model, pretended), 2, config, labels=[0, 1], size=(16, 32))
    assert torch.equal(samples.mcus, expected.mcus)
    assert not torch.equal(samples.mcus, sample(network(overlap=1), 2, CONFIG, labels=[0, 1], size=(16, 32)).mcus)


def test_bf16_samples_on_a_device() -> None:
    """Precision ``auto`` is bf16 on a GPU."""
    with pretend_device() as pretended:
        config = dataclasses.replace(CONFIG, precision="auto")
        samples = sample(on_device(network(), pretended), 1, config, size=(16, 32))
    assert int(samples.mcus.count_nonzero()) > 2


@pytest.mark.parametrize(("many_places", "channels"), [(False, -2.0), (False, 0.3), (True, -2.0)])
def test_the_host_does_not_wait_for_texture(
    many_places: bool, channels: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host reads which pictures are finished in some turns and at the end, and channels only of many places."""
    drawn, model = [], network(channels=channels)

    def uniform_on(noise: np.ndarray, device: torch.device) -> torch.Tensor:
        drawn.append(noise.size)
        return drawing.uniform_on(noise, device)

    zeros = torch.zeros(2, GRID.mcus, 6, 64, dtype=torch.int16)
    nothing, labels = torch.zeros_like(zeros, dtype=torch.bool), torch.tensor([0, 1])
    keys, configs = [NoiseKey(0, i, 0) for i in range(2)], [SampleConfig(), SampleConfig()]
    expected, counted = fill_texture(model, TextureState(zeros, nothing, nothing, labels, GRID), keys, configs)
    with pretend_device() as pretended:
        device = pretended.device
        picture = TextureState(zeros.to(device), nothing.to(device), nothing.to(device), labels.to(device), GRID)
        model = on_device(model, pretended)
        all_places = len(keys) * (order.NUM_CHANNELS - model.config.texture_rank) * 3 * GRID.positions
        monkeypatch.setattr(texture_sampling, "NOISE_BYTES", 8 * all_places - many_places)
        monkeypatch.setattr(texture_sampling, "uniform_on", uniform_on)
        filled, decided = fill_texture(model, picture, keys, configs)
        turns_per_read = 1 if many_places else texture_sampling.TURNS_PER_READ
        turns = rounded_up_to(max(decided) + 1, turns_per_read)
        assert pretended.reads.total() == turns // turns_per_read + 1, pretended.reads
        assert many_places or pretended.copies.total() <= 6, pretended.copies  # tables, once
        assert max(drawn) <= len(keys) * order.NUM_CHANNELS if many_places else max(drawn) == all_places
    assert decided == counted and (max(decided) >= texture_sampling.TURNS_PER_READ) == (channels > 0), decided
    assert torch.equal(on_host(filled), expected)


def rounded_up_to(count: int, step: int) -> int:
    """Round up to a multiple of ``step``."""
    return -(-count // step) * step


def test_a_chunk_is_read_once_it_is_decoded() -> None:
    """All-triples models cause two reads per chunk: whether predictions are finite, and the triples."""
    model, keeps = network(4), []
    with pretend_device() as pretended:
        model = on_device(model, pretended)
        sample(model, 1, CONFIG, size=(16, 16))
        pretended.forget()
        sample(model, 1, CONFIG, size=(16, 16), progress=lambda *done: keeps.append(done))
    weights = 1  # that they are finite
    assert pretended.reads.total() == 2 * len(keeps) + weights, pretended.reads
    assert not pretended.copies


# Tasks ----------------------------------------------------------------------------------------------------------------


def edit_options() -> Options:
    return Options(sampling=dataclasses.replace(CONFIG, temperature=0.7))


TASKS: dict[str, Callable[[DCTransformer, np.ndarray], list[Any]]] = {
    "upscale": lambda model, picture: upscale(model, [picture[:8, :16]], 2, edit_options()),
    "colorize": lambda model, picture: colorize(model, [picture], edit_options()),
    "inpaint": lambda model, picture: inpaint(model, [picture], options=edit_options(), box=(16, 0, 16, 16)),
    "continue": lambda model, picture: continue_(model, [picture], bands=1, options=edit_options()),
}


@pytest.mark.parametrize("task", list(TASKS))
def test_tasks_do_on_a_device_what_they_do_on_a_cpu(task: str) -> None:
    """Tasks with texture give the same results on whole pictures, holes and kept triples."""
    model, picture = network(channels=-3.0), photo(16, 32, seed=1)
    expected = TASKS[task](model, picture)[0].results[0]
    with pretend_device() as pretended:
        result = TASKS[task](on_device(model, pretended), picture)[0].results[0]
    assert result.equal(expected)


def test_tiles_on_a_device() -> None:
    """A picture of two tiles works with a model of 16 pixels."""
    model = network(channels=-3.0)
    given = torch.zeros(GRID.mcus, 6, 64, dtype=torch.bool)
    given[:, :, 32:] = True
    jobs = [CompletionJob(0, 1, random_picture(1, 0.05, GRID), given)]
    expected = complete(model, jobs, GRID, CONFIG)
    with pretend_device() as pretended:
        results = complete(on_device(model, pretended), jobs, GRID, CONFIG)
    assert torch.equal(results, expected)


# Likelihood, coding, evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "texture_from"), [("cuda", 1), ("cuda", 4), ("mps", 1)])
def test_a_device_counts_the_bits_that_a_cpu_does(kind: str, texture_from: int) -> None:
    """Code lengths by picture and by triple equal those of the CPU."""
    model = network(texture_from, overlap=1)
    expected, by_triple = code_lengths(model, sequences(model)).bits, triple_bits(model, sequences(model)[0])
    with pretend_device(kind) as pretended:
        model = on_device(model, pretended)
        torch.testing.assert_close(code_lengths(model, sequences(model)).bits, expected)
        torch.testing.assert_close(triple_bits(model, sequences(model)[0]), by_triple)


def test_likelihood_of_a_part_given_the_other(tmp_path: Path) -> None:
    """The command `likelihood --given` works with model and pictures from disk."""
    (tmp_path / "pictures").mkdir()
    Image.fromarray(photo(16, 16, seed=0)).save(tmp_path / "pictures" / "one.png")
    network().save_pretrained(tmp_path / "model")
    expected, on_gpu = {}, {}
    for device, into in (("cpu", expected), ("cuda", on_gpu)):
        with pretend_device() as pretended:
            into.update(likelihood(tmp_path / "model", tmp_path / "pictures", given="luma", device=device))
            assert bool(pretended.reads) == (device == "cuda")
    assert on_gpu["given"]["sum_bytes_per_image"] == pytest.approx(expected["given"]["sum_bytes_per_image"])


@pytest.mark.parametrize(("kind", "texture_from"), [("mps", 1), ("cuda", 4)])
def test_a_device_compresses(kind: str, texture_from: int) -> None:
    """Compressed bits decode to the picture, and are as many as on the CPU."""
    pytest.importorskip("constriction", reason="constriction is not installed (pip install '.[compress]')")
    from dctransformer.sampling.coding import CodingTask, PictureCoder

    grid = Grid(1, 1)
    picture, model = random_picture(2, 0.02, grid, top=3), network(texture_from)
    (expected,) = PictureCoder(model).run([CodingTask(0, picture)], grid)
    with pretend_device(kind) as pretended:
        coder = PictureCoder(on_device(model, pretended))
        (coded,) = coder.run([CodingTask(0, picture)], grid)
        assert coded is not None and expected is not None and len(coded.data) == len(expected.data)
        (decoded,) = coder.run([CodingTask(0, data=coded.data)], grid)
    assert decoded is not None and torch.equal(decoded.coefficients, picture)


class TinyInception(nn.Module):
    """The parts of torch-fidelity's network that the extractor uses, at a small size."""

    def __init__(self) -> None:
        super().__init__()
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        branch: Any = self.Mixed_6d.branch1x1
        return (branch(x.float() / 255).mean((2, 3)),)


@pytest.mark.parametrize("name", ["small64", "inception"])
def test_extractors_run_on_a_device(name: str) -> None:
    """Features return to the CPU, where distances, recall and the two-sample test are computed."""
    torch.manual_seed(0)
    plain = TinyInception().eval()
    pictures = torch.from_numpy(np.stack([photo(32, 32, k) for k in range(2)]))
    expected = (open_extractor(name) if name == "small64" else inception_extractor(plain))(pictures)
    with pretend_device() as pretended:
        device = pretended.device
        extractor = open_extractor(name, device) if name == "small64" else inception_extractor(plain.to(device))
        features = extractor(pictures)
        assert any("to cpu" in read for read in pretended.reads)
    for one, two in zip(features, expected, strict=True):
        assert not isinstance(one, DeviceTensor)
        torch.testing.assert_close(one, two)


# Training -------------------------------------------------------------------------------------------------------------


def training_batch(model: DCTransformer) -> ChunkBatch:
    """Chunks of two pictures, with texture if the model has it."""
    first, config = model.config.texture_rank, model.config
    pictures = sequences(model)
    chunks = cut_chunks([s.structure(first) for s in pictures], [0, 0], config.chunk, config.overlap)
    if first < 192:
        chunks.texture = sample_texture(pictures, torch.tensor([0.3, 0.6]), 3, first)
        chunks.texture.pictures, chunks.texture.first = 2, first
    return chunks


@pytest.mark.parametrize(
    ("kind", "texture_from", "optimizer", "precision"),
    [("cuda", 1, "muon", "fp32"), ("cuda", 4, "adamw", "bf16"), ("mps", 1, "adamw", "fp32")],
)
def test_a_training_step_reads_nothing(kind: str, texture_from: int, optimizer: str, precision: str) -> None:
    """A step reads no value or size, so that the host runs ahead and steps can be captured."""
    settings = {"batch": 2, "warmup": 2, "precision": precision, "compile": "off", "optimizer": optimizer}
    settings |= {"micro_batch": None}
    batch, tolerance = training_batch(network(texture_from)), 1e-3 if precision == "fp32" else 0.1
    trainer = Trainer(network(texture_from).train(), TrainConfig(device="cpu", **settings))
    expected = [trainer.step(batch, 16) for _ in range(2)]
    with pretend_device(kind) as pretended:
        trainer = Trainer(network(texture_from).train(), TrainConfig(device=kind, **settings))
        losses = [trainer.step(batch, 16)]  # the first step of all copies tables, and checks for divergence
        pretended.forget()
        losses.append(trainer.step(batch, 16))
        assert not pretended.reads and not pretended.copies
    torch.testing.assert_close(
        torch.stack(list(map(on_host, losses))), torch.stack(expected), rtol=tolerance, atol=tolerance
    )


def test_runs_are_padded_to_few_shapes() -> None:
    """Padded runs belong to no triple and leave the losses unchanged."""
    model = network(4)
    batch = training_batch(model)
    runs = Runs.find(batch.ranks[:, 1:])
    padded = runs.padded()
    assert len(padded.row) == 64 and padded.most == 8 and int(padded.of_triple.max()) < len(runs.row)
    assert len({round_up(count, least=64) for count in range(1, 2049)}) < 40
    assert all(count <= round_up(count, least=8) <= 1.125 * count + 8 for count in range(1, 2049))
    expected = model(batch)
    torch.testing.assert_close(model(dataclasses.replace(batch, runs=padded)), expected)


# The command line -----------------------------------------------------------------------------------------------------

COMMANDS = {
    "sample": ("dctransformer.tasks.generate.generate", ["model", "--out", "out"]),
    "upscale": ("dctransformer.tasks.edit.upscale", ["model", "p.png", "--out", "out"]),
    "colorize": ("dctransformer.tasks.edit.colorize", ["model", "p.png", "--out", "out"]),
    "inpaint": ("dctransformer.tasks.edit.inpaint", ["model", "p.png", "--out", "out", "--box", "0,0,8,8"]),
    "continue": ("dctransformer.tasks.edit.continue_", ["model", "p.png", "--out", "out"]),
    "likelihood": ("dctransformer.tasks.likelihood.likelihood", ["model", "data"]),
    "evaluate": ("dctransformer.evaluate.evaluation.evaluate", ["model", "--data", "data"]),
    "report": ("dctransformer.evaluate.report.write_report", ["model", "--out", "report.html"]),
    "compress": ("dctransformer.tasks.compress.compress", ["model", "data", "--out", "out"]),
    "decompress": ("dctransformer.tasks.compress.decompress", ["data", "--out", "out"]),
    "app": ("dctransformer.app.server.serve", ["model"]),
    "train": ("dctransformer.training.loop.train", ["--data", "data", "--run", "run"]),
}  # fmt: skip


@pytest.mark.parametrize("command", list(COMMANDS))
def test_commands_pass_the_device_on(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command passes ``--device`` to the function that does the work."""
    target, arguments = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    devices = []

    def work(*args: Any, **kwargs: Any) -> None:
        settings = [x for x in (*args, *kwargs.values()) if hasattr(x, "device")]
        devices.append(kwargs["device"] if "device" in kwargs else settings[0].device)
        raise ValueError("that is enough")

    monkeypatch.setattr(target, work)
    with pytest.raises(SystemExit):
        main([command, *arguments, "--device", "cuda:7"])
    assert devices == ["cuda:7"], capsys.readouterr().err
