"""Tests of compressed files: lossless, of the size given by the likelihood, or refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fuzz_compress
from dctransformer import DCTransformer, read_jpeg
from dctransformer.cli import main
from dctransformer.codec.grid import Grid
from dctransformer.data.coefficients import _distinct, _name
from dctransformer.data.images import prepare_image
from dctransformer.data.shapes import Shape
from dctransformer.model.config import preset
from dctransformer.model.legality import NEVER
from dctransformer.model.ops import next_channel_log_p
from dctransformer.sampling import bits
from dctransformer.sampling.bits import DamagedBits, SymbolCoder
from dctransformer.sampling.coding import CodingTask, PictureCoder
from dctransformer.sampling.decoder_state import Decoding
from dctransformer.sampling.likelihood import code_lengths
from dctransformer.sampling.texture import next_channel
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.texture import channels_in_use
from dctransformer.tasks import compress as compress_module
from dctransformer.tasks.compress import compress, decompress
from dctransformer.tasks.dct_file import Header, fingerprint
from dctransformer.tasks.likelihood import likelihood
from pictures import photo, pillow_jpeg
from test_model_distribution import triples_of
from test_texture import SMALL, random_picture
from test_texture import make_model as make_texture_model
from tiny_model import lively

pytest.importorskip("constriction", reason="constriction is not installed (pip install '.[compress]')")

GRID = Grid(2, 3)
"""32 × 48 pixels: not square, so that rows and columns can't be mixed up unnoticed."""

QUALITY = 12
"""Of the model of the command's tests, low so that its pictures have few triples."""


def make_model(texture_from: int, overlap: int = 0) -> DCTransformer:
    """A tiny model with non-zero weights; ``texture_from`` 4 is without texture."""
    settings = {"quality": 75, "chunk": 16, "overlap": overlap}
    if texture_from < 4:
        return make_texture_model(texture_from=texture_from, **settings)
    torch.manual_seed(0)
    return lively(DCTransformer(preset("tiny", num_labels=3, **settings)).eval())


def bytes_of(model: DCTransformer, pictures: list[Tensor], labels: list[int], grid: Grid) -> list[float]:
    """Code length of a picture in bytes, by its likelihood."""
    sequences = [Sequence.from_triples(triples_of(p, grid), grid, k) for p, k in zip(pictures, labels, strict=True)]
    return (code_lengths(model, sequences).bits.sum((1, 2)) / 8).tolist()


# The coder ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("texture_from", "overlap"), [(4, 0), (2, 0), (1, 0), (2, 4)])
def test_pictures_are_restored_alone_and_in_batches(texture_from: int, overlap: int) -> None:
    """Pictures are restored bit for bit in any batch, from files of the size given by the likelihood."""
    model = make_model(texture_from, overlap)
    coder = PictureCoder(model)
    count = coder.batch(2, GRID)
    assert count == (1 if overlap else 2)
    pictures = [random_picture(i, density) for i, density in enumerate((0.02, 0.015)[:count])]
    labels = [0, 3][:count]
    coded = coder.run([CodingTask(k, p) for k, p in zip(labels, pictures, strict=True)], GRID)
    data = [c.data for c in coded if c is not None]
    for size, exact in zip(map(len, data), bytes_of(model, pictures, labels, GRID), strict=True):
        # No symbol costs more than 24 bits, so that an untrained model even gains.
        assert 0.8 * exact - 1 < size < 1.001 * exact + 1.5
    for rows in ([0, 1], [1]):
        chosen = [row for row in rows if row < count]
        tasks = [CodingTask(labels[row], data=data[row]) if row in chosen else None for row in range(count)]
        for row, decoded in enumerate(coder.run(tasks, GRID)):
            assert (decoded is not None) == (row in chosen)
            assert decoded is None or torch.equal(decoded.coefficients, pictures[row])


def test_other_rows_change_no_bit_of_a_row() -> None:
    """The bits of a picture do not depend on other rows of the batch or on idle rows."""
    coder = PictureCoder(make_model(2))
    first, *others = (CodingTask(i, random_picture(i, 0.02, Grid(1, 2))) for i in range(3))

    def bits_with(*rest: CodingTask | None) -> bytes:
        coded = coder.run([first, *rest], Grid(1, 2))[0]
        assert coded is not None
        return coded.data

    together = bits_with(*others)
    assert together == bits_with(None, None) == bits_with(*reversed(others))


