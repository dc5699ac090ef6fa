"""Tests of the web app under attack over real connections: paths, host names, origins, sizes and files."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from app_server import Client, running
from dctransformer.app import guard, intake, server, visitors
from dctransformer.app.guard import Hosts, public_path
from dctransformer.app.limits import Limits
from dctransformer.app.server import share_heaps
from dctransformer.app.shelf import Shelf
from dctransformer.app.uploads import Upload
from dctransformer.app.visitors import Presence
from dctransformer.codec import read_jpeg_bytes
from pictures import photo, pillow_jpeg
from test_app import downloads
from tiny_model import save_tiny_model

SETTINGS = ["", 3, 1, 1, 0, 1]
"""Class, seed, pictures, temperature, min-p, guidance."""


CONNECTIONS = 30


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of an app with a tiny model."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    limits = Limits(max_megabytes=1, max_megapixels=2, max_side=64, queue=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "VISITOR_CONNECTIONS", CONNECTIONS)
        patch.setattr(server, "REQUEST_SECONDS", 2)
        with running(folder, limits) as (url, _):
            yield Client(url)


def result(client: Client, fn_index: int, data: list[Any], session: str) -> str:
    """Run a job, and return what the page shows at its end."""
    for _ in range(300):  # jobs per address are limited: those of previous tests may have to end first
        status, answer = client.join(fn_index, data, session)
        if status != 503:
            break
        time.sleep(0.1)
    assert status == 200, answer
    done = [message for message in client.results(session) if message["msg"] == "process_completed"]
    return str(done[0]["output"]["data"][0])


def test_an_upload_can_be_worked_on(client: Client) -> None:
    """A picture uploaded as by the page's script can be edited, and its coefficients are preserved."""
    data = pillow_jpeg(photo(48, 48), 30)
    status, answer = client.upload("colorize", data)
    assert status == 200 and "own coefficients" in answer["shown"]
    html = result(client, client.endpoint("colorize")["id"], [answer["picture"], *SETTINGS], "work")
    assert (downloads(html)[0].luma == read_jpeg_bytes(data).luma).all()


# Paths ----------------------------------------------------------------------------------------------------------------


def test_no_endpoint_takes_a_path(client: Client, tmp_path: Path) -> None:
    """No field of any endpoint accepts a path, to a picture or an endless file, via the queue or directly."""
    secret = tmp_path / "secret.png"
    Image.fromarray(photo(32, 32)).save(secret)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    endpoints = client.endpoints()
    assert len(endpoints) > 20
    for path in (str(secret), "/dev/zero", str(pipe)):
        for value in (
            {"path": path, "meta": {"_type": "gradio.FileData"}},
            {"path": path, "orig_name": "a.png", "url": f"file://{path}", "meta": {"_type": "gradio.FileData"}},
            [{"path": path, "meta": {"_type": "gradio.FileData"}}],
        ):
            for endpoint in endpoints if path == str(secret) else endpoints[-3:]:
                count = len(endpoint["inputs"])
                for data in ([value] * count, [value, *[None] * (count - 1)]):
                    status, answer = client.join(endpoint["id"], data, "paths")
                    assert status == 400 and "no files" in answer["detail"]
            form = {"data": [value], "fn_index": endpoints[-1]["id"], "session_hash": "paths"}
            for address in ("run/predict", "api/predict", f"run/{endpoints[-1]['api_name']}", "call/safely",
                            "call/v2/safely", "component_server", "component_server/"):  # fmt: skip
                assert client.ask("POST", f"/gradio_api/{address}", form)[0] == 404
    for endpoint in endpoints:  # a path as plain text is not the id of a picture
        if len(endpoint["inputs"]) in (7, 8) and endpoint["outputs"] != client.endpoint("generate")["outputs"]:
            rest = SETTINGS if len(endpoint["inputs"]) == 7 else [2, *SETTINGS]
            assert "no longer kept here" in result(client, endpoint["id"], [str(secret), *rest], "words")


