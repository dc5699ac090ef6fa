"""Load test of the web app: ten users at once, on this machine.

    python benchmarks/page_users.py [--model flowers64] [--seconds 300] [--users 10] [--rounds 3]

Starts the app on a free loopback port and gives each user an address. First, one user alone and all users at once
generate a picture, alternately, to compare median times. Then, for some minutes, all users do what people do: generate,
upscale, stop a job, reload, upload 10 MB, an invalid file, a photo of 40 megapixels. Fails if a response has status 500
or lacks an explanation, if a result belongs to another user or differs from a later one with the same settings, if one
address can fill the queue, or if the server dies, logs a traceback or leaks memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from hostile_client import KEPT_MB, Visitor, encoded, memory_mb, page
from measure import machine

LINK = re.compile(r'href="data:image/jpeg;base64,([^"]+)" download="dctransformer-seed(\d+)-')
COMMAND = re.compile(r"<code>([^<]+)</code>")


class User(Visitor):
    """A user with a browser, who submits forms and waits for results."""

    def __init__(self, port: int, number: int, forms: dict[str, int]):
        super().__init__(port, f"127.0.1.{number + 1}")
        self.forms, self.rng = forms, random.Random(number)

    def click(self, tab: str, data: list[Any]) -> tuple[str, str]:
        """Submit a form, and return the ids of the session and of the job.

        Raises:
            Busy: the queue is full, and the response explains it.
        """
        session = secrets.token_hex(6)
        form = {"data": data, "fn_index": self.forms[tab], "session_hash": session, "trigger_id": None}
        status, body = self.request("POST", "/gradio_api/queue/join", {**form, "event_data": None})
        response = json.loads(body)
        if status == 503:
            assert len(str(response["detail"]).split()) > 4, f"a full queue is explained as {response}"
            raise Busy(response["detail"])
        assert status == 200, f"{tab} was answered with {status}: {response}"
        return session, response["event_id"]

    def messages(self, session: str) -> Iterator[dict[str, Any]]:
        """Yield the messages of the queue; the connection is closed when the caller stops iterating."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
            response = connection.getresponse()
            while line := response.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def result(self, session: str) -> str:
        """Wait for the end of a job, and return its HTML."""
        for message in self.messages(session):
            if message["msg"] == "process_completed":
                return str(message["output"]["data"][0])
        raise RuntimeError("the queue ended without a result")

    def wait_for_start(self, session: str) -> None:
        """Wait for the first progress message of a job."""
        next((m for m in self.messages(session) if m["msg"] in ("process_generating", "process_completed")), None)

    def settings(self) -> list[Any]:
        """Draw random settings: class, seed, pictures, temperature, min-p, guidance."""
        seed, rng = self.rng.randrange(10**6), self.rng
        return ["", seed, 1, rng.choice([1, 0.9, 0.8]), rng.choice([0, 0.02, 0.05]), rng.choice([1, 1, 1.5])]


class Busy(Exception):
    """The queue of the app is full."""


def result_of(html: str, settings: list[Any]) -> str:
    """Extract the file of a result, in base64, and check that it has these settings."""
    links, command = LINK.findall(html), COMMAND.findall(html)
    assert len(links) == 1 and links[0][1] == str(settings[1]), f"seed {settings[1]} gave {html[:300]}"
    _, seed, _, temperature, min_p, guidance = settings
    for name, value in (("seed", seed), ("temperature", temperature), ("min-p", min_p), ("guidance", guidance)):
        unset = {"temperature": 1, "min-p": 0, "guidance": 1}
        expected = f"--{name} {value:g}" if value != unset.get(name) else None
        match = re.search(rf"--{name} \S+", command[0])
        assert (match[0] if match else None) == expected, f"{settings} gave {command[0]}"
    return links[0][0]


def generate(user: User, settings: list[Any]) -> str:
    """Generate a picture, and return its file."""
    session, _ = user.click("generate", ["", *settings])
    return result_of(user.result(session), settings)


# Actions of users: each returns a word for its outcome ----------------------------------------------------------------


