"""The web server: its socket, its limits on connections, and the application that it serves.

`dctransformer.app.guard` filters the requests, `dctransformer.app.intake` takes uploads, Gradio does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctransformer.app.guard import Guard, Hosts, public_path
from dctransformer.app.limits import Limits
from dctransformer.app.visitors import Line, Presence, visitor
from dctransformer.files import printable

if TYPE_CHECKING:
    from dctransformer.app.handlers import Studio
    from dctransformer.app.intake import Intake

CONNECTIONS = 300
"""Most connections at a time."""

VISITOR_CONNECTIONS = 120
"""Most connections of one visitor, unless all come through a proxy."""

REQUEST_SECONDS = 20
"""How long a connection may take to send a request's headers."""


def connections(visitor_most: int | None, seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's handler of connections, with bounds on a visitor's, and on those that send no request.

    Args:
        visitor_most: connections from one address; None for any number.
        seconds: after which a connection is closed that has not sent a request.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    of_visitor: Counter[str] = Counter()

    class Connection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.address = visitor({"client": self.client})
            of_visitor[self.address] += 1
            if visitor_most is not None and of_visitor[self.address] > visitor_most:
                transport.close()
            else:
                self._watch(object())

        def connection_lost(self, exc: Exception | None) -> None:
            of_visitor[self.address] -= 1
            if not of_visitor[self.address]:
                del of_visitor[self.address]
            super().connection_lost(exc)

        def _watch(self, before: object) -> None:
            """Close the connection if it has been idle since the last check."""
            if self.transport.is_closing():
                return
            resting = self.cycle is None or self.cycle.response_complete
            if resting and self.cycle is before:
                self.transport.close()
            else:
                self.loop.call_later(seconds, self._watch, self.cycle if resting else object())

    return Connection


def require_gradio() -> None:
    """Raise ValueError if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the web page needs Gradio; install it with: pip install 'dctransformer[app]'")


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Args:
        host: address or name of this machine; 127.0.0.1 is reached from this machine alone.
        port: 0 for any that is free.

    Raises:
        ValueError: the port is in use or not allowed, or the address is not one of this machine's.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} must be from 0 to 65535; 7860 is usual")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} on {host} is in use; choose another with --port, or 0 for any that is free"
            ) from error
        if error.errno == errno.EACCES:
            raise ValueError(f"port {port} may not be taken by this user; choose one above 1023 with --port") from error
        raise ValueError(f"{host} is not an address to listen on ({error.strerror or error}); see --host") from error


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder that only this user can enter, in memory where the system has such; deleted at the end."""
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dctransformer-app-", dir=place) as folder:
        yield Path(folder)


@contextlib.contextmanager
def prepare_server(
    model: str | Path, limits: Limits | None = None, *, host: str = "127.0.0.1", port: int = 7860, device: str = "auto",
    root_path: str = "",
) -> Iterator[tuple[Any, socket.socket, Any]]:  # fmt: skip
    """Yield a server that is ready to run, with its port taken.

    Args:
        model: a run folder, a saved model's folder, ``hf:owner/name``, or shipped weights.
        limits: on requests and results; None for the defaults.
        host: where to listen.
        port: 0 for any that is free.
        device: cpu, cuda, … or auto.
        root_path: where a proxy shows the page, ``/flowers`` or ``https://example.org/flowers``; only with the latter
            are requests answered that have the proxy's name.

    Yields:
        A ``uvicorn.Server``, the socket to run it on (``server.run(sockets=[socket])``), and its `Studio`.

    Raises:
        ValueError: Gradio is missing, ``root_path`` is none, the port is in use, or there is no such model.
    """
    require_gradio()
    limits = limits or Limits()
    root, public = public_path(root_path)
    with contextlib.closing(listen(host, port)) as listener, private_folder() as folder:
        from dctransformer.app.handlers import Studio
        from dctransformer.app.intake import Intake
        from dctransformer.tasks.models import resolve_model

        network = resolve_model(model, device)
        studio = Studio(network, str(model), limits)
        intake = Intake(limits, studio.side, studio.config.trained_shape, studio.config.quality)
        intake.reader.start()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)

        import uvicorn

        bound_address, bound_port = listener.getsockname()[:2]
        settings = uvicorn.Config(
            _guarded_app(studio, intake, Hosts(host, bound_address, public), bound_port, root),
            log_level="warning",
            timeout_graceful_shutdown=2,
            ws="none",
            limit_concurrency=CONNECTIONS,
            http=connections(None if public else VISITOR_CONNECTIONS, REQUEST_SECONDS),
        )
        try:
            yield uvicorn.Server(settings), listener, studio
        finally:
            intake.reader.close()


def _guarded_app(studio: Studio, intake: Intake, hosts: Hosts, port: int, root: str) -> Guard:
    """Build the page, mount it with the addresses of the intake, and put the guard in front.

    Args:
        studio: does the work.
        intake: takes the uploads.
        hosts: names and addresses by which the page may be called.
        port: that the server listens on.
        root: path or address at which a proxy shows the page; empty without one.
    """
    import fastapi
    import gradio
    from gradio.themes import Default

    from dctransformer.app.page import FOLDER, build

    presence = Presence()
    page = build(studio, intake.shelf, presence)
    app = fastapi.FastAPI(openapi_url=None)
    app.add_route("/pictures/{task}", intake.upload, methods=["POST"])
    app.add_route("/pictures/{task}/{number:int}", intake.example, methods=["GET"])
    app = gradio.mount_gradio_app(
        app, page, path="/", server_name=hosts.bound, server_port=port,
        footer_links=[], run_history=False, root_path=root or None, allowed_paths=[], show_error=True,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, css_paths=[FOLDER / "style.css"],
        head=f"<script>{(FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
        theme=Default(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    page.has_launched = True  # only then does Gradio check paths; nothing with a path gets as far as that
    forms = {number: len(fn.inputs) for number, fn in page.fns.items() if fn.fn is not None and fn.queue}
    line = Line(page._queue, studio.limits.queue)
    presence.unread = line.unread
    return Guard(app, hosts, intake.max_bytes, presence, line, forms)


def share_heaps() -> bool:
    """Let all threads take memory from two heaps (glibc's ``mallopt``), so that what one leaves free serves the others.

    With a heap for each thread, the page kept more after an attack with large pictures: 257 MB, not 108 to 181.

    Returns:
        Whether it was possible: elsewhere than under glibc nothing is changed.
    """
    arena_max = -8  # M_ARENA_MAX in malloc.h
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(arena_max, 2))
    return False


def serve(
    model: str | Path, limits: Limits | None = None, *, host: str = "127.0.0.1", port: int = 7860, device: str = "auto",
    root_path: str = "",
) -> None:  # fmt: skip
    """Run the page until it is interrupted; see `prepare_server`."""
    share_heaps()
    if threading.current_thread() is threading.main_thread():
        # uvicorn finishes the requests in progress and raises the signal again: then, too, the folder must be deleted.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with prepare_server(model, limits, host=host, port=port, device=device, root_path=root_path) as (
        server,
        listener,
        _,
    ):
        print(f"the page: {address(listener)}  (stop it with Ctrl-C)", flush=True)
        if host not in ("127.0.0.1", "::1", "localhost"):
            print(f"listening on {printable(host)}: whoever reaches this machine can use the page", flush=True)
        server.run(sockets=[listener])


def address(listener: socket.socket) -> str:
    """Return the URL of the page."""
    host, port = str(listener.getsockname()[0]), listener.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