def test_no_address_gives_files(client: Client, tmp_path: Path) -> None:
    """Gradio's routes that read, fetch or accept files are not reachable."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for address in (
        f"/gradio_api/file={secret}", f"/gradio_api/file/{secret}", f"/file={secret}", "/gradio_api/proxy=http://a.example/",
        "/gradio_api/upload", "/gradio_api/upload_progress?upload_id=1", "/gradio_api/call/safely/1", "/monitoring",
        "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/deep_link", "/gradio_api/custom_component/1/a/b/c",
        "/static/../../../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets//etc/passwd",
        "/assets/..%2f..%2f..%2fetc/passwd", "/gradio_api/vibe-code", "/docs", "/openapi.json", "/login",
    ):  # fmt: skip
        status, _, answer = client.ask("GET", address)
        assert status in (403, 404) and b"root:" not in answer and answer != b"secret", address
    for address in ("/gradio_api/upload", "/gradio_api/process_recording", "/gradio_api/vibe-edit", "/login", "/"):
        assert client.ask("POST", address, b"", {"Content-Type": "multipart/form-data; boundary=x"})[0] == 404


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"[" * 50_000, {"Content-Type": "application/json"}, 400),
        (b"[]", {"Content-Type": "application/json"}, 400),
        (b"\xff\xfe", {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {}, 415),
        (b'{"data": [[[1]]]}', {"Content-Type": "application/json"}, 400),
        (b'{"data": [1], "event_data": {"path": "/dev/zero"}}', {"Content-Type": "application/json"}, 400),
        (b" " * (guard.FORM_BYTES + 1), {"Content-Type": "application/json"}, 413),
    ],
)
def test_malformed_forms_are_refused(client: Client, data: bytes, headers: dict, status: int) -> None:
    """Malformed forms are refused before Gradio reads them."""
    assert client.ask("POST", "/gradio_api/queue/join", data, headers)[0] == status


# Other names and other sites ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "203.0.113.5", "", "a b"]
)
def test_other_names_get_no_answer(client: Client, host: str) -> None:
    """Requests with a foreign host name (DNS rebinding) can neither read nor send."""
    for method, path in (("GET", "/"), ("GET", "/config"), ("GET", "/gradio_api/queue/data?session_hash=a"),
                         ("POST", "/gradio_api/queue/join"), ("POST", "/pictures/colorize")):  # fmt: skip
        status, headers, answer = client.ask(method, path, b"x" if method == "POST" else None, {"Host": host})
        assert status == 403 and b"does not answer to the name" in answer
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert client.ask("GET", "/", headers={"X-Forwarded-Host": "evil.example"})[0] == 403
    assert client.ask("GET", "/", headers={"Host": f"localhost:{client.port}"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "file://"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_other_sites_can_send_nothing(client: Client, headers: dict[str, str]) -> None:
    """Foreign origins can send no form or upload and read no queue, and no CORS header allows it."""
    data = pillow_jpeg(photo(32, 32), 80)
    for method, path in (
        ("POST", "/pictures/colorize"), ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/cancel"),
        ("GET", "/gradio_api/queue/data?session_hash=a"), ("GET", "/gradio_api/heartbeat/a"), ("GET", "/config"),
        ("OPTIONS", "/gradio_api/queue/join"),
    ):  # fmt: skip
        status, answer, _ = client.ask(method, path, data if method == "POST" else None, headers)
        assert status == 403 and not [name for name in answer if name.startswith("access-control")]


def test_own_pages_and_links_get_answers(client: Client) -> None:
    """Requests of the page itself and visits by links are served, and Gradio's CORS headers are removed."""
    origin = f"http://127.0.0.1:{client.port}"
    status, headers, _ = client.ask("GET", "/config", headers={"Origin": origin, "Sec-Fetch-Site": "same-origin"})
    assert status == 200 and not [name for name in headers if name.startswith("access-control")]
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    status, headers, _ = client.ask("GET", "/", headers=link)
    assert status == 200 and headers["x-frame-options"] == "DENY"
    assert client.ask("GET", "/", headers={**link, "Sec-Fetch-Dest": "iframe"})[0] == 403
    assert client.ask("GET", "/config", headers=link)[0] == 403
    assert client.ask("OPTIONS", "/config")[0] == 405


