"""The web server's filter: which host names, origins, addresses and sizes of requests it answers (ASGI middleware).

Gradio serves many more addresses than the page uses, reads files that a request names, and lets every web site that
calls itself by the server's name use it. So only what the page uses gets through, and only as plain values.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dctransformer.app.visitors import Line, Presence, counting, visitor

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

FORM_BYTES = 100_000
"""Most bytes of a request that is not an upload: a few numbers and words, and the squares of a mask."""

FORM_SECONDS = 20
"""How long such a request may take to arrive."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; object-src 'none'; frame-ancestors 'none'"
)
"""The browser loads from this server alone, and no other site shows the page in a frame."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
)
"""Headers of every answer. No answer has one that lets other sites read it (CORS)."""

PICTURES = re.compile(r"/pictures/[a-z]+")
"""Where pictures are uploaded to."""

READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(?:static|assets|svelte)/[\w./-]+"
    r"|/gradio_api/(?:theme\.css|startup-events|info|queue/data|heartbeat/\w{1,64})|/pictures/[a-z]+/\d+"
)
"""Addresses of the page that are read. Gradio's /file, /proxy and /stream are not among them."""

WRITTEN = re.compile(r"/gradio_api/(?:queue/join|cancel|reset)")
"""Addresses of the page that forms are sent to. Gradio's /upload, /run, /call and /component_server are not."""


SESSION = re.compile(r"\w{1,64}", re.ASCII)
"""Names of browser tabs."""

REQUESTS = 100
"""Most requests of one visitor that are being answered at a time; a browser tab has two while it waits for a result."""


class Hosts:
    """Names and addresses by which the page may be called.

    A web site whose name is made to point at this machine (DNS rebinding) is known by that name. Addresses can't be
    made to point elsewhere, so a server that listens on all of its addresses may be called by any.
    """

    def __init__(self, bound: str, address: str = "", public: str = ""):
        """Allow the loopback address, the addresses that the server listens on, and the proxy's name.

        Args:
            bound: name or address that the server was started with.
            address: the address that this name has.
            public: name under which a proxy shows the page; empty if there is none.
        """
        self.bound, self.public = bound, public.lower()
        self.names = {"localhost", bound.lower(), self.public} - {""}
        self.addresses = {ip for ip in (_ip(bound), _ip(address)) if ip is not None}
        self.anywhere = any(ip.is_unspecified for ip in self.addresses)
        if self.anywhere:
            name = socket.gethostname().lower()
            self.names |= {name, f"{name}.local"}

    def allow(self, host: str) -> bool:
        """Return whether a Host header, with or without a port, names this page."""
        name = _name(host)
        if name is None:
            return False
        ip = _ip(name)
        if ip is None:
            return name in self.names
        return ip.is_loopback or ip in self.addresses or self.anywhere

    def same_origin(self, origin: str, host: str) -> bool:
        """Return whether an Origin header is the page's own, given the request's Host header."""
        try:
            parts = urlsplit(origin)
            default = {"http": 80, "https": 443}.get(parts.scheme)
            port = parts.port or default
        except ValueError:
            return False
        if default is None or not parts.hostname:
            return False
        if self.public and parts.hostname == self.public:  # the proxy may call the server by another name
            return True
        match = re.fullmatch(r"(.*?)(?::(\d+))?", host, re.DOTALL)
        assert match is not None
        return parts.hostname == _name(host) and port == int(match[2] or default)


def _name(host: str) -> str | None:
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+?)\.?(?::\d{1,5})?", host.lower())
    return match[1].strip("[]") if match else None


