"""The page's layout, with Gradio: which button takes what from where, and where its result goes.

Pictures are taken in and kept apart from Gradio (see `dctransformer.app.intake`): a tab holds the name of its picture,
and Gradio sees words and numbers only, never a file or a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: it must send nothing
import gradio as gr
from gradio.components import Component

from dctransformer.app.handlers import Studio
from dctransformer.app.intake import UNFORESEEN, log_error
from dctransformer.app.render import parts
from dctransformer.app.settings import ANY, Settings
from dctransformer.app.shelf import Shelf
from dctransformer.app.uploads import fitting_examples
from dctransformer.app.visitors import Presence
from dctransformer.codec import order
from dctransformer.codec.grid import Grid
from dctransformer.sampling.config import SHOWN_GUIDANCE, SHOWN_GUIDANCE_BY_GUIDE, SHOWN_MIN_P

FOLDER = Path(__file__).parent
ENDINGS = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
SESSIONS = 20
"""Browser tabs whose last results Gradio keeps in memory. The page does not need them, so few will do."""

WELCOME = """
# DCTransformer

A Transformer that writes JPEG files: it decides which quantised DCT coefficients are not zero, coarse to fine. Every
picture that you see below *is* a JPEG file that it wrote.
"""


def build(studio: Studio, shelf: Shelf, presence: Presence) -> gr.Blocks:
    """Lay out the page of a model.

    Args:
        studio: does the work.
        shelf: keeps the uploaded pictures.
        presence: tracks who still waits for a result.
    """
    config = studio.config
    height, width = config.trained_shape
    classes = f", {config.num_labels} classes" if config.num_labels else ""
    with gr.Blocks(title="DCTransformer", analytics_enabled=False) as page:
        gr.Markdown(
            f"{WELCOME}\n\nModel **{studio.name}**: {width} × {height} pixels at JPEG quality "
            f"{config.quality}{classes}.",
            elem_classes="dct-title",
        )
        with gr.Tab("Generate", id="generate"):
            _generate(studio, presence)
        with gr.Tab("Upscale", id="upscale"):
            _upscale(studio, shelf, presence)
        with gr.Tab("Colorize", id="colorize"):
            _colorize(studio, shelf, presence)
        with gr.Tab("Inpaint", id="inpaint"):
            _inpaint(studio, shelf, presence)
        with gr.Tab("Continue", id="continue"):
            _continue(studio, shelf, presence)
        with gr.Tab("Inspect", id="inspect"):
            _inspect(studio, shelf, presence)
        limits = studio.limits
        gr.Markdown(
            f"Uploads: up to {limits.max_megabytes:g} MB and {limits.max_megapixels:g} million pixels; they are read "
            f"into memory, worked on, and forgotten. Results have up to {studio.side} pixels per side. Up to "
            f"{limits.batch} jobs run at a time, and up to {limits.queue} more wait. The same settings and seed "
            "give the same picture.",
            elem_classes="dct-same",
        )
    page.queue(max_size=limits.queue, default_concurrency_limit=limits.batch, api_open=False)
    page.state_session_capacity = SESSIONS
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
                0, 1.5, 1, step=0.05, label="Temperature",
                info="Of the structure: below 1 fewer unusual pictures.", elem_id=f"{task}-temperature",
            )  # fmt: skip
            self.min_p = gr.Slider(
                0, 0.3, SHOWN_MIN_P, step=0.01, label="Min-p", elem_id=f"{task}-min-p",
                info="Leave out what is less likely than this part of the likeliest; 0 leaves out nothing.",
            )  # fmt: skip
            self.guidance = gr.Slider(
                0, 4, 1, step=0.1, label="Guidance", interactive=studio.model.guidable, elem_id=f"{task}-guidance",
                info="Above 1 leads away from the mistakes of a weaker model; up to twice the work."
                if studio.model.guide is not None
                else "Above 1 follows the class more closely; twice the work.",
            )  # fmt: skip
        with gr.Row():
            self.go = gr.Button(verb, variant="primary", interactive=why_not is None, elem_id=f"{task}-go")
            self.stop = gr.Button("Stop", interactive=why_not is None, min_width=80, scale=0, elem_id=f"{task}-stop")
        if why_not is not None:
            gr.HTML(str(parts.message(why_not, "note")), elem_id=f"{task}-why-not")

    def inputs(self) -> list[Component]:
        return [self.label, self.seed, self.num, self.temperature, self.min_p, self.guidance]


class _Picture:
    """The inputs for a picture: the file box, its preview, and the example buttons."""

    def __init__(self, task: str, studio: Studio):
        self.task, limits = task, studio.limits
        gr.HTML(str(parts.file_box(task, int(limits.max_megabytes * 1e6), ",".join(ENDINGS))), elem_id=f"{task}-file")
        gr.HTML(str(parts.label("Or one of these examples, at once:")))
        with gr.Row():
            self.examples = [
                (gr.Button(name, size="sm", min_width=60, elem_id=f"{task}-example-{i}"), number)
                for i, (name, number) in enumerate(fitting_examples(classes=studio.config.num_labels > 0).items())
            ]
        self.shown = gr.HTML("", elem_id=f"{task}-shown")
        self.held = gr.Textbox("", elem_id=f"{task}-held", elem_classes="dct-hidden")
        send = gr.Button("Send", elem_id=f"{task}-send", elem_classes="dct-hidden")
        _in_browser(send.click, f"() => window.dct.upload('{task}')", [], [self.held, self.shown])

    def clicked(self) -> list[Any]:
        """Fetch an example when its button is clicked; returns the event after that, for each button."""
        return [
            _in_browser(button.click, f"() => window.dct.example('{self.task}', {number})", [], [self.held, self.shown])
            for button, number in self.examples
        ]


def _in_browser(event: Callable[..., Any], script: str, inputs: list[Any], outputs: list[Any]) -> Any:
    """Run a script in the browser alone; returns the event after it."""
    return event(None, inputs, outputs, js=script, api_visibility="private", show_progress="hidden")


def _safely(run: Callable[..., Iterator[str]], presence: Presence) -> Callable[..., Iterator[str]]:
    """Wrap a task: errors are shown in the page, and work that nobody waits for ends."""

    def safely(request: gr.Request, *args: Any) -> Iterator[str]:
        try:
            yield from presence.pass_on(str(request.session_hash), run(*args))
        except ValueError as error:
            yield str(parts.message(str(error)))
        except Exception:
            log_error()
            yield str(parts.message(UNFORESEEN))

    return safely


def _on(
    event: Callable[..., Any], presence: Presence, run: Callable[..., Iterator[str]], inputs: list[Any], out: gr.HTML,
    js: str | None = None,
) -> Any:  # fmt: skip
    """Queue a slow task; as many run at a time in the whole server as pictures are generated together."""
    return event(
        _safely(run, presence), inputs, out, js=js, concurrency_id="model", preprocess=False,
        api_visibility="private", show_progress="full",
    )  # fmt: skip


def _connect(
    form: _Form, presence: Presence, out: gr.HTML, run: Callable[..., Iterator[str]], before: list[Any],
    picture: _Picture | None = None, *, js: str | None = None, prepaint: str | None = None,
) -> None:  # fmt: skip
    """Tie a form's buttons, and the examples, to a task."""
    inputs = [*before, *form.inputs()]
    chosen = _in_browser(form.go.click, "window.dct.seed", [form.seed, form.fresh], [form.seed])
    jobs = [_on(chosen.then, presence, run, inputs, out, js)]
    for shown in picture.clicked() if picture is not None else []:
        if prepaint is not None:
            shown = _in_browser(shown.then, prepaint, [], [])
        if form.go.interactive:
            jobs.append(_on(shown.then, presence, run, inputs, out, js))
    form.stop.click(None, None, None, cancels=jobs)


