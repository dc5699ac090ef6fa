"""The page's layout, with Gradio: which button takes what from where, and where its result goes.

An upload lies in a temporary folder only until it has been read, which is at once; from then on a `gradio.State` holds
what is worked on, in memory, as long as the tab is open.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: nothing is told to anybody
import gradio as gr
from gradio.components import Component

from dctransformer.app import render
from dctransformer.app.handlers import ANY, Settings, Studio, new_seed
from dctransformer.app.limits import Limits
from dctransformer.app.uploads import Upload, examples, halved, read_for_inspection, read_upload
from dctransformer.codec import order

FOLDER = Path(__file__).parent
ENDINGS = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
STATE_SECONDS = 3600
"""How long the picture of a tab is kept in memory after its last use."""

WELCOME = """
# DCTransformer

A Transformer that writes JPEG files: it decides, one by one, which quantised DCT coefficients are not zero, coarse to
fine. What you see below *is* the JPEG file it wrote.
"""


def build(studio: Studio) -> gr.Blocks:
    """The page of a model."""
    config = studio.config
    classes = f", {config.num_labels} classes" if config.num_labels else ""
    with gr.Blocks(title="DCTransformer", analytics_enabled=False, delete_cache=(60, 300)) as page:
        gr.Markdown(
            f"{WELCOME}\n\nModel **{studio.name}**: {config.size} × {config.size} pixels at JPEG quality "
            f"{config.quality}{classes}.",
            elem_classes="dct-title",
        )
        with gr.Tab("Generate", id="generate"):
            _generate(studio)
        with gr.Tab("Upscale", id="upscale"):
            _upscale(studio)
        with gr.Tab("Colorize", id="colorize"):
            _colorize(studio)
        with gr.Tab("Inpaint", id="inpaint"):
            _inpaint(studio)
        with gr.Tab("Continue", id="continue"):
            _continue(studio)
        with gr.Tab("Inspect", id="inspect"):
            _inspect(studio)
        limits = studio.limits
        gr.Markdown(
            f"Uploads: up to {limits.max_megabytes:g} MB and {limits.max_megapixels:g} million pixels; they are read "
            f"into memory, worked on, and forgotten. Results have up to {studio.side} pixels a side. One job runs at a "
            f"time, up to {limits.queue} wait. The same settings and seed give the same picture.",
            elem_classes="dct-same",
        )
    page.queue(max_size=limits.queue, default_concurrency_limit=8, api_open=False)
    page.state_session_capacity = 200
    return page


# Parts ----------------------------------------------------------------------------------------------------------------


class _Form:
    """The settings that all tasks share, and the buttons under them."""

    def __init__(self, studio: Studio, task: str, verb: str, why_not: str | None, any_label: str):
        labels = studio.labels()
        self.task = task
        self.label = gr.Dropdown(
            [(any_label, ANY), *labels], value=ANY, label="Class", visible=bool(labels), elem_id=f"{task}-label",
        )  # fmt: skip
        with gr.Row():
            self.seed = gr.Number(1, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id=f"{task}-seed")
            self.fresh = gr.Checkbox(True, label="New seed at every click", elem_id=f"{task}-fresh")
        self.num = gr.Slider(
            1, studio.limits.max_num, 1, step=1, label="Pictures" if task == "generate" else "Alternatives",
            elem_id=f"{task}-num",
        )  # fmt: skip
        with gr.Accordion("More settings", open=False):
            self.temperature = gr.Slider(
                0, 1.5, 1, step=0.05, label="Temperature", info="Below 1 is tamer, 0 takes the likeliest.",
                elem_id=f"{task}-temperature",
            )  # fmt: skip
            self.top_p = gr.Slider(
                0.5, 1, 0.9, step=0.01, label="Top-p", info="Leave out the unlikeliest; 1 leaves out nothing.",
                elem_id=f"{task}-top-p",
            )  # fmt: skip
            self.guidance = gr.Slider(
                0, 4, 1, step=0.1, label="Guidance", info="Above 1 follows the class more closely; twice the work.",
                interactive=bool(labels), elem_id=f"{task}-guidance",
            )  # fmt: skip
        with gr.Row():
            self.go = gr.Button(verb, variant="primary", interactive=why_not is None, elem_id=f"{task}-go")
            self.stop = gr.Button("Stop", interactive=why_not is None, min_width=80, scale=0, elem_id=f"{task}-stop")
        if why_not is not None:
            gr.HTML(render.message(why_not, "note"), elem_id=f"{task}-why-not")

    def inputs(self) -> list[Component]:
        return [self.label, self.seed, self.num, self.temperature, self.top_p, self.guidance]


class _Picture:
    """Where a picture is brought: the file, what became of it, the examples."""

    def __init__(self, task: str, read: Callable[[bytes], tuple[Any, str]], prepare: Callable[[bytes], bytes] = bytes):
        self.read, self.prepare = read, prepare
        self.held = gr.State(None, time_to_live=STATE_SECONDS)
        self.file = gr.File(
            label="Picture: drop a file here, or click", file_types=ENDINGS, height=150, elem_id=f"{task}-file"
        )
        self.file.preprocess = _bytes_of
        gr.HTML('<div class="dct-label">Or one of these examples, at once:</div>')
        with gr.Row():
            self.examples = {
                name: gr.Button(name, size="sm", min_width=60, elem_id=f"{task}-example-{i}")
                for i, name in enumerate(examples())
            }
        self.shown = gr.HTML("", elem_id=f"{task}-shown")
        self.file.upload(
            self._take, self.file, [self.held, self.shown, self.file], concurrency_id="reading", concurrency_limit=2,
            api_visibility="private", show_progress="hidden",
        )  # fmt: skip

    def _take(self, data: bytes | None) -> tuple[Any, str, None]:
        """Read an upload; the box is free for the next one."""
        held, shown = self._read(data) if data is not None else (None, "")
        return held, shown, None

    def _read(self, data: bytes) -> tuple[Any, str]:
        try:
            return self.read(data)
        except ValueError as error:
            return None, render.message(str(error))
        except Exception:
            return None, _unforeseen()

    def example(self, name: str) -> tuple[Any, str, None]:
        """What is held, shown, and left in the file box when an example is clicked."""
        held, shown = self._read(self.prepare(examples()[name]))
        return held, shown, None


def _bytes_of(payload: Any) -> bytes | None:
    """What Gradio's file box gives: the bytes of what was uploaded, of which no file is left.

    (Its own way leaves the file, and an empty one beside it. That the path is one of Gradio's uploads, it has checked.)
    """
    if payload is None:
        return None
    path = Path(payload.path)
    try:
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _unforeseen() -> str:
    traceback.print_exc()
    return render.message(
        "something went wrong on the server; its log says what. Try other settings or another picture"
    )


def _said(run: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """The same, with what can't be done said in the page."""

    def safely(*args: Any) -> Iterator[str]:
        try:
            yield from run(*args)
        except ValueError as error:
            yield render.message(str(error))
        except Exception:
            yield _unforeseen()

    return safely


_EMPTY = '<div class="dct-empty">{}</div>'


def _on(
    event: Callable[..., Any], run: Callable[..., Iterator[str]], inputs: list[Any], out: gr.HTML, js: str | None = None
) -> Any:
    """Queue something slow: one at a time in the whole server."""
    return event(
        _said(run), inputs, out, js=js, concurrency_id="model", concurrency_limit=1, api_visibility="private",
        show_progress="full",
    )  # fmt: skip


def _connect(
    form: _Form, out: gr.HTML, run: Callable[..., Iterator[str]], before: list[Any], picture: _Picture | None = None,
    *, js: str | None = None, prepaint: str | None = None,
) -> None:  # fmt: skip
    """Tie a form's buttons, and the examples, to a task."""
    inputs = [*before, *form.inputs()]
    chosen = form.go.click(
        new_seed, [form.seed, form.fresh], form.seed, queue=False, api_visibility="private", show_progress="hidden"
    )
    jobs = [_on(chosen.then, run, inputs, out, js)]
    for name, button in (picture.examples if picture is not None else {}).items():
        assert picture is not None
        shown = button.click(
            lambda name=name: picture.example(name), None, [picture.held, picture.shown, picture.file],
            concurrency_id="reading", api_visibility="private", show_progress="hidden",
        )  # fmt: skip
        if prepaint is not None:
            shown = shown.then(None, None, None, js=prepaint)
        if form.go.interactive:
            jobs.append(_on(shown.then, run, inputs, out, js))
    form.stop.click(None, None, None, cancels=jobs)


def _thumbnail(limits: Limits, side: int) -> Callable[[bytes], tuple[Upload, str]]:
    def read(data: bytes) -> tuple[Upload, str]:
        upload = read_upload(data, limits, side)
        height, width = upload.pixels.shape[:2]
        picture = f'<div class="dct-thumb"><img src="{render.png_uri(upload.pixels)}" alt="your picture">'
        return upload, f"{picture}<span>{width} × {height} pixels</span></div>" + render.notes(upload.notes)

    return read


# Tabs -----------------------------------------------------------------------------------------------------------------

_PRESETS = {
    "Any flower, tame": (ANY, 0.9, 1.0),
    "Sunflower": ("Sunflower", 0.9, 1.5),
    "Rose": ("Rose", 0.9, 1.5),
    "Oxeye daisy": ("Oxeye Daisy", 0.9, 1.5),
}
"""One-click settings: class, top-p, guidance. Those whose class the model lacks are left out."""


def _generate(studio: Studio) -> None:
    gr.Markdown(
        "Pictures from nothing. Watch one sharpen band by band, beside a heat-map of the places that got coefficients.",
        elem_classes="dct-say",
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = _Form(studio, "generate", "Generate", studio.missing("none"), "any (drawn from the seed)")
            known = {ANY, *studio.labels()}
            gr.HTML('<div class="dct-label">Or one of these, at once:</div>')
            with gr.Row():
                buttons = [
                    (gr.Button(name, size="sm", min_width=60, elem_id=f"generate-example-{i}"), *values)
                    for i, (name, values) in enumerate(_PRESETS.items())
                    if values[0] in known
                ]
        with gr.Column(scale=3, min_width=340):
            out = gr.HTML(_EMPTY.format("Press <b>Generate</b>, or one of the small buttons."), elem_id="generate-out")

    def run(*settings: Any) -> Iterator[str]:
        return studio.generate(Settings(*settings))

    _connect(form, out, run, [])
    for button, label, top_p, guidance in buttons:
        chosen = button.click(
            lambda seed, fresh, label=label, top_p=top_p, guidance=guidance: (
                label, new_seed(seed, fresh), 1, 1.0, top_p, guidance
            ),
            [form.seed, form.fresh], form.inputs(), queue=False, api_visibility="private", show_progress="hidden",
        )  # fmt: skip
        job = _on(chosen.then, run, form.inputs(), out)
        form.stop.click(None, None, None, cancels=[job])


def _task_tab(
    studio: Studio, task: str, verb: str, say: str, why_not: str | None, read: Any, prepare: Any = bytes,
    more: Callable[[], list[Any]] = list,
) -> tuple[_Form, _Picture, list[Any], gr.HTML]:  # fmt: skip
    """What the tabs that start from a picture have in common."""
    gr.Markdown(say, elem_classes="dct-say")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = _Picture(task, read, prepare)
            extra = more()
            form = _Form(studio, task, verb, why_not, "none: the picture must do")
        with gr.Column(scale=3, min_width=340):
            out = gr.HTML(_EMPTY.format("Choose a picture, or click on an example."), elem_id=f"{task}-out")
    return form, picture, extra, out


def _upscale(studio: Studio) -> None:
    factors = studio.factors()
    form, picture, extra, out = _task_tab(
        studio, "upscale", "Upscale",
        "The small picture becomes the low frequencies of a large one, and the high ones are generated.",
        None if factors else studio.missing("low4"), _thumbnail(studio.limits, studio.side), halved,
        lambda: [gr.Radio(factors or [2], value=(factors or [2])[0], label="Factor", elem_id="upscale-factor")],
    )  # fmt: skip

    def run(upload: Upload | None, factor: float, *settings: Any) -> Iterator[str]:
        return studio.upscale(upload, factor, Settings(*settings))

    _connect(form, out, run, [picture.held, *extra], picture)


def _colorize(studio: Studio) -> None:
    form, picture, _, out = _task_tab(
        studio, "colorize", "Colorize",
        "Brightness stays as it is, coefficient by coefficient; colours are generated (those a picture has are "
        "ignored). A class helps.",
        studio.missing("luma"), _thumbnail(studio.limits, studio.side),
    )  # fmt: skip

    def run(upload: Upload | None, *settings: Any) -> Iterator[str]:
        return studio.colorize(upload, Settings(*settings))

    _connect(form, out, run, [picture.held], picture)


def _inpaint(studio: Studio) -> None:
    def read(data: bytes) -> tuple[Upload, str]:
        upload = read_upload(data, studio.limits, studio.side)
        return upload, render.canvas(upload.pixels) + render.notes(upload.notes)

    def more() -> list[Any]:
        gr.Button("Wipe the brush off", size="sm", elem_id="inpaint-clear").click(
            None, None, None, js="() => { window.dctBrush.clear(); }"
        )
        return [gr.Textbox(visible=False)]

    form, picture, mask, out = _task_tab(
        studio, "inpaint", "Inpaint",
        "Brush over what is to be replaced. Every 16 × 16 square that the brush touches is generated anew; all others "
        "stay, bit for bit.",
        studio.missing("region"), read, bytes, more,
    )  # fmt: skip

    def run(upload: Upload | None, mask: str | None, *settings: Any) -> Iterator[str]:
        return studio.inpaint(upload, mask, Settings(*settings))

    _connect(
        form, out, run, [picture.held, *mask], picture,
        js="(held, mask, ...rest) => [held, window.dctBrush.mask(), ...rest]",
        prepaint="() => { window.dctBrush.middle(); }",
    )  # fmt: skip


def _continue(studio: Studio) -> None:
    form, picture, extra, out = _task_tab(
        studio, "continue", "Continue",
        "Keep the beginning of a picture's list of coefficients, coarse to fine, and let the model write the rest: "
        "what a half-received file might have become.",
        studio.missing("none"), _thumbnail(studio.limits, studio.side), bytes,
        lambda: [gr.Slider(
            1, len(order.BANDS) - 1, 2, step=1, label="Bands to keep", elem_id="continue-bands",
            info="1: blocks of one colour. 2: rough shapes. 3: all but the finest detail.",
        )],
    )  # fmt: skip

    def run(upload: Upload | None, bands: float, *settings: Any) -> Iterator[str]:
        return studio.continue_(upload, bands, Settings(*settings))

    _connect(form, out, run, [picture.held, *extra], picture)


def _inspect(studio: Studio) -> None:
    gr.Markdown(
        "What a JPEG file holds, and how many bits the model needs for it: few where it expected what is there, many "
        "where it was surprised.",
        elem_classes="dct-say",
    )

    def read(data: bytes) -> tuple[Any, str]:
        held = read_for_inspection(data, studio.limits, studio.config)
        return held, render.notes(held.notes)

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = _Picture("inspect", read)
            label = gr.Dropdown(
                [("none", ANY), *studio.labels()], value=ANY, label="Class that the model is told",
                visible=bool(studio.labels()), elem_id="inspect-label",
            )  # fmt: skip
            go = gr.Button("Inspect", variant="primary", elem_id="inspect-go")
        with gr.Column(scale=3, min_width=340):
            out = gr.HTML(_EMPTY.format("Choose a picture, or click on an example."), elem_id="inspect-out")

    def run(held: Any, label: str) -> Iterator[str]:
        return studio.inspect(held, label)

    _on(go.click, run, [picture.held, label], out)
    for name, button in picture.examples.items():
        shown = button.click(
            lambda name=name: picture.example(name), None, [picture.held, picture.shown, picture.file],
            concurrency_id="reading", api_visibility="private", show_progress="hidden",
        )  # fmt: skip
        _on(shown.then, run, [picture.held, label], out)
