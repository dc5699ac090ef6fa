"""Tests that results are written as soon as they are finished, and that commands resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dctransformer.tasks.edit as editing
import dctransformer.tasks.generate as generating
from dctransformer import DCTransformer
from dctransformer.codec import read_jpeg
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.rows import Snapshot
from dctransformer.sequence.conditions import NAMES
from dctransformer.sheets import captioned_rows, contact_sheet, heat_map_sheet
from dctransformer.tasks.edit import Options, colorize, save_edits, upscale
from dctransformer.tasks.generate import generate, save_samples
from test_texture import SMALL

ONE = SampleConfig(seed=3, batch=1, workers=1)


@pytest.fixture(scope="module", params=[4, 2], ids=["triples", "texture"])
def model(request: pytest.FixtureRequest) -> DCTransformer:
    """A tiny untrained model for every task, whose pictures have few triples, and some texture if it has that."""
    torch.manual_seed(0)
    shape = {"num_labels": 2, "size": 16, "chunk": 64, "conditions": NAMES, **SMALL}
    network = DCTransformer(preset("tiny", texture_from=request.param, **shape)).eval()
    if request.param < 4:
        network.texture.use_bias.weight.data += 2
    return network


def stop_after(count: int):
    """A `watch` callback that interrupts (Ctrl-C) after a number of finished pictures."""
    finished: set[int] = set()

    def watch(snapshot: Snapshot) -> None:
        if snapshot.finished:
            finished.add(snapshot.index)
        if len(finished) == count:
            raise KeyboardInterrupt

    return watch


def names(folder: Path) -> set[str]:
    """File names in a folder."""
    return {path.name for path in folder.iterdir()}


def test_an_interrupted_sample_keeps_its_pictures_and_goes_on(
    model: DCTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command generates the missing pictures only, with the same final result."""
    whole, labels = generate(model, 4, sampling=ONE)
    with pytest.raises(KeyboardInterrupt):
        generate(model, 4, sampling=ONE, out=tmp_path, watch=stop_after(2))
    assert names(tmp_path) == {"pictures.json", *(f"sample-000{i}.{kind}" for i in range(2) for kind in ("jpg", "png"))}
    generated: list[int] = []
    original = generating.fill

    def fill(network: DCTransformer, requests: list, *a, **k):
        generated.extend(request.index for request in requests)
        return original(network, requests, *a, **k)

    monkeypatch.setattr(generating, "fill", fill)
    done: list[tuple[int, int]] = []
    samples, resumed_labels = generate(model, 4, sampling=ONE, out=tmp_path, progress=lambda *d: done.append(d))
    assert generated == [2, 3] and resumed_labels == labels and done[0][1] >= 2 and done[-1][1] == 4
    assert torch.equal(samples.mcus, whole.mcus)
    assert [t.tolist() for t in samples.triples] == [t.tolist() for t in whole.triples]
    files = save_samples(samples, labels, tmp_path, written=True)
    for i, path in enumerate(files["files"]):
        assert read_jpeg(path).equal(whole.dct()[i])
        assert np.array_equal(np.asarray(Image.open(files["pngs"][i])), whole.pixels()[i].numpy())
    assert Path(files["sheet"]).is_file() and Path(files["heat_map"]).is_file()
    # More pictures: existing ones are kept, also with another batch size or number of processes.
    generated.clear()
    generate(model, 5, sampling=dataclasses.replace(ONE, batch=4), out=tmp_path)
    assert generated == [4]
    generated.clear()
    generate(model, 4, sampling=dataclasses.replace(ONE, temperature=0.5), out=tmp_path)
    assert generated == [0, 1, 2, 3]