# Tabs -----------------------------------------------------------------------------------------------------------------


def generate_examples(labels: list[str], by_guide: bool) -> dict[str, tuple[str, float, float]]:
    """Return the one-click settings of the first tab by name: class, min-p, guidance.

    Args:
        labels: classes of the model; empty if it has none.
        by_guide: whether the model has a guide.
    """
    shown = [label for label in ("Sunflower", "Rose", "Oxeye Daisy") if label in labels] or labels[:3]
    anything = {"Any picture": (ANY, SHOWN_MIN_P, 1.0), "Any, nothing left out": (ANY, 0.0, 1.0)}
    if by_guide:
        anything = {"Guided": (ANY, 0.0, SHOWN_GUIDANCE_BY_GUIDE), **anything}
    return anything | {label: (label, SHOWN_MIN_P, SHOWN_GUIDANCE) for label in shown}


def _generate(studio: Studio, presence: Presence) -> None:
    gr.Markdown(
        "New pictures. Watch one sharpen band by band, with a heat map of where its coefficients are.",
        elem_classes="dct-say",
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = _Form(studio, "generate", "Generate", studio.missing("none"), "any (drawn from the seed)")
            size = gr.Textbox(
                Grid.of_size(*studio.config.trained_shape).size, label="Size", elem_id="generate-size", max_length=20,
                info=f"WIDTHxHEIGHT in multiples of {order.MCU} pixels, up to {studio.side} per side.",
            )  # fmt: skip
            gr.HTML(str(parts.label("Or one of these, at once:")))
            by_guide = studio.model.guide is not None
            with gr.Row():
                buttons = [
                    (gr.Button(name, size="sm", min_width=60, elem_id=f"generate-example-{i}"), *values)
                    for i, (name, values) in enumerate(generate_examples(studio.labels(), by_guide).items())
                ]
        with gr.Column(scale=3, min_width=340):
            out = gr.HTML(str(parts.empty("Press Generate, or one of the small buttons.")), elem_id="generate-out")

    def run(size: str | None, *settings: Any) -> Iterator[str]:
        return studio.generate(Settings.of(*settings), size)

    _connect(form, presence, out, run, [size])
    for button, label, min_p, guidance in buttons:
        script = f"(seed, fresh) => [{json.dumps(label)}, window.dct.seed(seed, fresh), 1, 1, {min_p}, {guidance}]"
        chosen = _in_browser(button.click, script, [form.seed, form.fresh], form.inputs())
        job = _on(chosen.then, presence, run, [size, *form.inputs()], out)
        form.stop.click(None, None, None, cancels=[job])


def _task_tab(
    studio: Studio, shelf: Shelf, presence: Presence, task: str, say: str, why_not: str | None,
    work: Callable[..., Iterator[str]], more: Callable[[], list[Any]] = list, **scripts: str,
) -> None:  # fmt: skip
    """Lay out the tab of a task that starts from a picture; ``why_not`` is the reason why the model can't do it.

    ``work`` takes the picture, the values of the task's own inputs, which ``more`` makes, and the form's settings.
    """
    gr.Markdown(say, elem_classes="dct-say")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = _Picture(task, studio)
            extra = more()
            form = _Form(studio, task, task.capitalize(), why_not, "none: the picture must do")
        with gr.Column(scale=3, min_width=340):
            out = gr.HTML(str(parts.empty("Choose a picture, or click on an example.")), elem_id=f"{task}-out")

    def run(name: str, *values: Any) -> Iterator[str]:
        return work(shelf.get(name), *values[: len(extra)], Settings.of(*values[len(extra) :]))

    _connect(form, presence, out, run, [picture.held, *extra], picture, **scripts)


def _upscale(studio: Studio, shelf: Shelf, presence: Presence) -> None:
    factors = studio.factors()
    _task_tab(
        studio, shelf, presence, "upscale",
        "The small picture becomes the low frequencies of a large one, and the high ones are generated.",
        None if factors else studio.missing("low4"), studio.upscale,
        lambda: [gr.Radio(factors or [2], value=(factors or [2])[0], label="Factor", elem_id="upscale-factor")],
    )  # fmt: skip


def _colorize(studio: Studio, shelf: Shelf, presence: Presence) -> None:
    _task_tab(
        studio, shelf, presence, "colorize",
        "Brightness stays as it is, coefficient by coefficient; colours are generated (those a picture has are "
        "ignored). A class helps.",
        studio.missing("luma"), studio.colorize,
    )  # fmt: skip


def _inpaint(studio: Studio, shelf: Shelf, presence: Presence) -> None:
    def squares() -> list[Any]:
        gr.Button("Wipe the brush off", size="sm", elem_id="inpaint-clear").click(
            None, None, None, js="() => { window.dct.clear(); }"
        )
        return [gr.Textbox("", elem_classes="dct-hidden")]

    _task_tab(
        studio, shelf, presence, "inpaint",
        "Brush over what is to be replaced. Every 16 × 16 square that the brush touches is generated anew; all others "
        "stay, bit for bit.",
        studio.missing("region"), studio.inpaint, squares,
        js="(held, squares, ...rest) => [held, window.dct.squares(), ...rest]",
        prepaint="() => { window.dct.middle(); }",
    )  # fmt: skip


def _continue(studio: Studio, shelf: Shelf, presence: Presence) -> None:
    _task_tab(
        studio, shelf, presence, "continue",
        "Keep the beginning of a picture's list of coefficients, coarse to fine, and let the model write the rest: "
        "what a half-received file might have become.",
        studio.missing("none"), studio.continue_,
        lambda: [gr.Slider(
            1, len(order.BANDS) - 1, 2, step=1, label="Bands to keep", elem_id="continue-bands",
            info="1: blocks of one colour. 2: rough shapes. 3: all but the finest detail.",
        )],
    )  # fmt: skip


def _inspect(studio: Studio, shelf: Shelf, presence: Presence) -> None:
    gr.Markdown(
        "What a JPEG file holds, and how many bits the model needs for it: few where it expected what is there, many "
        "where it was surprised.",
        elem_classes="dct-say",
    )

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = _Picture("inspect", studio)
            label = gr.Dropdown(
                [("none", ANY), *studio.labels()], value=ANY, label="Class that is given to the model",
                visible=bool(studio.labels()), elem_id="inspect-label",
            )  # fmt: skip
            go = gr.Button("Inspect", variant="primary", elem_id="inspect-go")
        with gr.Column(scale=3, min_width=340):
            out = gr.HTML(str(parts.empty("Choose a picture, or click on an example.")), elem_id="inspect-out")

    def run(name: str, label: str) -> Iterator[str]:
        return studio.inspect(shelf.get(name), str(label))

    _on(go.click, presence, run, [picture.held, label], out)
    for shown in picture.clicked():
        _on(shown.then, presence, run, [picture.held, label], out)
