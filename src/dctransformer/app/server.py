"""The web server: where it listens, what it refuses, and how it ends.

What holds for uploads: they are never executed; Gradio writes one to a private folder (in memory where the system has
such), from which it is deleted as soon as it has been read; what nobody asked to read goes after five minutes, and the
folder when the server ends.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dctransformer.app.limits import Limits

FORM_BYTES = 1_000_000
"""What a request may have besides the file."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; object-src 'none'"
)
"""The browser loads from this server alone: the page works without a network, and tells nobody anything."""


def require_gradio() -> None:
    """Raise ValueError if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the web page needs Gradio; install it with: pip install 'dctransformer[app]'")


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    Args:
        host: address or name of this machine; 127.0.0.1 is reached from this machine alone.
        port: 0 for any that is free.

    Raises:
        ValueError: it is in use, not allowed, or not one of this machine's.
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


class Guard:
    """Refuses requests that are too large, and tells the browser to load from nowhere else (ASGI middleware)."""

    def __init__(self, app: Any, max_bytes: int):
        """``app`` is the application behind, ``max_bytes`` the most that a request may hold."""
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            if not length.isdigit():
                await _refuse(send, 411, "say how long the request is (Content-Length)")
                return
            if int(length) > self.max_bytes:
                await _refuse(send, 413, "File size exceeded maximum allowed size: shrink the picture first")
                return

        async def send_on(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
                        (b"referrer-policy", b"no-referrer"))  # fmt: skip
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self.app(scope, receive, send_on)


async def _refuse(send: Any, status: int, text: str) -> None:
    body = text.encode()
    await send({
        "type": "http.response.start", "status": status,
        "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()),
                    (b"connection", b"close")],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can enter, in memory where the system has such; deleted at the end."""
    memory = "/dev/shm"
    place = memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dctransformer-app-", dir=place) as folder:
        yield Path(folder)


@contextlib.contextmanager
def prepared(
    model: str | Path, limits: Limits | None = None, *, host: str = "127.0.0.1", port: int = 7860, device: str = "auto",
    root_path: str = "",
) -> Iterator[tuple[Any, socket.socket, Any]]:  # fmt: skip
    """A server that is ready to run, with its port taken.

    Args:
        model: a run folder, a saved model's folder, a hub id, or shipped weights.
        limits: on what is taken on.
        host: where to listen.
        port: 0 for any that is free.
        device: cpu, cuda, … or auto.
        root_path: under which a proxy shows the page, say ``/flowers``.

    Yields:
        A ``uvicorn.Server``, the socket to run it on (``server.run(sockets=[socket])``), and its `Studio`.

    Raises:
        ValueError: Gradio is missing, the port is in use, or there is no such model.
    """
    require_gradio()
    limits = limits or Limits()
    with contextlib.closing(listen(host, port)) as taken, private_folder() as folder:
        from dctransformer.app.handlers import Studio
        from dctransformer.tasks.generate import loaded

        network = loaded(model, device)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)

        import fastapi
        import gradio
        import uvicorn
        from gradio.themes import Default

        from dctransformer.app.page import FOLDER, build

        studio = Studio(network, str(model), limits)
        page = build(studio)
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None), page, path="/", server_name=host, server_port=taken.getsockname()[1],
            footer_links=[], run_history=False, root_path=root_path or None, allowed_paths=[], show_error=True,
            max_file_size=int(limits.max_megabytes * 1e6), ssr_mode=False, enable_monitoring=False, pwa=False,
            mcp_server=False, css_paths=[FOLDER / "style.css"],
            head=f"<script>{(FOLDER / 'brush.js').read_text(encoding='utf-8')}</script>",
            theme=Default(
                primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
        )  # fmt: skip
        guarded = Guard(app, int(limits.max_megabytes * 1e6) + FORM_BYTES)
        settings = uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=2)
        yield uvicorn.Server(settings), taken, studio


def serve(
    model: str | Path, limits: Limits | None = None, *, host: str = "127.0.0.1", port: int = 7860, device: str = "auto",
    root_path: str = "",
) -> None:  # fmt: skip
    """Run the page until it is interrupted; see `prepared`."""
    if threading.current_thread() is threading.main_thread():
        # uvicorn finishes what is under way and raises the signal again; so that the folder is deleted then, too:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with prepared(model, limits, host=host, port=port, device=device, root_path=root_path) as (server, taken, _):
        print(f"the page: {address(taken)}  (stop it with Ctrl-C)", flush=True)
        if host not in ("127.0.0.1", "::1", "localhost"):
            print(f"listening on {host}: whoever reaches this machine can use the page", flush=True)
        server.run(sockets=[taken])


def address(taken: socket.socket) -> str:
    """What to type into a browser."""
    host, port = str(taken.getsockname()[0]), taken.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
