"""A web app that runs in a thread, and a client for it, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dctransformer.app import server
from dctransformer.app.handlers import Studio
from dctransformer.app.limits import Limits


@contextlib.contextmanager
def running(folder: Path, limits: Limits, **options: Any) -> Iterator[tuple[str, Studio]]:
    """Run a server in a thread, and yield its address and its `Studio`."""
    with server.prepare_server(folder, limits, port=0, device="cpu", **options) as (uvicorn_server, sockets, studio):
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [sockets]})
        thread.start()
        try:
            while not uvicorn_server.started:
                time.sleep(0.01)
            yield server.address(sockets), studio
        finally:
            uvicorn_server.should_exit = True
            thread.join()


class Client:
    """A client that sends requests to the app, valid or not."""

    def __init__(self, url: str, source: str = "127.0.0.1", timeout: float = 30):
        """Create a client that connects from the loopback address ``source``."""
        parts = urlsplit(url)
        self.host, self.port, self.source, self.timeout = str(parts.hostname), parts.port, source, timeout

    def ask(
        self, method: str, path: str, data: bytes | dict | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request, and return status, headers and body of the response."""
        given = dict(headers or {})
        if isinstance(data, dict):
            data = json.dumps(data).encode()
            given.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(
            self.host, self.port, timeout=self.timeout, source_address=(self.source, 0)
        )
        with contextlib.closing(connection):
            connection.request(method, path, data, given)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def upload(self, task: str, data: bytes) -> tuple[int, dict[str, str]]:
        """Upload a file, and return the status and the body of the response."""
        status, _, answer = self.ask("POST", f"/pictures/{task}", data)
        return status, json.loads(answer)

    def endpoints(self) -> list[dict[str, Any]]:
        """The server functions that the buttons of the page call."""
        config = json.loads(self.ask("GET", "/config")[2])
        return [dependency for dependency in config["dependencies"] if dependency["backend_fn"]]

    def endpoint(self, task: str) -> dict[str, Any]:
        """The server function that the main button of a tab calls."""
        config = json.loads(self.ask("GET", "/config")[2])
        (out,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == f"{task}-out"]
        return next(d for d in config["dependencies"] if d["backend_fn"] and d["outputs"] == [out])

    def join(self, fn_index: int, data: list[Any], session: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """Send a form to the queue, and return the status and the body of the response."""
        form = {"data": data, "fn_index": fn_index, "session_hash": session, "event_data": None, "trigger_id": None}
        status, _, answer = self.ask("POST", "/gradio_api/queue/join", {**form, **more})
        return status, json.loads(answer)

    def results(self, session: str) -> list[dict[str, Any]]:
        """Read messages of the queue until all jobs of a session are finished."""
        connection = http.client.HTTPConnection(
            self.host, self.port, timeout=self.timeout, source_address=(self.source, 0)
        )
        messages = []
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"data: "):
                    messages.append(json.loads(line[6:]))
                    if messages[-1]["msg"] == "close_stream":
                        break
        return messages
