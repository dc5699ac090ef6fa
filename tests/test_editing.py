"""Tests of the tasks that start from pictures: known coefficients are preserved, and errors are reported."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dctransformer import DCTransformer
from dctransformer.app.uploads import EXAMPLES
from dctransformer.cli import main
from dctransformer.codec import Codec, DCTImage, order, read_jpeg, resize
from dctransformer.codec.grid import Grid
from dctransformer.codec.resize import enlarged_corners, shrink
from dctransformer.model.config import preset
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.tiles import tiles, waves
from dctransformer.sequence import conditions, masks
from dctransformer.tasks.edit import (
    Edited,
    Options,
    colorize,
    continue_,
    inpaint,
    requantise,
    save_edits,
    upscale,
)
from pictures import photo, pillow_jpeg, real_photographs
from test_texture import SMALL
from tiny_model import lively

QUALITY = 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Saved tiny untrained models of 32 × 32 pixels that generate dense pictures, by `texture_from`."""
    folders = {}
    for texture_from in (4, 2):
        torch.manual_seed(0)
        config = preset(
            "tiny", num_labels=2, label_names=("rose", "lily"), quality=QUALITY, size=32, chunk=64, overlap=0,
            conditions=conditions.NAMES, texture_from=texture_from, **SMALL,
        )  # fmt: skip
        network = lively(DCTransformer(config))
        if texture_from < 4:
            network.texture.use_bias.weight.data += 3
        folders[texture_from] = tmp_path_factory.mktemp("model")
        network.save_pretrained(folders[texture_from])
    return folders


@pytest.fixture(scope="module")
def model(models: dict[int, Path]) -> Path:
    """The model that decides everything triple by triple."""
    return models[4]