def test_channels_that_a_model_rules_out_can_be_coded() -> None:
    """However low its score, a channel with open places is possible: it costs bits, and is restored."""
    model, grid, picture = make_model(2), Grid(1, 1), random_picture(2, 0.01, Grid(1, 1), top=3)
    with torch.no_grad():
        model.texture.use_bias.weight.fill_(-200.0)
    sequence = Sequence.from_triples(triples_of(picture, grid), grid, 0)
    used = len(channels_in_use(sequence, model.config.texture_rank))
    assert used and float(code_lengths(model, [sequence]).bits[0, :, 0].sum()) > 50 / math.log(2) * used
    coder = PictureCoder(model)
    (coded,) = coder.run([CodingTask(0, picture)], grid)
    assert coded is not None
    (decoded,) = coder.run([CodingTask(0, data=coded.data)], grid)
    assert decoded is not None and torch.equal(decoded.coefficients, picture)


def test_bits_are_few_and_damage_ends_early() -> None:
    """Overhead is at most a byte; nothing can be appended; zeros do not decode forever."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        steps, coder, information = [], SymbolCoder(), 0.0
        for _ in range(draw.integers(0, 20)):
            p = draw.dirichlet(np.full(draw.integers(1, 40), 0.3), size=3) + 1e-6
            p /= p.sum(-1, keepdims=True)
            symbols, flag = draw.integers(0, p.shape[1], 3), draw.random(2) < 0.3
            coder.symbol(np.log(p[0]), int(symbols[0]))
            coder.symbols(np.log(p[1:]), symbols[1:])
            coder.flags(np.array([0.3, 0.3]), flag)
            information -= np.log2(p[np.arange(3), symbols]).sum() + np.log2(np.where(flag, 0.3, 0.7)).sum()
            steps.append((p, symbols, flag))
        data = coder.finish()
        assert len(data) <= information * 1.001 / 8 + 1.1
        for end in (b"", b"\0", b"\1"):
            decoder = SymbolCoder(data + end)
            for p, symbols, flag in steps:
                assert decoder.symbol(np.log(p[0])) == symbols[0]
                assert (decoder.symbols(np.log(p[1:])) == symbols[1:]).all()
                assert (decoder.flags(np.array([0.3, 0.3])) == flag).all()
            if end:
                with pytest.raises(DamagedBits):
                    decoder.finish()
            else:
                assert decoder.finish() == data
    endless = SymbolCoder(b"\x12")
    with pytest.raises(DamagedBits):
        for _ in range(200):
            endless.symbol(np.zeros(4))


def test_the_next_channel_is_coded_by_the_distribution_it_is_drawn_from() -> None:
    """Frequencies match probabilities that sum to 1; closed and earlier channels are impossible."""
    rates = torch.tensor([[0.3, 0.0, 0.2, 5.0, 0.0, 0.1]])
    count = 5_000
    before = torch.zeros(count, dtype=torch.int64)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.bincount(next_channel(rates.expand(count, -1), before, uniform), minlength=7) / count
    log_p = next_channel_log_p(rates, torch.tensor([0]))[0]
    assert (log_p <= NEVER).tolist() == [True, True, False, False, True, False, False]
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(drawn.double(), log_p.exp(), atol=0.02, rtol=0)
    enormous = next_channel_log_p(torch.full((1, 3), 1e30), torch.tensor([-1]))[0]
    assert bool((enormous > NEVER / 2).all())


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with texture and two classes, for pictures 32 pixels wide and 16 high."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    settings = {
        "num_labels": 2, "label_names": ("rose", "lily"), "quality": QUALITY, "size": 32, "shape": (16, 32),
        "chunk": 16, "overlap": 0, "texture_from": 2, **SMALL,
    }  # fmt: skip
    network = lively(DCTransformer(preset("tiny", **settings)))
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes: PNG files, a JPEG file with the model's tables but not its shape, one with others."""
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("rose/a.png", "rose/b.v2.png", "Lily/a.png")):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(40, 50, i)).save(path)
    (folder / "Lily" / "tall.jpg").write_bytes(pillow_jpeg(photo(32, 16), QUALITY, subsampling="4:2:0"))
    (folder / "Lily" / "other.jpg").write_bytes(pillow_jpeg(photo(32, 16), 50, subsampling="4:2:0"))
    return folder


