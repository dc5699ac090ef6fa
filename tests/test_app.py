"""Tests of the web app without a browser: uploads, handlers and refusals."""

from __future__ import annotations

import base64
import io
import os
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dctransformer import DCTransformer
from dctransformer.app import server
from dctransformer.app.handlers import Studio, places, read_squares
from dctransformer.app.intake import log_error
from dctransformer.app.limits import Limits
from dctransformer.app.settings import ANY, Settings
from dctransformer.app.uploads import examples, fitting_examples, read_for_inspection, read_upload
from dctransformer.cli import main
from dctransformer.codec import Codec, DCTImage, read_jpeg_bytes, write_jpeg_bytes
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import Engine
from dctransformer.sampling.likelihood import code_lengths, triple_bits
from dctransformer.sequence.chunks import Sequence
from dctransformer.tasks.edit import Options, colorize, continue_, inpaint, upscale
from dctransformer.tasks.generate import generate
from pictures import photo, pillow_jpeg
from tiny_model import save_tiny_model

QUICK = Settings(seed=3, min_p=0.0)
SHAPE = ((32, 32), 30)
"""Shape and quality of the tiny model's pictures."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """The `Studio` of a tiny model."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    return Studio(DCTransformer.from_pretrained(folder), "tiny", Limits(max_side=64))


def downloads(html: str) -> list[DCTImage]:
    """The JPEG files that a result offers for download."""
    links = re.findall(r'<a [^>]*href="data:image/jpeg;base64,([^"]+)" download="[^"]+\.jpg"', html)
    return [read_jpeg_bytes(base64.b64decode(link)) for link in links]


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


# Work -----------------------------------------------------------------------------------------------------------------


def test_generate_shows_pictures_on_their_way_and_gives_the_files_of_the_command(studio: Studio) -> None:
    """Intermediate stages come with heat maps; the files equal those of `sample` with the same settings."""
    settings = Settings(seed=3, num=2, min_p=0.1, temperature=0.9)
    *stages, last = studio.generate(settings)
    assert len(stages) > 2 and all("<progress" in stage for stage in stages)
    assert stages[-1].count("chosen places") == 2 * 2  # two pictures: captions and descriptions
    samples, names = generate(
        studio.model, 2, sampling=SampleConfig(seed=3, min_p=0.1, temperature=0.9, texture_temperature=1)
    )
    for file, expected in zip(downloads(last), samples.dct(), strict=True):
        assert file.equal(expected)
    assert all(name in last for name in names) and "seed 3" in last
    assert (
        "dctransformer sample tiny --out samples --num 2 --seed 3 --temperature 0.9 --texture-temperature 1 --min-p 0.1"
        in last
    )


def test_places_of_an_unfinished_picture_are_those_of_its_triples(studio: Studio) -> None:
    """The heat map of an unfinished picture equals the engine's count of triples per place."""
    samples, _ = generate(studio.model, 2, sampling=SampleConfig(seed=5))
    for mcus, expected in zip(samples.mcus, samples.places(), strict=True):
        assert torch.equal(places(mcus, samples.grid), expected)