def _ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def public_path(root_path: str) -> tuple[str, str]:
    """Split the address at which a proxy shows the page into a path for Gradio and the proxy's name.

    Args:
        root_path: ``flowers``, ``/flowers``, ``/flowers/`` or ``https://example.org/flowers``; empty without a proxy.

    Returns:
        ``/flowers`` or ``https://example.org/flowers`` (empty for the root of a server), and ``example.org`` or
        nothing.

    Raises:
        ValueError: it is neither a path nor an address.
    """
    wrong = ValueError(f"root-path {root_path!r} is neither a path such as /flowers nor https://example.org/flowers")
    scheme, name, path = "", "", root_path
    if "://" in root_path:
        try:
            parts = urlsplit(root_path)
            scheme, name, path = parts.scheme.lower(), parts.netloc.lower(), parts.path
            host = parts.hostname or ""
            _ = parts.port
        except ValueError:
            raise wrong from None
        if scheme not in ("http", "https") or parts.query or parts.fragment or _name(name) != host or not host:
            raise wrong
    path = path.strip("/")
    if not re.fullmatch(r"[\w.~/-]*", path, re.ASCII) or any(p in ("", ".", "..") for p in path.split("/") if path):
        raise wrong
    path = f"/{path}" if path else ""
    return (f"{scheme}://{name}{path}", host) if name else (path, "")