def upload(user: User, task: str, data: bytes, expected: int) -> str:
    """Upload a file, and return its id, or the status if it is refused; a refusal must be explained."""
    try:
        status, body = user.request("POST", f"/pictures/{task}", data)
    except (ConnectionError, http.client.HTTPException):  # refused by its length while it is being sent
        assert expected == 413
        return "413"
    response = json.loads(body)
    assert status in (expected, 503), f"an upload was answered with {status}: {response}"
    assert status == 200 or len(str(response.get("shown") or response["detail"]).split()) > 4
    return str(response["picture"]) if status == 200 else str(status)


def upscale(user: User, small: bytes) -> str:
    """Upload and upscale a picture."""
    picture_id, settings = upload(user, "upscale", small, 200), user.settings()
    session, _ = user.click("upscale", [picture_id, 2, *settings])
    result_of(user.result(session), settings)
    return "result"


def stop(user: User) -> str:
    """Start a job, wait for its first picture, and stop it."""
    session, event = user.click("generate", ["", *user.settings()])
    user.wait_for_start(session)
    form = {"session_hash": session, "fn_index": user.forms["generate"], "event_id": event}
    status, _ = user.request("POST", "/gradio_api/cancel", form)
    assert status == 200, f"Stop was answered with {status}"
    return "stopped"


def reload(user: User) -> str:
    """Start a job, and reload the page before it is finished."""
    session, _ = user.click("generate", ["", *user.settings()])
    user.wait_for_start(session)
    for path in ("/", "/config"):
        status, _ = user.request("GET", path)
        assert status == 200, f"{path} was answered with {status}"
    return "reloaded"