@pytest.mark.parametrize("chunking", [{"chunk": 32, "overlap": 0}, {"chunk": 48, "overlap": 20}])
def test_bits_of_triples_add_up_to_the_code_length(tmp_path: Path, chunking: dict) -> None:
    """Bits are in the order of the triples, and add up to the code length including the stop."""
    model = DCTransformer.from_pretrained(save_tiny_model(tmp_path, **chunking))
    samples, _ = generate(model, 1)
    sequence = Sequence.from_triples(samples.triples[0], samples.grid, 1)
    bits = triple_bits(model, sequence, batch=3)
    assert bits.shape == (len(sequence.ranks), 3)
    whole = code_lengths(model, [sequence]).bits[0]
    torch.testing.assert_close(bits.sum(0), whole.sum(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(bits[-1].sum(), whole[-1].sum(), rtol=1e-5, atol=1e-4)


def test_edits_give_what_their_tasks_give(studio: Studio) -> None:
    """Results equal those of the task functions, and use a JPEG file's own coefficients if possible."""
    data = pillow_jpeg(photo(32, 32, 0), 50)
    upload = read_upload(data, studio.limits)
    assert upload.source == data
    white = np.zeros((32, 32, 3), np.uint8)
    white[3:9, 3:9] = 255
    options = Options(2, "rose", SampleConfig(seed=3))
    settings = Settings("rose", 3, 2, min_p=0.0)
    small = read_upload(png(photo(16, 16, 0)), studio.limits)
    for run, expected in (
        (studio.upscale(small, 2, settings), upscale(studio.model, [small.pixels], 2, options)),
        (studio.colorize(upload, settings), colorize(studio.model, [data], options)),
        (studio.inpaint(upload, "0", settings), inpaint(studio.model, [data], white, options=options)),
        (studio.continue_(upload, 2, settings), continue_(studio.model, [data], bands=2, options=options)),
    ):
        *stages, last = run
        assert stages and "seed 3" in last
        for file, result in zip(downloads(last), expected[0].results, strict=True):
            assert file.equal(result)


def test_inspect_reports_triples_bits_and_surprises(studio: Studio) -> None:
    """Inspect reports on the file itself and on the version that the model reads."""
    data = pillow_jpeg(photo(48, 80, 0), 70)
    dct = read_jpeg_bytes(data)
    picture = read_for_inspection(data, studio.limits, *SHAPE)
    assert not picture.own and read_jpeg_bytes(picture.jpeg).height == studio.config.size
    last = list(studio.inspect(picture, "rose"))[-1]
    assert f"{len(dct.to_triples()[0]):,} coefficients" in last and "it is shown this one" in last
    assert last.count("<table") == 3 and "heat-map of bits" in last

    samples, _ = generate(studio.model, 1)
    reading = read_for_inspection(write_jpeg_bytes(samples.dct()), studio.limits, *SHAPE)
    assert reading.own
    last = list(studio.inspect(reading))[-1]
    sequence = Sequence.from_triples(samples.triples[0], samples.grid, studio.config.null_label)
    total = float(code_lengths(studio.model, [sequence]).bits.sum()) / 8
    assert f"needs {total:.0f} bytes" in last and "it is shown this one" not in last


def test_two_users_at_once_get_what_they_get_alone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs with different settings that share batches give the same results as alone."""
    batches: list[int] = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, rows, *more: (batches.append(len(rows)), run(self, rows, *more))[1])
    settings = [Settings(seed=1), Settings("rose", 2, temperature=0.5, min_p=0.1, guidance=2.0)]
    alone = [list(studio.generate(s))[-1] for s in settings]
    assert set(batches) == {1} and alone[0] != alone[1]
    batches.clear()
    with ThreadPoolExecutor(2) as users:
        with studio.pool.paused():
            together = [users.submit(lambda s=s: list(studio.generate(s))[-1]) for s in settings]
            while len(studio.pool._waiting) < 2:
                time.sleep(0.01)
        assert [one.result() for one in together] == alone
    assert batches[0] == 2


def test_cancelled_jobs_stop_at_the_next_chunk(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled job stops at the next chunk, and the next user's job starts."""
    chunks = []
    run = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, *given: (chunks.append(1), run(self, *given))[1])
    assert list(studio.generate(QUICK)) and len(chunks) > 2
    whole = len(chunks)
    running = studio.generate(QUICK)
    next(running), next(running)
    running.close()
    while studio.pool._job_of:
        time.sleep(0.01)
    assert len(chunks) - whole < whole


# What can't be done ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(num=0), "0 pictures at a time"),
        (Settings(num=5), "from 1 to 4"),
        (Settings(num=None), "must be a whole number"),
        (Settings(num=1.5), "must be a whole number"),
        (Settings(seed=None), "the seed must be a whole number"),
        (Settings(seed=-1), "seed -1 must be"),
        (Settings(seed=1e300), "must be from 0 to"),
        (Settings(seed=float("nan")), "must be a whole number"),
        (Settings(temperature=-1.0), "temperature -1"),
        (Settings(temperature=float("nan")), "must be a finite number of at least 0"),
        (Settings(min_p=-0.1), "min-p -0.1"),
        (Settings(guidance=-0.5), "guidance -0.5"),
        (Settings(label="tulip"), "no label 'tulip'"),
    ],
)
def test_impossible_settings_are_one_sentence(studio: Studio, settings: Settings, message: str) -> None:
    """Invalid settings of every task are refused before any work."""
    upload = read_upload(png(photo(16, 16)), studio.limits)
    for run in (studio.generate(settings), studio.colorize(upload, settings), studio.upscale(upload, 2, settings)):
        with pytest.raises(ValueError, match=message):
            list(run)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["", None, 1, 1, 1, 1], "the seed must be a number"),
        (["", 1, "2", 1, 1, 1], "the number of pictures must be a number"),
        (["", 1, 1, True, 1, 1], "the temperature must be a number"),
        (["", 1, 1, 1, 10**400, 1], "the min-p must be a number"),
        (["", 1, 1, 1, 1, float("inf")], "the guidance must be a number"),
    ],
)
def test_forms_may_hold_anything(values: list, message: str) -> None:
    """Invalid values in forms are refused in one sentence; an unknown class is refused later."""
    with pytest.raises(ValueError, match=message):
        Settings.of(*values)
    assert Settings.of(None, 1, 1, 1, 1, 1).label == ANY and Settings.of(5, 1, 1, 1, 1, 1).label == "5"


