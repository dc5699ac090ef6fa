"""Tests of the baselines and of the benchmark that compares DCTransformer with them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from baselines import loop
from baselines.image_gpt import ImageGPT
from baselines.palette import fit_palette, nearest_colour
from baselines.pictures import (
    Batch,
    PictureSteps,
    PictureStore,
    enlarge,
    flat_batch,
    psnr,
    shrink,
)
from baselines.raster import RasterConfig, RasterTransformer, Steps, sample_tokens
from baselines.systems import Data, systems, with_parameters
from baselines.vqvae import VQVAE, VQVAEConfig
from dctransformer.codec import Codec
from dctransformer.data import prepare
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.training.trainer import Trainer
from pictures import photo, photo_folder

TINY = RasterConfig(side=5, kinds=7, num_labels=2, width=32, heads=2, layers=2, hidden=48)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 40 synthetic pictures in two classes, 32 pixels."""
    folder = photo_folder(tmp_path_factory.mktemp("pictures"), 40, ("even", "odd"))
    out = tmp_path_factory.mktemp("data") / "set"
    prepare(folder, out, size=32, quality=30, val_fraction=0.2, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def opened(data: Path) -> Data:
    """The decoded pictures of the data set."""
    return Data.open(data, 4)


def lively(config: RasterConfig, seed: int = 0) -> RasterTransformer:
    """A Transformer whose residual branches and head are far from zero."""
    torch.manual_seed(seed)
    model = RasterTransformer(config).eval()
    for name, p in model.named_parameters():
        if name.endswith(("out.weight", "down.weight")):
            p.data.mul_(10)
    return model


def tokens_of(config: RasterConfig, rows: int, seed: int = 0) -> torch.Tensor:
    """Random tokens, int64 ``[rows, L]``."""
    return torch.randint(config.kinds, (rows, config.length), generator=torch.Generator().manual_seed(seed))


# The Transformer ------------------------------------------------------------------------------------------------------


def test_cached_steps_equal_the_whole_sequence() -> None:
    """Decoding token by token with a KV cache gives the logits of the whole sequence."""
    model, labels = lively(TINY), torch.tensor([0, 1, 2])
    tokens = tokens_of(TINY, 3)
    with torch.inference_mode():
        whole = model.logits(tokens, labels)
        steps = Steps(model, labels)
        for k in range(TINY.length):
            torch.testing.assert_close(steps(), whole[:, k], atol=1e-4, rtol=1e-4)
            steps.append(tokens[:, k])
    assert whole.std() > 0.1, "logits that are all alike would show nothing"


def test_the_likelihood_is_causal() -> None:
    """Changing a token changes its own nats and later ones, never earlier ones; the label changes all of them."""
    model, tokens = lively(TINY), tokens_of(TINY, 1)
    other = tokens.clone()
    other[0, 9] = (other[0, 9] + 1) % TINY.kinds
    with torch.inference_mode():
        labels = torch.tensor([0])
        before, after = (model(flat_batch(t, labels))[0, :, 0] for t in (tokens, other))
        relabelled = model(flat_batch(tokens, torch.tensor([1])))[0, :, 0]
    assert torch.equal(before[:9], after[:9])
    assert (before[9:] != after[9:]).float().mean() > 0.9
    assert (before != relabelled).float().mean() > 0.9


def test_probabilities_of_all_pictures_sum_to_one() -> None:
    """exp(−nats) sums to 1 over every possible picture of 2 × 2 tokens with a vocabulary of 3."""
    config = dataclasses.replace(TINY, side=2, kinds=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    with torch.inference_mode():
        nats = lively(config)(flat_batch(every, torch.zeros(len(every), dtype=torch.int64))).sum((1, 2))
    assert nats.std() > 0.1
    assert float((-nats.double()).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_samples_do_not_depend_on_the_batch() -> None:
    """Picture i of a seed is the same alone, in a batch and in a later call; another seed gives other pictures."""
    model, labels = lively(TINY), [0, 1, 2, 0, 1]
    later = sample_tokens(model, labels[3:], SampleConfig(seed=3, batch=2), first=3)
    one, all_, other = (
        sample_tokens(model, labels, SampleConfig(seed=seed, batch=batch)) for seed, batch in ((3, 1), (3, 4), (4, 4))
    )
    assert torch.equal(one, all_) and torch.equal(one[3:], later)
    assert (one != other).float().mean() > 0.3
    assert one.shape == (5, TINY.length) and int(one.max()) < TINY.kinds


def test_samples_follow_the_distribution() -> None:
    """First tokens of many pictures are as frequent as the model predicts."""
    config = dataclasses.replace(TINY, side=1)
    model, count = lively(config), 2000
    drawn = sample_tokens(model, [1] * count, SampleConfig(seed=0, batch=count))[:, 0]
    with torch.inference_mode():
        p = model.logits(drawn[:1, None], torch.tensor([1]))[0, 0].softmax(-1)
    assert p.max() > 1.5 * p.min()
    frequency = torch.bincount(drawn, minlength=config.kinds) / count
    torch.testing.assert_close(frequency, p, atol=4 * 0.5 / count**0.5, rtol=0)


# Palette and pictures -------------------------------------------------------------------------------------------------


def test_nearest_colour_equals_brute_force() -> None:
    """The result is that of exact integer distances, and the first colour in a tie."""
    draw = np.random.default_rng(0)
    pixels, palette = (torch.from_numpy(draw.integers(0, 256, (n, 3), np.uint8)) for n in (500, 40))
    apart = (pixels.long()[:, None] - palette.long()).square().sum(-1)
    nearest = nearest_colour(pixels.view(5, 100, 3), palette)
    assert torch.equal(nearest.flatten(), apart.argmin(1))


def test_palette_is_deterministic_and_exact_where_it_can_be() -> None:
    """k-means finds the exact colours if there are few; more colours reduce the error; a seed is reproducible."""
    few = torch.tensor([[0, 0, 0], [255, 0, 0], [10, 200, 30], [250, 250, 250]], dtype=torch.uint8)
    palette = fit_palette(few.repeat(200, 1), 4, seed=1)
    assert {tuple(c) for c in palette.tolist()} == {tuple(c) for c in few.tolist()}
    picture = torch.from_numpy(photo(48, 48))
    errors = []
    for colours in (4, 16, 64):
        palette = fit_palette(picture, colours)
        assert torch.equal(palette, fit_palette(picture, colours))
        errors.append(float((palette[nearest_colour(picture, palette)].float() - picture.float()).square().mean()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    with pytest.raises(ValueError, match="needs as many pixels"):
        fit_palette(few, 5)


def test_image_gpt_reads_and_writes_pictures_of_its_palette_exactly() -> None:
    """Pictures in palette colours are restored exactly; larger ones are shrunk by box averaging and enlarged."""
    palette = fit_palette(torch.from_numpy(photo(32, 32)), 7)
    model = ImageGPT(dataclasses.replace(TINY, side=8), palette)
    tokens = tokens_of(model.config, 3)
    pictures = model.pictures(tokens, 8)
    assert torch.equal(model.tokens(pictures), tokens)
    large = pictures.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(model.tokens(large), tokens)
    assert model.pictures(tokens, 16).shape == (3, 16, 16, 3)
    assert "palette" in model.state_dict(), "it is saved with the weights"


def test_shrinking_and_enlarging() -> None:
    """Shrinking averages boxes and commutes with flips; an equal side changes nothing; PSNR has its analytic value."""
    pictures = torch.from_numpy(np.stack([photo(8, 8, i) for i in range(3)]))
    boxes = pictures.float().view(3, 4, 2, 4, 2, 3).mean((2, 4)).round().to(torch.uint8)
    assert torch.equal(shrink(pictures, 4), boxes)
    assert torch.equal(shrink(pictures.flip(2), 4), boxes.flip(2))
    assert enlarge(pictures, 8) is pictures and shrink(pictures, 8) is pictures
    assert torch.equal(enlarge(torch.full((1, 4, 4, 3), 77, dtype=torch.uint8), 8), torch.full((1, 8, 8, 3), 77))
    assert psnr(torch.full((2, 4, 4, 3), 10), torch.full((2, 4, 4, 3), 15)) == pytest.approx(34.151, abs=1e-3)


def test_decoded_pictures_are_those_of_the_coefficients(opened: Data) -> None:
    """DCTransformer's triples decode to the originals after the codec, in the same order, with their labels."""
    system = systems(preset("tiny"), opened, (16,))[0]
    codec = Codec(quality=system.store.info.quality)
    originals = opened.held_out.pixels
    assert torch.equal(system.reconstructed(), codec.decode(codec.encode(originals)))
    assert not torch.equal(system.reconstructed(), originals)
    assert system.store.labels.tolist() == opened.train.labels.tolist()


def test_batches_flip_hide_labels_and_visit_everything(opened: Data) -> None:
    """A batch depends on its step number alone; an epoch covers every picture; about half are mirrored."""
    config = dataclasses.replace(loop.base_config(), batch=len(opened.train), label_dropout=0.5)
    steps = PictureSteps(opened.train, config, flat_batch)
    batch, repeated = steps[0], steps[0]
    assert torch.equal(batch.inputs, repeated.inputs) and torch.equal(batch.labels, repeated.labels)
    assert not torch.equal(batch.inputs, steps[1].inputs)
    originals = {p.numpy().tobytes() for p in opened.train.pixels}
    mirrored = {p.numpy().tobytes() for p in opened.train.pixels.flip(2)}
    seen = [p.numpy().tobytes() for p in batch.inputs]
    unflipped = sum(p in originals for p in seen)
    assert sum(p in mirrored for p in seen) == len(seen) - unflipped and 0.2 < unflipped / len(seen) < 0.8
    distinct = {min(p, q.flip(1).numpy().tobytes()) for p, q in zip(seen, batch.inputs, strict=True)}
    assert len(distinct) == len(opened.train)
    assert 0.2 < (batch.labels == 2).float().mean() < 0.8


# VQ-VAE ---------------------------------------------------------------------------------------------------------------


def test_codes_round_trip() -> None:
    """Decoding code indices equals decoding the codes nearest to the encoder outputs."""
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(channels=16, codes=12, code_width=4)).eval()
    pictures = torch.from_numpy(np.stack([photo(32, 32, i) for i in range(2)]))
    with torch.inference_mode():
        outputs = model.encode(pictures)
        tokens = model.tokens(pictures)
        codes = model.quantiser.codebook
        nearest = torch.cdist(outputs.permute(0, 2, 3, 1).flatten(1, 2), codes).argmin(-1)
        scaled = model.decode(codes[nearest].unflatten(1, (8, 8)).permute(0, 3, 1, 2))
    assert tokens.shape == (2, 64) and len(tokens.unique()) > 2
    assert torch.equal(tokens, nearest)
    decoded = model.pictures(tokens)
    assert decoded.shape == pictures.shape and decoded.dtype == torch.uint8
    assert (decoded.permute(0, 3, 1, 2).float() - (scaled * 64 + 127.5).clamp(0, 255)).abs().max() <= 0.51


def test_the_encoder_gets_gradients_through_the_codes_and_the_codes_follow() -> None:
    """Gradients pass straight through; training moves the codes, and converting pictures to tokens does not."""
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(channels=16, codes=12, code_width=4)).train()
    batch = flat_batch(torch.from_numpy(np.stack([photo(32, 32, i) for i in range(2)])), torch.zeros(2).long(), 32**2)
    loss = model(batch)
    error, commitment = loss[:, 0].unbind(-1)
    for part in (error.sum(), commitment.sum()):
        gradients = torch.autograd.grad(part, list(model.encoder.parameters()), retain_graph=True)
        assert all(g.abs().max() > 0 for g in gradients)
    before = model.quantiser.codebook.clone()
    model.tokens(batch.inputs)
    assert torch.equal(model.quantiser.codebook, before)
    torch.nn.init.normal_(model.encoder[-1].bias)
    model(batch)
    assert not torch.equal(model.quantiser.codebook, before)


# Training and matching ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_all_systems_have_as_many_parameters(name: str, opened: Data) -> None:
    """The numbers of parameters are within 5 % of DCTransformer's, counting both networks of VQ-VAE."""
    dctransformer, *others = systems(preset(name), opened, (16, 32))
    assert [s.name for s in others] == ["VQ-VAE + prior", "Image GPT, 16 px", "Image GPT, 32 px"]
    for system in others:
        assert 0.95 < system.parameters / dctransformer.parameters < 1.05
    with pytest.raises(ValueError, match="too few for a Transformer"):
        with_parameters(RasterConfig(side=8), 1000)
    with pytest.raises(ValueError, match="does not divide"):
        systems(preset(name), opened, (20,))


def stage_of_raster(rates: tuple[float, ...]) -> loop.Stage:
    """A stage whose data are pictures in which every token is 3."""
    batch = flat_batch(torch.full((4, TINY.length), 3), torch.zeros(4, dtype=torch.int64))

    class ConstantBatches:
        def __getitem__(self, step: int) -> Batch:
            return batch

    return loop.Stage(
        "model", lambda: RasterTransformer(TINY), lambda _: ConstantBatches(), lambda n: loop.mean_loss(n, [batch]), 4,
        TINY.length, rates=rates,
    )  # fmt: skip


def test_the_loop_trains_and_chooses_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The EMA weights learn; tuning chooses the rate with the lowest held-out loss and tolerates one that diverges."""
    monkeypatch.setitem(loop.CLOCKS, "steps", itertools.count().__next__)  # every step takes one second
    stage = stage_of_raster((1e-5, 3e-3, 1e30))
    trained = loop.fit(stage, 0.5, 3e-3, loop.base_config(), tmp_path, 1.0, "steps")
    assert stage.loss(stage.make()) > 1.5 > 0.5 > stage.loss(trained.network)
    assert trained.facts["steps"] == 30 and trained.facts["images"] == 120
    assert trained.facts["images_per_second"] == pytest.approx(4)
    rate, losses = loop.tune(stage, 0.5, loop.base_config(), tmp_path, 1.0, "steps")
    assert rate == 3e-3
    assert losses["0.003"] < losses["1e-05"] < losses["1e+30"] == float("inf")
    with pytest.raises(ValueError, match="diverged with every learning rate"):
        loop.tune(stage_of_raster((1e30,)), 0.5, loop.base_config(), tmp_path, 1.0, "steps")


def test_an_interrupted_training_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the weights of a training that was not interrupted; with another rate it starts from scratch."""
    monkeypatch.setitem(loop.CLOCKS, "steps", itertools.count().__next__)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 4.0)
    stage = stage_of_raster((3e-3,))
    whole = loop.fit(stage, 0.5, 3e-3, loop.base_config(), tmp_path / "whole", 1.0, "steps")
    step, taken = Trainer.step, itertools.count()

    def interrupted(trainer: Trainer, batch: Batch) -> torch.Tensor:
        if next(taken) == 17:
            raise KeyboardInterrupt
        return step(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        loop.fit(stage, 0.5, 3e-3, loop.base_config(), tmp_path / "broken", 1.0, "steps")
    steps: list[int] = []
    monkeypatch.setattr(Trainer, "step", lambda trainer, batch: steps.append(1) or step(trainer, batch))
    # The warmup is that of the beginning, though the machine has become slower.
    continued = loop.fit(stage, 0.5, 3e-3, loop.base_config(), tmp_path / "broken", 2.0, "steps")
    assert len(steps) == 15 and continued.facts["steps"] == 30
    assert continued.facts["warmup"] == whole.facts["warmup"]
    for a, b in zip(whole.network.parameters(), continued.network.parameters(), strict=True):
        assert torch.equal(a, b)
    loop.fit(stage, 0.5, 3e-3, loop.base_config(), tmp_path / "broken", 1.0, "steps")
    assert len(steps) == 15, "finished already"
    loop.fit(stage, 0.5, 1e-3, loop.base_config(), tmp_path / "broken", 1.0, "steps")
    assert len(steps) == 45
    other = dataclasses.replace(stage, make=lambda: RasterTransformer(dataclasses.replace(TINY, width=24)))
    loop.fit(other, 0.5, 1e-3, loop.base_config(), tmp_path / "broken", 1.0, "steps")
    assert len(steps) == 75, "a checkpoint of another network is not continued"
    loop.remove_checkpoints(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    """A data set without validation pictures is refused with a sentence that says what to do."""
    folder = photo_folder(tmp_path / "pictures", 4, ("a",))
    prepare(folder, tmp_path / "set", size=32, quality=30, val_fraction=0.0, workers=1, progress=False)
    with pytest.raises(ValueError, match="has no validation pictures; prepare"):
        PictureStore.open(tmp_path / "set", "validation")


# The benchmark --------------------------------------------------------------------------------------------------------


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch):
    """The entry point of `benchmarks/compare.py`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import compare  # pyright: ignore[reportMissingImports]

    yield compare.main
    for name in ("compare", "measure"):
        sys.modules.pop(name, None)


def test_the_benchmark_from_end_to_end(data: Path, tmp_path: Path, main, capsys: pytest.CaptureFixture) -> None:
    """A run writes rows, tables, the sheet and JSON; a second run reuses them; other settings are refused."""
    args = [str(data), "--out", str(tmp_path / "out"), "--minutes", "0.003", "--num", "5", "--few", "--preset", "tiny"]
    args += ["--sides", "16", "8", "--scored", "2", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    args += ["--precision", "fp32", "--seeds", "0", "1"]
    main(args)
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert {"benchmark", "ratio", "goal"} <= line.keys()
    names = ["DCTransformer", "VQ-VAE + prior", "Image GPT, 16 px", "Image GPT, 8 px"]
    assert list(line["frechet"]) == names
    best = min(line["frechet"][name] for name in names[1:])
    assert line["ratio"] == pytest.approx(best / line["frechet"]["DCTransformer"], rel=0.01)
    scores, costs = (tmp_path / "out" / "table.md").read_text().split("\n\n")
    assert [row.split("|")[1].strip() for row in scores.splitlines()[2:]] == [*names, "held-out photographs"]
    assert [row.split("|")[1].strip() for row in costs.splitlines()[2:]] == names
    head = scores.splitlines()[0].split(" | ")
    assert head[1] == "recall, originals" and "kernel, round trip" in head and "floor: Fréchet" in scores
    assert scores.count("±") >= 3 * 8  # over the seeds
    assert "±" not in scores.splitlines()[5] and not (tmp_path / "out" / "seed-1" / "image-gpt-8-px").exists()
    assert Image.open(tmp_path / "out" / "sheet.png").width > 5 * 128
    row = json.loads((tmp_path / "out" / "seed-0" / "vq-vae-prior" / "row.json").read_text())
    assert list(row["stages"]) == ["autoencoder", "prior"] and row["floor_psnr"] > 5
    folder = tmp_path / "out" / "seed-0"
    weights = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("model.safetensors"))
    assert weights == ["dctransformer/model/model.safetensors", "image-gpt-16-px/model/model.safetensors",
                       "image-gpt-8-px/model/model.safetensors", "vq-vae-prior/autoencoder/model.safetensors",
                       "vq-vae-prior/prior/model.safetensors"]  # fmt: skip
    # Without the row and one of the pictures, the second run generates the same picture again.
    redrawn = ("vq-vae-prior", "image-gpt-8-px")
    drawn = {name: load_file(folder / name / "samples.safetensors")["pictures"] for name in redrawn}
    for name, pictures in drawn.items():
        (folder / name / "row.json").unlink()
        save_file({"pictures": pictures[:4].contiguous()}, folder / name / "samples.safetensors")
    # Records that are older than a setting count as made with what it stands for.
    for name in ("samples.json", "row.json"):
        record = json.loads((folder / "dctransformer" / name).read_text())
        assert record["settings"].pop("min_p") == 0
        (folder / "dctransformer" / name).write_text(json.dumps(record))
    written = (folder / "dctransformer" / "row.json").stat().st_mtime_ns
    main(args)
    assert (folder / "dctransformer" / "row.json").stat().st_mtime_ns == written
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert second["frechet"] == line["frechet"]
    for name, pictures in drawn.items():
        assert torch.equal(load_file(folder / name / "samples.safetensors")["pictures"], pictures)
    with pytest.raises(SystemExit) as stop:
        main([*args, "--scored", "3"])
    assert stop.value.code == 2 and "another scored" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*args, "--min-p", "0.05"])
    assert stop.value.code == 2 and "another min_p" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--num", "100"], "small64-imagenette-frechet needs 161 generated pictures"),
        (["--num", "3", "--few"], "small64-imagenette-precision needs 4 generated pictures"),
        (["--minutes", "0"], "minutes 0.0 must be greater than 0"),
        (["--few", "--num", "5", "--preset", "large"], "there is no preset 'large'"),
        (["--few", "--num", "5", "--sides", "0"], "side 0 does not divide"),
        (["--few", "--num", "5", "--min-p", "2"], "min-p 2.0 must be from 0 to 1"),
        (["--features", "nothing.onnx"], "there is no extractor 'nothing.onnx'"),
        (["--clock", "processor", "--threads", "2"], "processor time is for one thread"),
    ],
)
def test_the_benchmark_refuses_with_a_sentence(
    args: list[str], sentence: str, data: Path, tmp_path: Path, main, capsys: pytest.CaptureFixture
) -> None:
    """Invalid arguments end in exit status 2 and one sentence, without a traceback."""
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stop:
            main([str(data), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *args])
    finally:
        torch.set_num_threads(threads)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("compare: ") and sentence in error


def test_pictures_of_several_sizes_are_refused(tmp_path: Path, main, capsys: pytest.CaptureFixture) -> None:
    """Every benchmark that supports squares only refuses pictures of several sizes with the same sentence."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, size in enumerate([(40, 40), (40, 60), (60, 40)] * 2):
        Image.fromarray(photo(*size, i)).save(photos / f"{i}.png")
    prepare(photos, tmp_path / "set", long_side=48, quality=30, val_fraction=0.3, workers=1, progress=False)
    import coders  # pyright: ignore[reportMissingImports]

    args = [str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--num", "5", "--few"]
    for run in (lambda: main(args), lambda: coders.main([args[0], "--model", "none"])):
        with pytest.raises(SystemExit) as stop:
            run()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2 and "squares of one size; prepare the pictures with --size" in error
    for name in ("coders", "counted_tables"):
        sys.modules.pop(name, None)


def test_the_benchmark_needs_data(tmp_path: Path, main, capsys: pytest.CaptureFixture) -> None:
    """A missing data folder is reported with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "there is no folder" in capsys.readouterr().err