def test_websockets_are_refused() -> None:
    """Websockets are refused from every origin."""
    sent = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "headers": [(b"host", b"localhost")], "path": "/"}
    asyncio.run(guard.Guard(None, Hosts("127.0.0.1"), 100)(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_names_that_a_server_answers_to() -> None:
    """Accepted host names are loopback, the address it listens on (any, for all addresses) and the proxy's name."""
    local = Hosts("127.0.0.1", "127.0.0.1")
    assert all(map(local.allow, ("127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST.", "127.1.2.3")))
    assert not any(map(local.allow, ("192.0.2.7", "example.org", "[2001:db8::1]", "", "localhost:x", "a@localhost")))
    everywhere = Hosts("0.0.0.0", "0.0.0.0")
    assert all(map(everywhere.allow, ("192.0.2.7:80", "[2001:db8::1]", socket.gethostname())))
    assert not everywhere.allow("example.org")
    named = Hosts("mybox", "192.0.2.7", "example.org")
    assert all(map(named.allow, ("mybox:7860", "192.0.2.7", "example.org", "Example.Org:443", "localhost")))
    assert not named.allow("192.0.2.8")
    assert named.same_origin("https://example.org", "127.0.0.1:7860")
    assert not named.same_origin("https://example.org.evil.example", "example.org")
    assert named.same_origin("http://mybox", "mybox:80") and not named.same_origin("http://mybox", "mybox:81")


@pytest.mark.parametrize(
    ("given", "path", "name"),
    [
        ("", "", ""), ("/", "", ""), ("flowers", "/flowers", ""), ("/flowers", "/flowers", ""),
        ("/flowers/", "/flowers", ""), ("a/b", "/a/b", ""),
        ("https://example.org/flowers/", "https://example.org/flowers", "example.org"),
        ("https://Example.org", "https://example.org", "example.org"),
        ("http://example.org:8080/a", "http://example.org:8080/a", "example.org"),
    ],
)  # fmt: skip
def test_root_paths_may_have_slashes_or_be_urls(given: str, path: str, name: str) -> None:
    """The root path may have slashes or be a full URL."""
    assert public_path(given) == (path, name)


@pytest.mark.parametrize(
    "given", ["a b", "/a?b", "/a#b", "//a//b", "../a", "ftp://a/b", "https:///a", "https://a:x/", "https://u:p@a/", "é"]
)
def test_invalid_root_paths_are_refused(given: str) -> None:
    """An invalid root path is refused before anything is loaded."""
    with pytest.raises(ValueError, match="is neither a path"):
        public_path(given)


def test_the_page_under_a_path(tmp_path: Path) -> None:
    """Under a root path, the page is served to the proxy and its visitors, and its script calls that path."""
    with running(save_tiny_model(tmp_path), Limits(), root_path="https://example.org/flowers/") as (url, _):
        client = Client(url)
        headers = {"Host": "example.org", "Origin": "https://example.org", "Sec-Fetch-Site": "same-origin"}
        status, _, answer = client.ask("GET", "/", headers={**headers, "Host": "www.example.org:443"})
        assert status == 403 and b"--root-path https://www.example.org (" in answer
        assert client.ask("GET", "/", headers={**headers, "Origin": "https://www.example.org"})[0] == 403
        assert client.ask("GET", "/", headers=headers)[0] == 200
        assert json.loads(client.ask("GET", "/config", headers=headers)[2])["root"] == "https://example.org/flowers"


# Sizes ----------------------------------------------------------------------------------------------------------------


def raw(client: Client, request: bytes) -> bytes:
    """Send raw bytes, and return the response until the server closes the connection."""
    with socket.create_connection((client.host, client.port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_uploads_have_bounds(client: Client) -> None:
    """Too large uploads are refused at once, whether or not they declare a length, also in tiny chunks."""
    status, _, answer = client.ask("POST", "/pictures/colorize", headers={"Content-Length": "1000001"})
    assert status == 413 and b"1,000,000 is the limit" in answer
    start = b"POST /pictures/colorize HTTP/1.1\r\nHost: localhost\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert raw(client, start + chunked).split()[1] == b"411"
    assert raw(client, start + b"Content-Length: 9\r\n" + chunked).split()[1] in (b"400", b"411")
    assert raw(client, start + b"Content-Length: 9\r\nContent-Length: 8\r\n\r\n").split()[1] == b"400"
    assert client.upload("colorize", b"")[1]["shown"].count("The file is empty") == 1
    assert client.upload("nothing", b"x")[0] == 404


def test_what_arrives_is_counted() -> None:
    """The limit applies to the bytes received, whatever length was declared."""
    messages = [{"type": "http.request", "body": b"x" * 60, "more_body": True}] * 5

    async def receive() -> dict:
        return messages.pop()

    with pytest.raises(guard.Refused, match="limit, 100"):
        asyncio.run(guard.body(receive, 100, 5))
    assert len(messages) == 3

    async def never() -> dict:
        await asyncio.sleep(9)
        return {}

    with pytest.raises(guard.Refused, match="did not arrive"):
        asyncio.run(guard.body(never, 100, 0.01))


def test_upload_memory_is_limited_and_returned() -> None:
    """Memory for uploads is limited in total and per visitor, and is returned after timeouts and broken connections."""

    async def scene() -> None:
        room = intake.Room(100, 60, wait=0.1)
        async with room.lend("a", 60):
            with pytest.raises(guard.Refused, match="try again in a minute"):
                async with room.lend("a", 1):
                    pass
            async with room.lend("b", 40):
                with pytest.raises(guard.Refused):
                    async with room.lend("c", 1):
                        pass
            with pytest.raises(KeyError):
                async with room.lend("b", 40):
                    raise KeyError
            async with room.lend("c", 40):
                pass
        assert not room.lent

    asyncio.run(scene())


def test_pictures_are_kept_within_bounds() -> None:
    """A visitor's oldest pictures are dropped first, then the oldest of all; old ones expire; ids can't be guessed."""
    now = [0.0]
    shelf = Shelf(100_000, 50_000, seconds=60, clock=lambda: now[0])
    picture = Upload(np.zeros((1, 1, 3), np.uint8), np.zeros((60, 100, 3), np.uint8))  # 20,000 bytes
    first, second = shelf.put(picture, "a"), shelf.put(picture, "a")
    assert shelf.get(first) is picture and shelf.get("") is None
    shelf.put(picture, "a")
    with pytest.raises(ValueError, match="no longer kept here; choose it again"):
        shelf.get(second)  # the first was used since
    for visitor in "bcde":
        shelf.put(picture, visitor)
    assert shelf.bytes() <= 100_000 and shelf.bytes("a") == 20_000
    shelf.fix("example", picture)
    now[0] = 61
    with pytest.raises(ValueError, match="choose it again"):
        shelf.get(first)
    assert shelf.bytes() == 0 and shelf.get("example") is picture


# Others meanwhile -----------------------------------------------------------------------------------------------------


def test_a_visitor_with_many_files_keeps_nobody_else_waiting(client: Client) -> None:
    """Files of one visitor are read one at a time, so that a reader is left for others."""
    large = io.BytesIO()
    Image.new("L", (1400, 1400)).save(large, "PNG")
    threads = [threading.Thread(target=client.upload, args=("inspect", large.getvalue())) for _ in range(12)]
    for thread in threads:
        thread.start()
    other = Client(f"http://{client.host}:{client.port}", source="127.0.0.2")
    assert other.upload("colorize", pillow_jpeg(photo(48, 48), 90))[0] == 200
    assert any(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()


def test_abandoned_jobs_are_cancelled() -> None:
    """Without a listener only the final message is kept, and the job is cancelled after a while."""
    now = [0.0]
    presence = Presence(grace=10, clock=lambda: now[0])
    done = []

    def work() -> Iterator[str]:
        try:
            for i in range(5):
                yield str(i)
                now[0] += 4
        finally:
            done.append(now[0])

    presence.opened("tab")
    assert list(presence.pass_on("tab", work())) == ["0", "1", "2", "3", "4"]
    job = presence.pass_on("tab", work())
    assert next(job) == "0" and done.pop() == 20
    presence.closed("tab")
    assert list(job) == [] and done.pop() == 20 + 12  # not 20 + 20
    assert list(presence.pass_on("never heard of", work())) == [] and not done  # not even begun


def test_a_visitor_gets_a_part_of_the_queue(client: Client) -> None:
    """A visitor may hold three of four places, and abandoned jobs are cancelled for the next visitor."""
    inspect = client.endpoints()[-1]
    other = Client(f"http://{client.host}:{client.port}", source="127.0.0.2")
    picture = client.upload("inspect", pillow_jpeg(photo(48, 48), 90))[1]["picture"]
    answers = [client.join(inspect["id"], [picture, ""], f"tab{i}") for i in range(8)]
    refused = [answer["detail"] for status, answer in answers if status == 503]
    assert refused and all("jobs from your address are under way or waiting already" in detail for detail in refused)
    status, answer = other.join(inspect["id"], ["", ""], "other")
    assert status == 200, answer
    done = [message for message in other.results("other") if message["msg"] == "process_completed"]
    assert "Choose a picture first" in done[0]["output"]["data"][0]


def test_a_burst_of_clicks_gets_no_larger_part_of_the_queue() -> None:
    """Jobs count as soon as they are admitted, not when Gradio has queued them."""

    class Messages(dict):
        max_size = 0

    queued: list[SimpleNamespace] = []
    queue = SimpleNamespace(
        pending_messages_per_session=Messages(), active_jobs=[None],
        event_queue_per_concurrency_id={"model": SimpleNamespace(queue=queued)},
    )  # fmt: skip
    scope = {
        "type": "http", "method": "POST", "path": "/gradio_api/queue/join", "client": ("192.0.2.1", 1), "headers": [
            (b"host", b"localhost"), (b"content-length", b"26"), (b"content-type", b"application/json"),
        ],
    }  # fmt: skip

    async def app(scope: dict, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        queued.append(SimpleNamespace(request=SimpleNamespace(scope=scope)))

    async def receive() -> dict:
        return {"type": "http.request", "body": b'{"session_hash": "session"}'}

    async def send(message: dict) -> None:
        pass

    async def burst() -> None:
        guarded = guard.Guard(app, Hosts("127.0.0.1"), 100, line=visitors.Line(queue, 4))
        await asyncio.gather(*(guarded(scope, receive, send) for _ in range(8)))

    asyncio.run(burst())
    assert len(queued) == 3


def test_unread_messages_do_not_accumulate() -> None:
    """A client that does not read its messages receives only the final one."""
    presence = Presence()
    presence.opened("tab")
    unread: list[str] = []
    presence.unread = lambda session: len(unread)
    for html in presence.pass_on("tab", map(str, range(100))):
        unread.append(html)
    assert unread == [*map(str, range(visitors.UNREAD)), "99"]


def test_a_visitor_gets_a_part_of_the_connections(client: Client) -> None:
    """Connections above the limit and silent ones are closed; other visitors can still connect."""
    with contextlib.ExitStack() as stack:
        other = Client(f"http://{client.host}:{client.port}", source="127.0.0.2")
        idle = []
        for _ in range(CONNECTIONS + 3):
            idle.append(stack.enter_context(socket.create_connection((client.host, client.port), timeout=10)))
        idle[0].sendall(b"GET / HTTP/1.1\r\nHost: ")
        for connection in idle[CONNECTIONS:]:
            assert connection.recv(1) == b""
        assert other.ask("GET", "/config")[0] == 200
        for connection in idle[:CONNECTIONS]:
            assert connection.recv(1) == b""
        assert client.ask("GET", "/config")[0] == 200


def test_a_visitor_gets_a_part_of_the_answers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests above the limit are refused, per IPv6 network too; other visitors are still served."""
    monkeypatch.setattr(guard, "REQUESTS", 2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = http.client.HTTPConnection(client.host, client.port, timeout=10)
            stack.callback(connection.close)
            connection.request("GET", "/gradio_api/heartbeat/tab")
            assert connection.getresponse().status == 200
        assert client.ask("GET", "/config")[0] == 503
        assert Client(f"http://{client.host}:{client.port}", source="127.0.0.2").ask("GET", "/config")[0] == 200


def test_a_visitor_is_an_address_or_a_network() -> None:
    """A visitor is an IPv4 address or an IPv6 /64 network."""
    names = [visitors.visitor({"client": (a, 1)}) for a in ("2001:db8::1", "2001:db8::2:3", "2001:db8:0:1::1")]
    assert names[0] == names[1] != names[2]
    for address in ("192.0.2.1", "::ffff:192.0.2.1", "unknown", ""):
        assert visitors.visitor({"client": (address, 1)}) == address.removeprefix("::ffff:")
    assert visitors.visitor({"client": None}) == ""


@pytest.mark.parametrize("session", ["", "a" * 65, "a b", "../x"])
def test_invalid_session_ids_are_refused(client: Client, session: str) -> None:
    """Invalid session ids are refused, as long ones would occupy memory."""
    assert client.join(client.endpoints()[0]["id"], SETTINGS, session)[0] == 400
    assert client.ask("GET", f"/gradio_api/queue/data?session_hash={session.replace(' ', '+')}")[0] == 400


def test_visitors_take_turns() -> None:
    """Visitors alternate in the queue, and each visitor's own order is preserved."""

    def job(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, request=SimpleNamespace(scope={"client": (name[0], 1)}))

    waiting = SimpleNamespace(queue=[job(name) for name in ("a1", "a2", "a3", "b1", "a4", "b2", "c1")])
    queue = SimpleNamespace(
        pending_messages_per_session=SimpleNamespace(max_size=0), event_queue_per_concurrency_id={"model": waiting}
    )
    visitors.Line(queue, 16).take_turns()
    assert [event.name for event in waiting.queue] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


@pytest.mark.parametrize(
    "form", [{"fn_index": 10**6}, {"fn_index": "0"}, {"fn_index": True}, {"data": []}, {"data": 3}]
)
def test_forms_that_the_page_lacks_are_refused(client: Client, form: dict) -> None:
    """Unknown forms, and forms with too few values, are refused."""
    endpoint = client.endpoints()[0]
    good = {"data": [None] * len(endpoint["inputs"]), "fn_index": endpoint["id"], "session_hash": "tab"}
    status, _, answer = client.ask("POST", "/gradio_api/queue/join", {**good, **form})
    assert status == 400 and b"no form of the page" in answer


def test_any_values_are_answered_in_the_page(client: Client, capfd: pytest.CaptureFixture) -> None:
    """Any values are answered with a sentence, without a traceback in the log."""
    for number, endpoint in enumerate(client.endpoints()[:1] + client.endpoints()[-1:]):
        for value in ("/etc/passwd", -1e300, True, None):
            html = result(client, endpoint["id"], [value] * len(endpoint["inputs"]), f"any{number}")
            assert "dct-error" in html and "went wrong" not in html
    assert "Traceback" not in capfd.readouterr().err


def test_threads_share_heaps_where_the_allocator_allows_it() -> None:
    """Under glibc, threads share heaps; other allocators are left unchanged."""
    assert share_heaps() is (platform.libc_ver()[0] == "glibc")