@pytest.fixture(scope="module")
def packed(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compressed files of these pictures."""
    out = tmp_path_factory.mktemp("packed")
    compress(model, photos, out, verify=False)
    return out


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """Run a command, and return the JSON that it prints."""
    main([str(a) for a in arguments] + ["--json"])
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused, and return its error sentence."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    _, _, sentence = error.rpartition("dctransformer: ")  # after the progress
    assert sentence.count("\n") == 1
    return sentence


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_compressed_files_restore_the_pictures(
    model: Path, photos: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files and bytes are listed, the model is found by name, and JPEG files with its tables are lossless."""
    facts = run(capsys, "compress", model, photos, "--out", packed)  # the output folder exists already
    assert {Path(f).relative_to(packed).as_posix() for f in facts["files"]} == {
        "rose/a.dct", "rose/b.v2.dct", "Lily/a.dct", "Lily/tall.dct", "Lily/other.dct",
    }  # fmt: skip
    assert facts["bytes"] == sum(Path(f).stat().st_size for f in facts["files"]) and facts["skipped"] == 0
    output = run(capsys, "decompress", packed, "--out", tmp_path / "back")
    assert len(output["files"]) == 5
    tall, original = read_jpeg(tmp_path / "back/Lily/tall.jpg"), read_jpeg(photos / "Lily/tall.jpg")
    assert (tall.height, tall.width) == (32, 16)
    for part, other in zip((*tall.components, *tall.tables), (*original.components, *original.tables), strict=True):
        assert torch.equal(part, other)
    other = read_jpeg(tmp_path / "back/Lily/other.jpg")
    assert (other.height, other.width) == (16, 32)
    (tmp_path / "prepared.jpg").write_bytes(prepare_image(photos / "rose/b.v2.png", Shape.of((32, 16)), QUALITY))
    prepared = read_jpeg(tmp_path / "prepared.jpg")
    assert torch.equal(read_jpeg(tmp_path / "back/rose/b.v2.jpg").luma, prepared.luma)


def test_sizes_are_those_of_likelihood(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File sizes equal the likelihood of the same pictures, with and without labels, plus the names."""
    folder = tmp_path / "same"
    for name in ("rose/a.png", "rose/b.v2.png", "Lily/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((photos / name).read_bytes())
    coded = []
    for option, labels in (("--labels", 1), ("--no-labels", 0)):
        facts = run(capsys, "compress", model, folder, "--out", tmp_path / option, option, "--no-verify")
        exact = 3 * likelihood(model, folder, use_labels=bool(labels), device="cpu")["bytes_per_image"]
        name = 3 * (1 + len(str(model)))
        assert 0.9 * exact < facts["bytes"] - name < 1.01 * exact + 3 * 8 + 3 * 2
        header, data = Header.parse(Path(facts["files"][0]).read_bytes())
        assert header.label == (1 if labels else None) and header.name == str(model) and header.batch == 3
        coded.append(data)
    assert coded[0] != coded[1]


def test_shipped_weights_are_found_by_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Files of shipped weights have a header of 8 bytes without the model's name."""
    shipped = tmp_path / "shipped"
    (shipped / "tiny").mkdir(parents=True)
    for path in model.iterdir():
        (shipped / "tiny" / path.name).write_bytes(path.read_bytes())
    for module in ("dctransformer.hub.pretrained", "dctransformer.tasks.compress"):
        monkeypatch.setattr(f"{module}.SHIPPED", shipped)
    Image.fromarray(photo(16, 32)).save(tmp_path / "one.png")
    facts = run(capsys, "compress", "tiny", tmp_path / "one.png", "--out", tmp_path / "out")
    header, data = Header.parse(Path(facts["files"][0]).read_bytes())
    assert header.name == "" and header.grid is None and facts["bytes"] == len(data) + 8
    assert Path(run(capsys, "decompress", facts["files"][0], "--out", tmp_path / "back")["files"][0]).name == "one.jpg"


def test_compress_resumes_and_replaces_missing_files(
    model: Path, photos: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command continues after an interruption or a lost file, and leaves no partial files."""
    out = tmp_path / "out"
    written = compress_module._Compression._write

    def stop_after_one(self: object, group: list) -> None:
        written(self, group[:1])  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_module._Compression, "_write", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        compress(model, photos, out, verify=False)
    assert len(contents(out)) == 1
    monkeypatch.setattr(compress_module._Compression, "_write", written)
    compress(model, photos, out, verify=False)
    files = contents(out)
    assert files.keys() == contents(packed).keys()
    (out / "Lily/tall.dct").write_bytes(files["rose/a.dct"])
    (out / "rose/a.dct").unlink()
    coded: list[int] = []
    coding = PictureCoder.run

    def count(self: PictureCoder, tasks: list, grid: Grid) -> list:
        coded.append(len(tasks))
        return coding(self, tasks, grid)

    monkeypatch.setattr(PictureCoder, "run", count)
    compress(model, photos, out, verify=False)
    assert coded == [1, 1]
    decompress(out, tmp_path / "back")
    coded.clear()
    (tmp_path / "back/rose/a.jpg").unlink()
    (tmp_path / "back/Lily/tall.jpg").write_bytes((tmp_path / "back/Lily/other.jpg").read_bytes())
    decompress(out, tmp_path / "back")
    assert coded == [1, 1]


def test_refusals(
    model: Path, photos: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Invalid input is refused with one sentence that says what to do."""
    out = ("--out", tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no compressed pictures" in refusal(capsys, "decompress", empty, *out)
    assert "batch" in refusal(capsys, "compress", model, photos, *out, "--batch", "0")
    large = tmp_path / "large.jpg"
    large.write_bytes(pillow_jpeg(photo(16, 1040), QUALITY, subsampling="4:2:0"))
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="1024 pixels"):
        compress(model, large, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    torch.manual_seed(1)
    config = DCTransformer.from_pretrained(model).config
    DCTransformer(config).save_pretrained(elsewhere)
    assert "other weights" in refusal(capsys, "decompress", packed, *out, "--model", elsewhere)
    network = DCTransformer.from_pretrained(elsewhere).eval()
    compress(network, photos / "rose/a.png", tmp_path / "nameless", verify=False)
    assert "--model" in refusal(capsys, "decompress", tmp_path / "nameless", *out)
    decompress(tmp_path / "nameless", tmp_path / "out", model=elsewhere)
    hub = tmp_path / "hub.dct"
    hub.write_bytes(Header(fingerprint(network)[:2], b"abcd", 1, 0, "hf:someone/nothing").pack())
    assert "--model" in refusal(capsys, "decompress", hub, *out)
    monkeypatch.setattr(bits.importlib.util, "find_spec", lambda name: None)
    for command in (("compress", model, photos), ("decompress", packed)):
        assert "pip install 'dctransformer[compress]'" in refusal(capsys, *command, *out)


def test_irreproducible_logits_are_reported(
    model: Path, photos: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Logits that are not reproducible give an error, never a wrong picture or an undecodable file."""
    logits = Decoding.position
    draw = torch.Generator().manual_seed(0)

    def other(self: Decoding, rank: Tensor) -> Tensor:
        right = logits(self, rank)
        return right + torch.where(right > NEVER / 2, 1e-2 * torch.randn(right.shape, generator=draw), 0.0)

    monkeypatch.setattr(Decoding, "position", other)
    assert "this machine" in refusal(capsys, "decompress", packed, "--out", tmp_path / "back")
    assert not contents(tmp_path / "back")
    assert "this machine" in refusal(capsys, "compress", model, photos, "--out", tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_mutated_files_never_give_a_wrong_picture(tmp_path: Path) -> None:
    """Mutated files are refused or give the original picture; an intact file among them is restored."""
    outcome = fuzz_compress.fuzz(40, 0, tmp_path, pictures=8)
    assert outcome["refused"] > 30 and outcome["refused"] + outcome["same picture"] == 40


def test_names_stay_inside_the_folder() -> None:
    """Keys of archives and tables become distinct relative paths."""
    assert _name("../../a/b.JPG") == "a/b" and _name("/x.png") == "x" and _name("t.parquet#7") == "t.parquet#7"
    assert _name("..") == "picture" and _name("a/photo.v2.jpeg") == "a/photo.v2"
    assert _distinct(["a", "A", "a-2", "b"]) == ["a", "A-2", "a-2-2", "b"]
