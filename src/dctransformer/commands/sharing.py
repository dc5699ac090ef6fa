"""The commands `push`, `app` and `info`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import tyro

from dctransformer.app.limits import Limits
from dctransformer.commands.common import print_facts, with_revision
from dctransformer.files import printable


@dataclasses.dataclass
class Push:
    """Upload a model to the Hugging Face hub: config, weights, and a card with the run's figures.

    It needs a token: log in with `hf auth login`, or set HF_TOKEN.

    Example: dctransformer push runs/flowers me/flowers --private
    """

    model: tyro.conf.Positional[str]
    """Run folder, saved model's folder, or shipped weights."""
    repo: tyro.conf.Positional[str]
    """Where to: owner/name."""
    private: bool = False
    """Make it visible to its owner only, if it is new."""

    def run(self) -> None:
        """Upload the model and print its address."""
        from dctransformer.evaluate.figures import run_figures
        from dctransformer.hub.push import push

        print(printable(push(self.model, self.repo, private=self.private or None, figures=run_figures)))


@dataclasses.dataclass
class App:
    """Open the web page: generate, upscale, colorize, inpaint, continue and inspect in a browser.

    It listens on this machine alone unless --host says otherwise. Nothing that is uploaded is kept.

    Example: dctransformer app flowers64
    """

    model: tyro.conf.Positional[str] = "flowers64"
    """Run folder, saved model's folder, hf:owner/name, or shipped weights (flowers64)."""
    port: int = 7860
    """Where to listen; 0 takes any port that is free."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    root_path: str = ""
    """Where a proxy shows the page, say https://example.org/flowers."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Limits)
    """Limits on requests and results."""
    device: str = "auto"
    """cpu, cuda, …"""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    def run(self) -> None:
        """Serve the page until it is interrupted."""
        from dctransformer.app.server import serve

        serve(
            with_revision(self.model, self.revision),
            self.limits,
            host=self.host,
            port=self.port,
            device=self.device,
            root_path=self.root_path,
        )


@dataclasses.dataclass
class Info:
    """Describe a model, a data set or an image.

    Example: dctransformer info picture.jpg
    """

    thing: tyro.conf.Positional[str]
    """Model, prepared data set, or image file."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    json: bool = False
    """Print a JSON object instead of text."""

    def run(self) -> None:
        """Print the description."""
        from dctransformer.tasks.info import describe

        facts = describe(with_revision(self.thing, self.revision))
        print_facts(self.json, facts, lambda: _list_facts(facts))


def _list_facts(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{printable(name)}:")
            _list_facts(value, indent + "  ")
        else:
            shown = ", ".join(map(printable, value)) if isinstance(value, (list, tuple)) else printable(value)
            print(f"{indent}{printable(name)}: {shown}")