def test_missing_pictures_and_impossible_numbers(studio: Studio) -> None:
    """Invalid bands and factors and a missing picture are refused."""
    upload = read_upload(png(photo(32, 32)), studio.limits)
    for run, message in (
        (studio.upscale(None, 2, QUICK), "choose a picture first"),
        (studio.inspect(None), "choose a picture first"),
        (studio.upscale(upload, 3, QUICK), "choose one of 2, 4, 8"),
        (studio.upscale(upload, 0, QUICK), "choose one of 2, 4, 8"),
        (studio.continue_(upload, 4, QUICK), "from 1 to 3"),
        (studio.inpaint(upload, "0,1,2,3", QUICK), "nothing would stay"),
    ):
        with pytest.raises(ValueError, match=message):
            list(run)


@pytest.mark.parametrize("squares", [None, ""])
def test_nothing_painted_is_one_sentence(squares: str | None) -> None:
    """An empty mask is refused with a sentence that says what to do."""
    with pytest.raises(ValueError, match="brush over what is to be replaced first: nothing is painted yet"):
        read_squares(squares, (32, 48))


@pytest.mark.parametrize(
    "squares", ["6", "-1", "0,6", "1.5", "x", ",", "0,", "data:,", "0 1", "²", "0," * 10**6, "9" * 10**6]
)
def test_invalid_masks_are_refused(squares: str) -> None:
    """Invalid masks, which the page's script would not send, are refused."""
    with pytest.raises(ValueError, match="does not fit the picture; paint it again"):
        read_squares(squares, (32, 48))


def test_squares_become_a_mask() -> None:
    """Squares are converted to a mask row by row, cropped at the edge of the picture."""
    mask = read_squares("1,5", (30, 44))
    white = np.zeros((30, 44, 3), np.uint8)
    white[:16, 16:32] = white[16:, 32:] = 255
    assert mask.dtype == np.uint8 and np.array_equal(mask, white)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header declares a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body) for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 99)), (b"IEND", b""))
    )


BAD_UPLOADS = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no picture", "not a picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "truncated": (pillow_jpeg(photo(64, 64), 90)[:900], "can't be read"),
    "corrupt": (png(photo(32, 32))[:60] + b"x" * 900, "can't be read"),
    "bomb": (png_claiming(60_000, 60_000), "far too many pixels"),
    "large": (png_claiming(10_000, 9_000), "10000 × 9000 pixels"),
    "heavy": (pillow_jpeg(photo(16, 16), 90) + b"\0" * 2_000_000, "2.0 MB"),
}


@pytest.mark.parametrize("name", list(BAD_UPLOADS))
def test_bad_uploads_are_one_sentence(studio: Studio, name: str) -> None:
    """Bad uploads are refused in one sentence in every tab."""
    data, message = BAD_UPLOADS[name]
    limits = Limits(max_megabytes=1)
    with pytest.raises(ValueError, match=message):
        read_upload(data, limits)
    with pytest.raises(ValueError, match=message):
        read_for_inspection(data, limits, *SHAPE)