def files() -> dict[str, bytes]:
    """Files to upload: one just below 10 MB, one above, a photo of 40 megapixels, and a small picture."""
    rng = np.random.default_rng(0)
    noise = encoded(rng.integers(0, 256, (1800, 1800, 3)).astype(np.uint8), "PNG")
    yy, xx = np.mgrid[:5400, :7400]
    photo = np.stack([xx // 29, yy // 22, (xx + yy) // 51], -1).astype(np.uint8)
    return {
        "heavy": noise + b"\0" * (9_990_000 - len(noise)), "too heavy": noise + b"\0" * (10_500_000 - len(noise)),
        "photo": encoded(photo, "JPEG"), "small": encoded(photo[::170, ::230][:32, :32].copy(), "PNG"),
    }  # fmt: skip


def actions(user: User, uploads: dict[str, bytes], results: list[tuple[list[Any], str]], times: list[float]):
    """Actions of a user by name, with their relative frequencies."""

    def draw() -> str:
        settings, start = user.settings(), time.monotonic()
        file = generate(user, settings)
        times.append(time.monotonic() - start)
        results.append((settings, file))
        return "result"

    def upload_file(task: str, name: str, expected: int) -> Callable[[], str]:
        return lambda: "kept" if len(upload(user, task, uploads[name], expected)) > 3 else "refused"

    def rubbish() -> str:
        return upload(user, "colorize", user.rng.randbytes(3000), 400)

    return {
        "generate": (6, draw), "upscale": (2, lambda: upscale(user, uploads["small"])), "stop": (2, lambda: stop(user)),
        "reload": (2, lambda: reload(user)), "10 MB": (1, upload_file("colorize", "heavy", 200)),
        "10.5 MB": (1, upload_file("colorize", "too heavy", 413)), "rubbish": (1, rubbish),
        "40 megapixels": (1, upload_file("inpaint", "photo", 200)),
    }  # fmt: skip


def crowd(user: User) -> bool:
    """Submit more jobs than one address may, and return whether any was refused."""
    refused: list[bool] = []

    def click() -> None:
        try:
            session, _ = user.click("generate", ["", *user.settings()])
            user.wait_for_start(session)
        except Busy:
            refused.append(True)

    threads = [threading.Thread(target=click) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bool(refused)


def at_once(users: list[User]) -> list[float]:
    """Seconds per user to wait for a picture if all users click at the same moment."""
    barrier, seconds = threading.Barrier(len(users)), []

    def wait(user: User) -> None:
        barrier.wait()
        start, settings = time.monotonic(), ["", user.rng.randrange(10**6), 1, 1, 0.05, 1]
        generate(user, settings)
        seconds.append(time.monotonic() - start)

    threads = [threading.Thread(target=wait, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def main() -> None:
    """Run the load test and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flowers64")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument(
        "--rounds", type=int, default=3, help="pairs of one user alone and all at once; the first is a warmup"
    )
    args = parser.parse_args()
    log, uploads = Path(tempfile.mkdtemp(prefix="dctransformer-users-")) / "log", files()
    ends: dict[str, Counter[str]] = {}
    failures: list[str] = []
    results: list[tuple[list[Any], str]] = []
    mixed: list[float] = []
    peak = 0.0

    with page(args.model, log) as (process, port):
        first = Visitor(port, "127.0.1.1")
        for _ in range(600):
            with contextlib.suppress(OSError):
                if first.request("GET", "/")[0] == 200:
                    break
            time.sleep(0.1)
        config = json.loads(first.request("GET", "/config")[1])
        tabs = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        forms: dict[str, int] = {}
        for form in config["dependencies"]:
            if form["backend_fn"]:
                forms.setdefault(str(tabs[form["outputs"][0]]).removesuffix("-out"), form["id"])
        users = [User(port, i, forms) for i in range(args.users)]

        # Part of the memory of a job, an upload and all users at once stays with the process: allocate it beforehand.
        for task in ("colorize", "inpaint"):
            upload(users[0], task, uploads["photo"], 200)
        pairs = [(at_once(users[:1]), at_once(users)) for _ in range(max(2, args.rounds))][1:]  # without the warmup
        alone, together = median(s for one, _ in pairs for s in one), median(s for _, all_ in pairs for s in all_)
        slowest = max(s for _, all_ in pairs for s in all_)
        before, end = memory_mb(process.pid), time.monotonic() + args.seconds

        def use(user: User) -> None:
            choices = actions(user, uploads, results, mixed)
            while time.monotonic() < end:
                (name,) = user.rng.choices(list(choices), [weight for weight, _ in choices.values()])
                try:
                    outcome = choices[name][1]()
                except Busy:
                    outcome = "busy, in words"
                except Exception as error:
                    failures.append(f"{name}: {error!r}"[:500])
                    outcome = "failed"
                ends.setdefault(name, Counter())[outcome] += 1

        threads = [threading.Thread(target=use, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.5)
        if not crowd(users[0]):
            failures.append("one address could send more jobs than a part of the queue")
        for settings, file in random.Random(0).sample(results, min(3, len(results))):
            if generate(users[1], settings) != file:
                failures.append(f"{settings} gave another picture under load than alone")
        for _ in range(30):  # running jobs end
            time.sleep(1)
            after = memory_mb(process.pid)
            if after < before + KEPT_MB / 2:
                break
        if process.poll() is not None:
            failures.append(f"the server ended with {process.returncode}")
    text = log.read_text(errors="replace")
    if "Traceback" in text:
        failures.append("the log has tracebacks: " + text[text.index("Traceback") :][-1500:])
    if after > before + KEPT_MB:
        failures.append(f"memory grew from {before:.0f} to {after:.0f} MB")
    report = {
        **machine(torch.device("cpu")), "model": args.model, "users": args.users, "seconds": args.seconds,
        "alone_seconds": round(alone, 2), "at_once_seconds": round(together, 2), "at_once_slowest": round(slowest, 2),
        "ratio": round(together / alone, 2), "ratios": [round(median(all_) / one[0], 2) for one, all_ in pairs],
        "mixed_seconds": round(median(mixed), 2) if mixed else None,
        "memory_mb": [round(before), round(peak), round(after)], "ends": {k: dict(v) for k, v in sorted(ends.items())},
        "failures": failures,
    }  # fmt: skip
    print(json.dumps(report))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