def test_results_of_other_commands_are_not_reused(model: DCTransformer, tmp_path: Path) -> None:
    """Another seed removes the pictures that it replaces before it starts."""
    generate(model, 3, sampling=ONE, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        generate(model, 3, sampling=dataclasses.replace(ONE, seed=4), out=tmp_path, watch=stop_after(1))
    assert "sample-0000.jpg" in names(tmp_path) and "sample-0002.jpg" not in names(tmp_path)
    (tmp_path / "sample-0000.jpg").write_bytes(b"\xff\xd8 half a picture")
    samples, _ = generate(model, 3, sampling=dataclasses.replace(ONE, seed=4), out=tmp_path)
    assert torch.equal(samples.mcus, generate(model, 3, sampling=dataclasses.replace(ONE, seed=4))[0].mcus)


def test_an_interrupted_task_keeps_its_results_and_goes_on(
    model: DCTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are written after each batch, and the same command adds the missing ones."""
    pictures = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(2)]
    whole = colorize(model, pictures, Options(num=2, sampling=ONE))
    groups: list[int] = []
    original = editing.complete

    def complete(network: DCTransformer, jobs: list, *a, **k):
        groups.append(len(jobs))
        if len(groups) == 3:
            raise KeyboardInterrupt
        return original(network, jobs, *a, **k)

    monkeypatch.setattr(editing, "complete", complete)
    options = Options(num=2, sampling=ONE, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        colorize(model, pictures, options)
    assert names(tmp_path) == {
        "pictures.json", *(f"picture-0-{k}.{kind}" for k in range(2) for kind in ("jpg", "png"))
    }  # fmt: skip
    resumed = colorize(model, pictures, options)
    assert groups == [1] * 5
    for a, b in zip(resumed, whole, strict=True):
        assert all(x.equal(y) for x, y in zip(a.results, b.results, strict=True))
    files = save_edits(resumed, tmp_path, written=True)
    assert len(files["files"]) == 4 and all(
        Path(f).is_file() for f in (*files["files"], *files["pngs"], files["sheet"])
    )
    colorize(model, [255 - pictures[0], pictures[1]], options)  # another picture of the same name
    assert groups == [1] * 7


def test_results_that_no_file_can_hold_are_refused_before_the_work(
    model: DCTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results above the JPEG limit of 65,500 pixels per side are refused."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(editing, "complete", begun)
    monkeypatch.setattr(editing, "enlarged_corners", begun)
    for shape in ((16, 8200, 3), (3000, 3000, 3)):
        with pytest.raises(ValueError, match=f"would become {shape[1] * 8}×{shape[0] * 8} pixels"):
            upscale(model, [np.zeros(shape, np.uint8)], 8)


def test_names_too_long_for_a_file_are_refused_before_the_work(model: DCTransformer, tmp_path: Path) -> None:
    """Input names are refused if the longer names of the results exceed the limit."""
    source = tmp_path / ("x" * 251 + ".png")
    Image.new("RGB", (16, 16)).save(source)
    with pytest.raises(ValueError, match="the name is too long"):
        colorize(model, [source], Options(sampling=ONE, out=tmp_path / "out"))


def test_sheets_stay_within_reason() -> None:
    """A sheet of 50,000 pictures shows the first 1,024."""
    pictures = torch.zeros(1, 16, 16, 3, dtype=torch.uint8).expand(50_000, -1, -1, -1)
    assert max(contact_sheet(pictures, scale=1).size) < 1000
    assert max(heat_map_sheet(pictures, torch.zeros(1, 2, 2).expand(50_000, -1, -1)).size) < 70_000
    rows = [[pictures[0].numpy()] * 2] * 50_000
    assert max(captioned_rows(rows, ["a", "b"], side=16).size) < 20_000


def test_rows_are_as_high_as_their_highest_picture() -> None:
    """Flat pictures leave no gap between rows, and each is where it belongs."""
    flat, square = np.full((24, 48, 3), 10, np.uint8), np.full((48, 48, 3), 200, np.uint8)
    sheet = np.asarray(captioned_rows([[flat, flat], [flat, square], [flat, flat]], ["a", "b"], side=48))
    rows = [14, 14 + 28, 14 + 28 + 52]  # below the captions; a margin of 4 after each
    assert sheet.shape == (rows[2] + 28 + 4, 2 * 52 + 4, 3)
    for top in rows:
        assert (sheet[top : top + 24, 4:52] == 10).all()
    assert all((sheet[top - 4 : top, 4:52] == 255).all() for top in rows[1:])
    assert (sheet[rows[1] : rows[1] + 48, 56:104] == 200).all() and (sheet[rows[1] + 24 : rows[2], 4:52] == 255).all()