def test_uploads_are_made_to_fit(studio: Studio) -> None:
    """Large pictures are shrunk, animations reduced to a frame and rotated pictures turned; the page reports it."""
    limits = Limits(max_side=64)
    large = read_upload(pillow_jpeg(photo(100, 200), 80), limits)
    assert large.pixels.shape == (32, 64, 3) and "shrunk to 64 × 32" in large.notes[0]
    frames = [Image.fromarray(photo(20, 30, i)) for i in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    for read in (
        lambda d: read_upload(d, limits),
        lambda d: read_for_inspection(d, limits, *SHAPE),
    ):
        assert "animation" in read(out.getvalue()).notes[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_upload(pillow_jpeg(photo(20, 30), 80, exif=exif), limits)
    assert upright.pixels.shape == (30, 20, 3) and isinstance(upright.source, np.ndarray)
    out = io.BytesIO()
    Image.fromarray(photo(20, 30)).convert("CMYK").save(out, "JPEG")
    assert "can't be shown" in read_for_inspection(out.getvalue(), limits, *SHAPE).notes[0]


def test_results_stay_within_the_limit(studio: Studio) -> None:
    """A picture whose result would be too large is shrunk first, and the page reports it."""
    upload = read_upload(png(photo(40, 64)), studio.limits)
    last = list(studio.upscale(upload, 4, QUICK))[-1]
    assert "was shrunk to 16 × 10" in last
    assert (downloads(last)[0].width, downloads(last)[0].height) == (64, 40)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_megabytes": 0},
        {"max_megapixels": 1000},
        {"max_side": 8},
        {"max_num": 0},
        {"queue": 0},
        {"batch": 0},
        {"batch": 99},
    ],
)
def test_impossible_limits(wrong: dict) -> None:
    """Invalid limits are refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", "-")):
        Limits(**wrong)


def test_a_model_that_only_generates(tmp_path: Path) -> None:
    """A model without other tasks and classes refuses them with a list of what it can do."""
    folder = save_tiny_model(tmp_path, conditions=("none",), num_labels=0, label_names=())
    studio = Studio(DCTransformer.from_pretrained(folder), "plain")
    assert studio.missing("none") is None and studio.factors() == [] and studio.labels() == []
    assert len(downloads(list(studio.generate(QUICK))[-1])) == 1
    upload = read_upload(png(photo(32, 32)), studio.limits)
    for condition, run in (
        ("low4", studio.upscale(upload, 2, QUICK)),
        ("luma", studio.colorize(upload, QUICK)),
        ("region", studio.inpaint(upload, "0", QUICK)),
    ):
        assert "it can: generate, continue" in (studio.missing(condition) or "")
        with pytest.raises(ValueError, match="it can: generate, continue"):
            list(run)


def test_one_click_settings_are_of_the_models_classes() -> None:
    """A model without classes offers pictures of no class; one of other classes than the flowers offers its own."""
    pytest.importorskip("gradio")
    from dctransformer.app.page import generate_examples

    assert list(generate_examples([], False)) == ["Any picture", "Any, nothing left out"]
    assert list(generate_examples([], True)) == ["Guided", "Any picture", "Any, nothing left out"]
    assert list(generate_examples(["Ant", "Bee", "Rose"], False)) == ["Any picture", "Any, nothing left out", "Rose"]
    assert list(generate_examples(["Ant", "Bee", "Cat", "Dog"], False))[2:] == ["Ant", "Bee", "Cat"]


def test_examples_are_jpeg_files_of_the_shipped_models_size() -> None:
    """Examples are samples of the shipped model, with its size and quantisation tables."""
    config = DCTransformer.from_pretrained("flowers64").config
    pictures = {name: examples()[name] for name in fitting_examples(classes=True)}
    assert len(pictures) >= 3
    for data in pictures.values():
        assert read_for_inspection(data, Limits(), config.trained_shape, config.quality).own
        assert torch.equal(read_jpeg_bytes(data).luma_table, Codec(config.quality).luma_table)


def test_models_without_classes_get_photographs_too() -> None:
    """Photographs come first in the list, in whole MCUs and small enough for every task to be quick."""
    samples, fitting, pictures = fitting_examples(classes=True), fitting_examples(classes=False), examples()
    assert list(fitting) == ["Cat", "Coffee", *list(samples)[: len(fitting) - 2]] and 4 <= len(fitting) <= 5
    assert {list(pictures)[number] for number in fitting.values()} == set(fitting)
    for name in ("Cat", "Coffee"):
        dct = read_jpeg_bytes(pictures[name])
        assert dct.sampling == "4:2:0" and max(dct.height, dct.width) <= 144 and dct.height % 16 == dct.width % 16 == 0


# The server -----------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_reported(capsys: pytest.CaptureFixture) -> None:
    """A port in use is reported with exit status 2 before the model is loaded."""
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            main(["app", "no-such-model", "--port", str(port)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"port {port} on 127.0.0.1 is in use" in error and "--port" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "from 0 to 65535"),
        (["--port", "0", "--host", "203.0.113.9"], "not an address to listen on"),
        (["--port", "0", "--max-num", "0"], "max-num 0"),
        (["no-such-model", "--port", "0"], "there is no model 'no-such-model'"),
    ],
)
def test_what_the_command_refuses(capsys: pytest.CaptureFixture, options: list[str], message: str) -> None:
    """The command refuses invalid options with exit status 2 and one sentence."""
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit) as stop:
        main(["app", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without Gradio, the command ends with exit status 2 and names the extra to install."""
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["app"])
    assert stop.value.code == 2 and "pip install 'dctransformer[app]'" in capsys.readouterr().err