def pictures(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Real photographs if there are any, otherwise synthetic ones: uint8 ``[H, W, 3]``."""
    try:
        images = [Image.open(p).convert("RGB").resize(size[::-1]) for p in real_photographs(count)]
    except pytest.skip.Exception:
        return [photo(*size, seed=i) for i in range(count)]
    return [np.asarray(image) for image in images]


def mcus(dct: DCTImage) -> Tensor:
    """Coefficients of a picture of whole MCUs: int16 ``[N, 6, 64]``."""
    return dct.to_mcus()[0]


def test_pictures_of_any_kind_give_the_same(model: Path, tmp_path: Path) -> None:
    """A path, a file's bytes, an array and a Pillow image, in a list or alone; a grey Pillow image becomes RGB."""
    pixels = pictures(1, (32, 32))[0]
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    kinds = [path, str(path), path.read_bytes(), pixels, Image.open(path)]
    edits = colorize(model, kinds, Options())
    assert [edit.name for edit in edits] == ["picture", "picture-2", "picture-2-2", "picture-3", "picture-4"]
    for kind in (path, pixels, Image.fromarray(pixels)):
        edits += colorize(model, kind)
    for edit in edits[1:]:
        assert all(torch.equal(a.luma, b.luma) for a, b in zip(edit.results, edits[0].results, strict=True))
    assert len(colorize(model, Image.fromarray(pixels).convert("L"))) == 1
    with pytest.raises(ValueError, match="not Tensor"):
        colorize(model, [torch.from_numpy(pixels.copy())])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("size", "texture_from", "factor"),
    [*itertools.product([(32, 32), (64, 48)], [4], [2, 4, 8]), ((32, 32), 2, 2), ((32, 32), 2, 8)],
)
def test_upscale_keeps_the_corner_bit_for_bit(
    models: dict[int, Path], size: tuple[int, int], texture_from: int, factor: int
) -> None:
    """Upscaling preserves low frequencies over several tiles, and adds the others."""
    small = [p[: size[0] // factor, : size[1] // factor] for p in pictures(2, size)]
    edits = upscale(models[texture_from], small, factor, Options(num=2))
    corner = masks.low(8 // factor, Grid.of_size(*size))
    for edit, picture in zip(edits, small, strict=True):
        asked = enlarged_corners(torch.from_numpy(picture.copy())[None], factor, Codec(QUALITY))
        for result in edit.results:
            assert (result.height, result.width) == size
            assert torch.equal(mcus(result)[corner], mcus(asked)[corner])
            assert int(mcus(result)[~corner].count_nonzero()) > 10
        assert not edit.results[0].equal(edit.results[1])


FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}


def downsampled(large: np.ndarray, factor: int, by: resize.DownsampledBy) -> Tensor:
    """Return a picture that is shrunk by a filter of Pillow, or by its low frequencies: uint8 ``[1, h, w, 3]``."""
    if by == "dct":
        return shrink(torch.from_numpy(large.copy())[None], factor)
    side = large.shape[1] // factor, large.shape[0] // factor
    return torch.from_numpy(np.array(Image.fromarray(large).resize(side, FILTERS[by])))[None]


@pytest.mark.parametrize("by", ["lanczos", "box", "dct"])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("is_chroma", [False, True])
def test_a_wave_has_the_same_amplitude_in_the_small_and_the_large_picture(
    by: resize.DownsampledBy, factor: int, is_chroma: bool
) -> None:
    """What a filter and the averages of chroma attenuate is restored, for every frequency that is given."""
    codec = Codec(95)
    for k in range(1, 8 // factor):
        x = np.arange(256) + 0.5
        wave = 50 * np.cos(np.pi * k * x / (16 if is_chroma else 8))  # one basis function, but for its sign, per block
        rgb = 128 + wave[:, None] * ([0, -0.344136, 1.772] if is_chroma else [1, 1, 1])
        large = np.tile(rgb.round().astype(np.uint8), (64, 1, 1))
        true, low = codec.encode(large), enlarged_corners(downsampled(large, factor, by), factor, codec, by)
        channel = order.ZIGZAG.tolist().index(k)
        amplitude, expected = (
            float((dct.cb if is_chroma else dct.luma)[0, 1:-1, 2:-2, channel].abs().double().mean())
            for dct in (low, true)
        )
        # A wave of chroma is no basis function of the 8 × 8 pixels that are shrunk in the DCT domain.
        assert amplitude == pytest.approx(expected, rel=0.05 if by == "dct" else 0.02)


@pytest.mark.parametrize("by", ["lanczos", "box"])
def test_corners_are_nearer_to_the_large_picture_where_the_filter_is_known(by: resize.DownsampledBy) -> None:
    """On photographs, amplifying what the filter has attenuated makes the low frequencies more accurate."""
    codec, error = Codec(75), {}
    photographs = [np.asarray(Image.open(path)) for path in sorted(EXAMPLES.glob("photographs/*.jpg"))]
    assert len(photographs) == 2
    for name in ("dct", by):
        error[name] = 0.0
        for large in photographs:
            true, low = codec.encode(large.copy()), enlarged_corners(downsampled(large, 2, by), 2, codec, name)
            corner = masks.low(4, Grid.of_size(*large.shape[:2]))
            error[name] += float((mcus(true) - mcus(low))[corner].double().square().sum())
    assert error[by] < 0.97 * error["dct"], error


def test_an_unknown_filter_is_refused(model: Path) -> None:
    """The message lists the filters that are known."""
    with pytest.raises(ValueError, match="'bicubic' is not known; choose one of lanczos, box, dct"):
        upscale(model, pictures(1, (16, 16)), 2, downsampled_by="bicubic")  # pyright: ignore[reportArgumentType]


def test_shrinking_what_was_upscaled_gives_the_picture_back() -> None:
    """Shrinking an upscaled picture restores it within 0.5 dB of the codec's own error."""
    small = [shrink(torch.from_numpy(p.copy())[None], 2) for p in pictures(4, (64, 64))]
    edits = upscale("flowers64", [s[0].numpy() for s in small], 2, downsampled_by="dct")
    codec = Codec(DCTransformer.from_pretrained("flowers64").config.quality)

    def decibels(dct: DCTImage, expected: Tensor) -> float:
        error = shrink(Codec().decode(dct), 2).double() - expected.double()
        return float(10 * torch.log10(255**2 / error.square().mean()))

    upscaled = np.mean([decibels(e.results[0], s) for e, s in zip(edits, small, strict=True)])
    floor = np.mean([decibels(enlarged_corners(s, 2, codec, "dct"), s) for s in small])
    assert upscaled > floor - 0.5


@pytest.mark.parametrize(("size", "texture_from"), [((32, 32), 4), ((48, 64), 2), ((37, 51), 4)])
def test_colorize_keeps_luma(models: dict[int, Path], size: tuple[int, int], texture_from: int) -> None:
    """Luma coefficients are preserved at any size, and grey and colour input give the same result."""
    grey = [np.repeat(p[..., :1], 3, axis=2) for p in pictures(2, size)]
    for edit, picture in zip(colorize(models[texture_from], grey, Options(num=2)), grey, strict=True):
        expected = Codec(QUALITY).encode(picture[..., :1])
        for result in edit.results:
            assert torch.equal(result.luma, expected.luma)
            assert result.cb is not None and int(result.cb.count_nonzero()) > 0
            assert (result.height, result.width) == size
        assert edit.before.shape == (*size, 3) and int(np.ptp(edit.before, axis=2).max()) == 0


@pytest.mark.parametrize(("size", "texture_from"), [((32, 32), 4), ((64, 80), 2), ((61, 75), 4)])
def test_inpaint_keeps_what_is_outside(
    models: dict[int, Path], tmp_path: Path, size: tuple[int, int], texture_from: int
) -> None:
    """Blocks outside the mask's MCUs are preserved; a JPEG file keeps its coefficients and quality."""
    picture = pictures(1, size)[0]
    path = tmp_path / "picture.jpg"
    path.write_bytes(pillow_jpeg(picture, 88))
    mask = np.zeros((*size, 3), dtype=np.uint8)
    mask[18:30, 17:20] = 255
    for source, original in ((picture, Codec(QUALITY).encode(picture.copy())), (path, read_jpeg(path))):
        edit = inpaint(models[texture_from], [source], mask=mask, options=Options(num=2))[0]
        for k, result in enumerate(edit.results):
            for kept, changed, side in zip(original.components, result.components, (2, 1, 1), strict=True):
                outside = torch.ones(kept.shape[1:3], dtype=torch.bool)
                outside[side : 2 * side, side : 2 * side] = False
                assert torch.equal(changed[0][outside], kept[0][outside])
                assert not torch.equal(changed, kept) or side == 1
            written = save_edits([edit], tmp_path / "out")["files"][k]
            assert read_jpeg(written).equal(result)
            assert torch.equal(result.luma_table, original.luma_table)


PREFIXES = [{"bands": 1}, {"bands": 2}, {"bands": 3}, {"triples": 1}, {"triples": 37}]


@pytest.mark.parametrize(
    ("size", "texture_from", "how"),
    [*itertools.product([(32, 32), (64, 48)], [4], PREFIXES), *(((32, 32), 2, how) for how in PREFIXES[2::2])],
)
def test_continue_keeps_a_prefix(
    models: dict[int, Path], tmp_path: Path, size: tuple[int, int], texture_from: int, how: dict
) -> None:
    """The result starts with the kept triples, and kept bands get no more."""
    picture = pictures(1, size)[0]
    path = tmp_path / "picture.jpg"
    path.write_bytes(pillow_jpeg(picture, QUALITY))
    original = read_jpeg(path).to_triples()[0]
    band = torch.from_numpy(order.BAND_OF_CHANNEL)
    kept = original[: how["triples"]] if "triples" in how else original[band[original[:, 0].long()] < how["bands"]]
    for result in continue_(models[texture_from], [path], **how, options=Options(num=2))[0].results:
        generated = result.to_triples()[0]
        assert torch.equal(generated[: len(kept)], kept)
        assert len(generated) > len(kept)
        if "bands" in how:
            assert int((band[generated[:, 0].long()] < how["bands"]).sum()) == len(kept)


def test_alternatives_depend_on_seed_and_picture_alone(model: Path) -> None:
    """Alternatives do not depend on their number, the batches or other pictures."""
    first, second = pictures(2, (32, 32))
    batch = colorize(model, [first, second], Options(num=3))
    alone = colorize(model, [second], Options(num=2, sampling=SampleConfig(batch=1)))
    for one, other in zip(batch[1].results, alone[0].results, strict=False):
        assert one.equal(other)
    assert (
        not colorize(model, [second], Options(sampling=SampleConfig(seed=1)))[0].results[0].equal(alone[0].results[0])
    )


TILES = [
    (Grid(1, 1), Grid(4, 4)), (Grid(4, 4), Grid(4, 4)), (Grid(5, 9), Grid(4, 4)), (Grid(3, 7), Grid(1, 1)),
    (Grid(9, 12), Grid(4, 4)), (Grid(3, 8), Grid(3, 3)), (Grid(7, 10), Grid(2, 4)), (Grid(7, 3), Grid(3, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "size"), TILES)
def test_tiles_cover_every_mcu(grid: Grid, size: Grid) -> None:
    """Tiles have the model's size, or the picture's if it is smaller, and each covers something new."""
    seen = torch.zeros(grid.mcus, dtype=torch.bool)
    for tile, index in tiles(grid, size):
        assert (tile.rows, tile.cols) == (min(size.rows, grid.rows), min(size.cols, grid.cols))
        assert len(index.unique()) == tile.mcus
        row, col = index // grid.cols, index % grid.cols
        assert (row.max() - row.min() + 1, col.max() - col.min() + 1) == (tile.rows, tile.cols)
        assert not bool(seen[index].all())
        seen[index] = True
    assert bool(seen.all())


@pytest.mark.parametrize(("grid", "size"), TILES)
def test_waves_keep_the_order_where_tiles_overlap(grid: Grid, size: Grid) -> None:
    """Tiles of a wave do not touch, and waves of large pictures have several tiles."""
    seen: list[tuple[int, set[int]]] = []
    groups = waves(grid, size)
    for wave in groups:
        wave_mcus = torch.cat([mcus for _, _, mcus in wave])
        assert len(wave_mcus.unique()) == len(wave_mcus)
        for number, _, mcus in wave:
            covered = set(mcus.tolist())
            assert all(other < number for other, earlier in seen if covered & earlier)
            seen.append((number, covered))
    assert sorted(number for number, _ in seen) == list(range(sum(1 for _ in tiles(grid, size))))
    if grid == Grid(9, 12):
        assert max(map(len, groups)) > 1


def test_requantising_to_the_same_tables_changes_nothing() -> None:
    """Requantising to the same tables is lossless, and to coarser ones equals division by them."""
    dct = Codec(90).encode(photo(48, 48, 1))
    assert requantise(dct, Codec(90)) is dct
    coarse = requantise(dct, Codec(30))
    expected = (dct.luma.double() * dct.luma_table / coarse.luma_table).round()
    assert torch.equal(coarse.luma.double(), expected)
    assert torch.equal(coarse.luma_table, Codec(30).luma_table)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA"])
def test_other_kinds_of_pictures_are_handled(model: Path, tmp_path: Path, mode: str) -> None:
    """CMYK, greyscale, palettes, transparency, animations (first frame) and tiny pictures are handled."""
    ending = {"CMYK": "jpg", "L": "jpg", "P": "gif", "RGBA": "png"}[mode]
    image = Image.fromarray(photo(9, 12, 0)).convert(mode)
    path = tmp_path / f"picture.{ending}"
    image.save(path, **({"save_all": True, "append_images": [image.copy()]} if ending == "gif" else {}))
    for edit in (*colorize(model, [path]), *continue_(model, [path], bands=1)):
        assert edit.pixels()[0].shape == (9, 12, 3)


def test_names_of_results_never_clash(model: Path, tmp_path: Path) -> None:
    """Files with the same name in different folders give distinct results."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.fromarray(photo(16, 16, ord(folder))).save(tmp_path / folder / "x.png")
    files = save_edits(colorize(model, [tmp_path / f / "x.png" for f in "ab"]), tmp_path / "out")["files"]
    assert [Path(f).name for f in files] == ["x-0.jpg", "x-2-0.jpg"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["inpaint", "--mask", "small.png"], "the mask is 16×16, but picture is 48×48"),
        (["inpaint", "--mask", "black.png"], "masks nothing"),
        (["inpaint", "--mask", "white.png"], "nothing would stay"),
        (["inpaint", "--box", "40,0,16,16"], "does not lie in picture"),
        (["inpaint", "--box", "1,2,3"], "x,y,width,height"),
        (["inpaint"], "either a mask or a box"),
        (["inpaint", "--box", "0,0,16,16", "--mask", "white.png"], "either a mask or a box"),
        (["inpaint", "--mask", "nowhere.png"], "no file nowhere.png"),
        (["upscale", "--factor", "3"], "choose one of 2, 4, 8"),
        (["continue"], "either a number of bands or of triples"),
        (["continue", "--bands", "4"], "from 1 to 3"),
        (["continue", "--from-triples", "0"], "at least 1"),
        (["continue", "--from-triples", "99999"], "keep at most so many"),
        (["colorize", "--label", "tulip"], "no label 'tulip'"),
        (["colorize", "--num", "0"], "num 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    command: list,
    message: str,
) -> None:
    """Impossible requests end in exit status 2 with one sentence, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo(48, 48, 0)).save("picture.png")
    for name, side, level in (("small", 16, 255), ("black", 48, 0), ("white", 48, 255)):
        Image.new("L", (side, side), level).save(f"{name}.png")
    with pytest.raises(SystemExit) as stop:
        main([command[0], str(model), "picture.png", "--out", "out", *command[1:]])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith("dctransformer: ")
    assert not Path("out").exists()


def test_a_task_that_a_model_was_not_trained_for_is_refused(model: Path, tmp_path: Path) -> None:
    """The refusal lists the tasks that the model supports."""
    network = DCTransformer.from_pretrained(model)
    network.config = dataclasses.replace(network.config, conditions=("none", "low4"))
    network.save_pretrained(tmp_path)
    small = [photo(8, 8, 0)]
    assert len(upscale(tmp_path, small, 2)) == 1
    for refused in (
        lambda: upscale(tmp_path, small, 4),
        lambda: colorize(tmp_path, small),
        lambda: inpaint(tmp_path, [photo(32, 32, 0)], box=(0, 0, 16, 16)),
    ):
        with pytest.raises(ValueError, match="generate, continue, upscale by 2"):
            refused()


def test_commands_write_files_and_print_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Every task has the same options and the same JSON output."""
    source = tmp_path / "picture.png"
    Image.fromarray(photo(32, 32, 0)).save(source)
    for command in (["upscale"], ["colorize"], ["inpaint", "--box", "0,0,9,9"], ["continue", "--bands", "1"]):
        out = tmp_path / command[0]
        common = ["--out", str(out), "--num", "2", "--label", "rose", "--guidance", "1.5", "--top-p", "0.9", "--json"]
        main([command[0], str(model), str(source), *command[1:], *common])
        answer = json.loads(capsys.readouterr().out)
        assert answer["files"] == [str(out / f"picture-{k}.jpg") for k in range(2)]
        for path in answer["files"]:
            assert read_jpeg(path).width == (64 if command[0] == "upscale" else 32)
        assert Image.open(answer["sheet"]).width > 160 and all(Path(p).exists() for p in answer["pngs"])
        assert {p.name for p in out.iterdir()} == {
            "pictures.json", "sheet.png", *(f"picture-{k}.{ending}" for k in range(2) for ending in ("jpg", "png"))
        }  # fmt: skip


def test_edited_pixels_are_those_of_the_file(model: Path, tmp_path: Path) -> None:
    """The PNG and JPEG files of a result have the same pixels."""
    edit: Edited = colorize(model, [photo(20, 33, 0)])[0]
    written = save_edits([edit], tmp_path)
    png, jpeg = (np.asarray(Image.open(written[kind][0]).convert("RGB")) for kind in ("pngs", "files"))
    assert np.array_equal(png, edit.pixels()[0]) and np.array_equal(png, jpeg)