class Guard:
    """Refuses what the page does not use, what comes from other web sites, and what is too large."""

    def __init__(
        self, app: Any, hosts: Hosts, max_bytes: int, presence: Presence | None = None,
        line: Line | None = None, forms: Mapping[int, int] | None = None,
    ):  # fmt: skip
        """Wrap an application.

        Args:
            app: the application that gets the requests which pass.
            hosts: names and addresses by which the page may be called.
            max_bytes: most that an upload may hold.
            presence: is notified of browsers that listen to their jobs.
            line: the queue of jobs; None for no bounds.
            forms: how many values each form has, by its number; None if that is not to be checked.
        """
        self.app, self.hosts, self.max_bytes, self.line, self.forms = app, hosts, max_bytes, line, forms
        self.presence = presence or Presence()
        self._answering: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection: refuse it, or pass it on to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # the page has none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = visitor(scope)
        if self._answering[who] >= REQUESTS:
            await refuse(send, 503, f"{REQUESTS} requests from your address are being answered; try again in a minute")
            return
        with counting(self._answering, who):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_sender(scope)
            if scope["method"] == "POST":
                self._check_length(scope)
                if not PICTURES.fullmatch(scope["path"]):
                    scope, receive = await self._form(scope, receive)
        except Refused as refusal:
            await refuse(send, refusal.status, str(refusal))
            return

        async def send_on(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [
                    (name, value) for name, value in message.get("headers", ())
                    if not name.lower().startswith(b"access-control-")
                ]  # fmt: skip
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        if scope["path"] != "/gradio_api/queue/data":
            if not scope["path"].endswith("/join") or self.line is None:
                await self.app(scope, receive, send_on)
                return
            with self.line.arriving(visitor(scope)):
                await self.app(scope, receive, send_on)
            self.line.take_turns()
            return
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        if not SESSION.fullmatch(session):
            await refuse(send, 400, "this is no session of the page")
            return
        self.presence.opened(session)
        try:
            await self.app(scope, receive, send_on)
        finally:
            self.presence.closed(session)

    def _check_sender(self, scope: Scope) -> None:
        """Refuse other names, other web sites and addresses that the page does not use."""
        method, path = scope["method"], scope["path"]
        (host,) = hosts if len(hosts := _values(scope, b"host")) == 1 else ("",)
        for name in (host, *_values(scope, b"x-forwarded-host")):
            if not self.hosts.allow(name):
                shown = _name(name) or "NAME"
                raise Refused(
                    403, f"this page does not answer to the name {name[:100]!r}; if a proxy shows it under that name, "
                    f"start it with: dctransformer app --root-path https://{shown[:100]} (and its path, if any)"
                )  # fmt: skip
        origins = _values(scope, b"origin")
        foreign = any(not self.hosts.same_origin(origin, host) for origin in origins)
        site = _values(scope, b"sec-fetch-site")
        if any(value not in ("same-origin", "none") for value in site):
            # Links from other sites may lead to the page; no other request from there gets an answer.
            visit = method == "GET" and path == "/" and _values(scope, b"sec-fetch-mode") == ["navigate"]
            foreign |= not visit or _values(scope, b"sec-fetch-dest") != ["document"]
        if foreign:
            raise Refused(
                403, "only the page itself may send this; if a proxy shows it, start it with: dctransformer app "
                "--root-path https://NAME, the address that visitors see (and its path, if any)"
            )  # fmt: skip
        known = {"GET": READ, "HEAD": READ, "POST": re.compile(f"{WRITTEN.pattern}|{PICTURES.pattern}")}.get(method)
        if known is None:
            raise Refused(405, f"the page has no use for {method[:20]} requests")
        if not known.fullmatch(path) or ".." in path:
            raise Refused(404, "the page has no such address")

    def _check_length(self, scope: Scope) -> None:
        lengths = _values(scope, b"content-length")
        if len(lengths) != 1 or not re.fullmatch(r"\d{1,12}", lengths[0], re.ASCII):
            raise Refused(411, "the length of the request is missing; send one Content-Length header")
        if _values(scope, b"transfer-encoding"):
            raise Refused(411, "requests in chunks are not read here; send a Content-Length header and one body")
        most = self.max_bytes if PICTURES.fullmatch(scope["path"]) else FORM_BYTES
        if int(lengths[0]) > most:
            raise Refused(413, f"this has {int(lengths[0]):,} bytes, and {most:,} is the limit here")

    async def _form(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Read a form, check that it holds plain values only, and return it as it was understood."""
        if [v.partition(";")[0].strip().lower() for v in _values(scope, b"content-type")] != ["application/json"]:
            raise Refused(415, "forms are sent as JSON here")
        try:
            form = json.loads(await body(receive, FORM_BYTES, FORM_SECONDS))
        except (ValueError, RecursionError):
            raise Refused(400, "this is not JSON") from None
        if not isinstance(form, dict):
            raise Refused(400, "this is no form of the page")
        for value in form.values():
            if not all(_is_plain(item) for item in (value if isinstance(value, list) else [value])):
                raise Refused(400, "forms hold words and numbers here, and no files")
        if scope["path"].endswith("/join"):
            session = str(form.get("session_hash"))
            if not SESSION.fullmatch(session):
                raise Refused(400, "this is no session of the page")
            if self.forms is not None:
                number, data = form.get("fn_index"), form.get("data")
                if type(number) is not int or not isinstance(data, list) or self.forms.get(number) != len(data):
                    raise Refused(400, "this is no form of the page")
            why = None if self.line is None else self.line.admit(visitor(scope), session)
            if why is not None:
                raise Refused(503, why)
            self.presence.seen(session)
        data = json.dumps(form).encode()
        headers = [
            (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")
        ]
        headers += [(b"content-length", str(len(data)).encode()), (b"content-type", b"application/json")]
        messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": data, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await receive()

        return {**scope, "headers": headers}, replay


class Refused(Exception):
    """A request that is not answered, with an HTTP status and a sentence that says why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


async def body(receive: Receive, most: int, seconds: float) -> bytes:
    """Read a request's body, counted as it arrives.

    Raises:
        Refused: it is longer than ``most`` bytes, takes longer than ``seconds``, or breaks off.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request broke off")
                data += message.get("body", b"")
                if len(data) > most:
                    raise Refused(413, f"this has more bytes than the limit, {most:,}")
                if not message.get("more_body", False):
                    return bytes(data)
    except TimeoutError:
        raise Refused(408, f"this did not arrive within {seconds:g} seconds; try again") from None


async def refuse(send: Send, status: int, text: str) -> None:
    """Send a sentence instead of an answer, in the form in which Gradio's own script shows it."""
    data = json.dumps({"detail": text, "error": text}).encode()
    length = (b"content-length", str(len(data)).encode())
    headers = [(b"content-type", b"application/json"), length, (b"connection", b"close"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