def test_the_upload_folder_is_private_and_is_removed() -> None:
    """The folder for uploads is private, and is removed even after an error."""
    with pytest.raises(KeyboardInterrupt), server.private_folder() as folder:
        (folder / "upload").write_bytes(b"x")
        assert os.stat(folder).st_mode & 0o077 == 0
        raise KeyboardInterrupt
    assert not folder.exists()


def test_what_goes_wrong_is_shown_in_the_page(capsys: pytest.CaptureFixture) -> None:
    """Expected errors are shown as a sentence; unexpected ones as a hint, with the traceback in the log."""
    gradio = pytest.importorskip("gradio")
    from dctransformer.app.page import _safely
    from dctransformer.app.visitors import Presence

    def foreseen() -> Iterator[str]:
        yield "before"
        raise ValueError("the <picture> is odd")

    def unforeseen() -> Iterator[str]:
        raise RuntimeError("secret")
        yield

    presence = Presence()
    presence.opened("tab")
    request = gradio.Request(session_hash="tab")
    first, second = _safely(foreseen, presence)(request)
    assert first == "before" and "The &lt;picture&gt; is odd" in second
    shown = next(_safely(unforeseen, presence)(request))
    assert "secret" not in shown and "RuntimeError: secret" in capsys.readouterr().err


def test_any_class_leaves_the_label_option_out() -> None:
    """If no class is chosen, the command line that is shown has no label."""
    assert "--label" not in Settings(ANY).words() and "--label 'Tree Poppy'" in Settings("Tree Poppy").words()


def test_errors_in_the_log_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters from visitors are escaped when an error quotes them in the log."""
    try:
        raise RuntimeError("\x1b]0;owned\x07\n\x9bH")
    except RuntimeError:
        log_error()
    shown = capsys.readouterr().err
    assert r"RuntimeError: \x1b]0;owned\x07" in shown and r"\x9bH" in shown and "\x1b" not in shown
    assert len(shown.splitlines()) > 3


# Sizes and shapes -----------------------------------------------------------------------------------------------------


def test_pictures_of_other_sizes(studio: Studio) -> None:
    """Pictures of other sizes equal those of `sample --size`; an invalid size is refused in one sentence."""
    last = list(studio.generate(QUICK, "16x32"))[-1]
    samples, _ = generate(studio.model, 1, size=(32, 16), sampling=SampleConfig(seed=3))
    assert downloads(last)[0].equal(samples.dct()) and "--size 16x32" in last
    assert "--size" not in list(studio.generate(QUICK, "32x32"))[-1]
    for size, message in (
        ("17x32", "not a positive multiple of 16"),
        ("big", "choose 64"),
        ("96x32", "at most 64 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            list(studio.generate(QUICK, size))


def test_a_model_of_pictures_that_are_not_square(tmp_path: Path) -> None:
    """Width and height are shown in the right order, and files of that shape are used unchanged."""
    gradio = pytest.importorskip("gradio")
    from dctransformer.app.page import build
    from dctransformer.app.shelf import Shelf
    from dctransformer.app.visitors import Presence

    folder = save_tiny_model(tmp_path, size=16, shape=(16, 32))
    studio = Studio(DCTransformer.from_pretrained(folder), "wide")
    texts = [block.value for block in build(studio, Shelf(1, 1), Presence()).blocks.values() if hasattr(block, "value")]
    assert any("32 × 16 pixels at JPEG quality 30" in str(text) for text in texts) and "32x16" in texts
    last = list(studio.generate(QUICK))[-1]
    assert (downloads(last)[0].width, downloads(last)[0].height) == (32, 16) and gradio
    shape = studio.config.trained_shape
    assert read_for_inspection(base64.b64decode(last.split("base64,")[1].split('"')[0]), studio.limits, shape, 30).own
    picture = read_for_inspection(png(photo(64, 64)), studio.limits, shape, 30)
    assert "The model knows pictures of 32 × 16 pixels" in list(studio.inspect(picture))[-1]


def test_names_and_classes_are_text(tmp_path: Path) -> None:
    """Names and classes are escaped, whatever they contain."""
    folder = save_tiny_model(tmp_path, label_names=("<b>rose</b>", "lily"))
    studio = Studio(DCTransformer.from_pretrained(folder), "<i>name</i>")
    for html in studio.generate(Settings("<b>rose</b>", 3, min_p=0.0)):
        assert "<b>" not in html and "<i>" not in html
    assert "&lt;b&gt;rose" in html and "&lt;i&gt;name" in html
