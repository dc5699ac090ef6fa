"""Ten people use the web page at once, on this machine alone.

    python benchmarks/page_users.py [--model flowers64] [--seconds 300] [--users 10] [--rounds 3]

Starts a page on a free port of the loopback and calls it from an address per user. First one user generates alone and
then all at once, in turns, which gives the median time of each. Then, for some minutes, everybody does what people do:
generate, upscale, stop in the middle, reload, upload 10 MB, rubbish, a photo of 40 megapixels. Fails if an answer has
status 500 or no words, if a result is another user's or not what the same settings give afterwards, if one address can
fill the queue, or if the server ends, writes a traceback or keeps memory. The last line is JSON.
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
    """Somebody with a browser: clicks, and listens for results."""

    def __init__(self, port: int, number: int, forms: dict[str, int]):
        super().__init__(port, f"127.0.1.{number + 1}")
        self.forms, self.rng = forms, random.Random(number)

    def click(self, tab: str, data: list[Any]) -> tuple[str, str]:
        """Send a form; returns the names of the session and of the job.

        Raises:
            Busy: there is no room, which the answer states in words.
        """
        session = secrets.token_hex(6)
        form = {"data": data, "fn_index": self.forms[tab], "session_hash": session, "trigger_id": None}
        status, body = self.ask("POST", "/gradio_api/queue/join", {**form, "event_data": None})
        answer = json.loads(body)
        if status == 503:
            assert len(str(answer["detail"]).split()) > 4, f"a full queue is explained as {answer}"
            raise Busy(answer["detail"])
        assert status == 200, f"{tab} was answered with {status}: {answer}"
        return session, answer["event_id"]

    def messages(self, session: str) -> Iterator[dict[str, Any]]:
        """What the queue sends; the connection is closed where the caller stops."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def finished(self, session: str) -> str:
        """The HTML of a job's end."""
        for message in self.messages(session):
            if message["msg"] == "process_completed":
                return str(message["output"]["data"][0])
        raise RuntimeError("the queue ended without a result")

    def begun(self, session: str) -> None:
        """Wait for the first sign of work."""
        next((m for m in self.messages(session) if m["msg"] in ("process_generating", "process_completed")), None)

    def settings(self) -> list[Any]:
        """Class, seed, pictures, temperature, top-p, guidance."""
        seed, rng = self.rng.randrange(10**6), self.rng
        return ["", seed, 1, rng.choice([1, 0.9, 0.8]), rng.choice([1, 0.95, 0.9]), rng.choice([1, 1, 1.5])]


class Busy(Exception):
    """The page has no room for a job."""


def result_of(html: str, settings: list[Any]) -> str:
    """The file of a result, in base64; checks that it is of these settings."""
    found, command = LINK.findall(html), COMMAND.findall(html)
    assert len(found) == 1 and found[0][1] == str(settings[1]), f"seed {settings[1]} gave {html[:300]}"
    _, seed, _, temperature, top_p, guidance = settings
    for name, value in (("seed", seed), ("temperature", temperature), ("top-p", top_p), ("guidance", guidance)):
        expected = f"--{name} {value:g}" if name == "seed" or value != 1 else None
        match = re.search(rf"--{name} \S+", command[0])
        assert (match[0] if match else None) == expected, f"{settings} gave {command[0]}"
    return found[0][0]


def generate(user: User, settings: list[Any]) -> str:
    """Generate a picture; returns its file."""
    session, _ = user.click("generate", ["", *settings])
    return result_of(user.finished(session), settings)


# What users do: each returns a word for how it ended ------------------------------------------------------------------


def upload(user: User, task: str, data: bytes, expected: int) -> str:
    """Upload a file; what is refused must be explained."""
    try:
        status, body = user.ask("POST", f"/pictures/{task}", data)
    except (ConnectionError, http.client.HTTPException):  # refused by its length, while it is being sent
        assert expected == 413
        return "413"
    answer = json.loads(body)
    assert status in (expected, 503), f"an upload was answered with {status}: {answer}"
    assert status == 200 or len(str(answer.get("shown") or answer["detail"]).split()) > 4
    return str(answer["picture"]) if status == 200 else str(status)


def upscale(user: User, small: bytes) -> str:
    """Enlarge a picture."""
    held, settings = upload(user, "upscale", small, 200), user.settings()
    session, _ = user.click("upscale", [held, 2, *settings])
    result_of(user.finished(session), settings)
    return "result"


def stop(user: User) -> str:
    """Click, wait for the first picture, click on Stop."""
    session, event = user.click("generate", ["", *user.settings()])
    user.begun(session)
    form = {"session_hash": session, "fn_index": user.forms["generate"], "event_id": event}
    status, _ = user.ask("POST", "/gradio_api/cancel", form)
    assert status == 200, f"Stop was answered with {status}"
    return "stopped"


def reload(user: User) -> str:
    """Click, and load the page again before the result is there."""
    session, _ = user.click("generate", ["", *user.settings()])
    user.begun(session)
    for path in ("/", "/config"):
        status, _ = user.ask("GET", path)
        assert status == 200, f"{path} was answered with {status}"
    return "reloaded"


def files() -> dict[str, bytes]:
    """A file of nearly 10 MB, one that is larger, a photo of 40 megapixels, a small picture."""
    rng = np.random.default_rng(0)
    noise = encoded(rng.integers(0, 256, (1800, 1800, 3)).astype(np.uint8), "PNG")
    yy, xx = np.mgrid[:5400, :7400]
    photo = np.stack([xx // 29, yy // 22, (xx + yy) // 51], -1).astype(np.uint8)
    return {
        "heavy": noise + b"\0" * (9_990_000 - len(noise)), "too heavy": noise + b"\0" * (10_500_000 - len(noise)),
        "photo": encoded(photo, "JPEG"), "small": encoded(photo[::170, ::230][:32, :32].copy(), "PNG"),
    }  # fmt: skip


def actions(user: User, brought: dict[str, bytes], results: list[tuple[list[Any], str]], times: list[float]):
    """What a user does, with how often."""

    def draw() -> str:
        settings, start = user.settings(), time.monotonic()
        file = generate(user, settings)
        times.append(time.monotonic() - start)
        results.append((settings, file))
        return "result"

    def bring(task: str, name: str, expected: int) -> Callable[[], str]:
        return lambda: "kept" if len(upload(user, task, brought[name], expected)) > 3 else "refused"

    def rubbish() -> str:
        return upload(user, "colorize", user.rng.randbytes(3000), 400)

    return {
        "generate": (6, draw), "upscale": (2, lambda: upscale(user, brought["small"])), "stop": (2, lambda: stop(user)),
        "reload": (2, lambda: reload(user)), "10 MB": (1, bring("colorize", "heavy", 200)),
        "10.5 MB": (1, bring("colorize", "too heavy", 413)), "rubbish": (1, rubbish),
        "40 megapixels": (1, bring("inpaint", "photo", 200)),
    }  # fmt: skip


def crowd(user: User) -> bool:
    """Click more often than one address may, and wait for each job to begin; whether that was refused."""
    refused: list[bool] = []

    def click() -> None:
        try:
            session, _ = user.click("generate", ["", *user.settings()])
            user.begun(session)
        except Busy:
            refused.append(True)

    threads = [threading.Thread(target=click) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bool(refused)


def at_once(users: list[User]) -> list[float]:
    """Seconds that each user waits for a picture if all click at the same moment."""
    barrier, seconds = threading.Barrier(len(users)), []

    def wait(user: User) -> None:
        barrier.wait()
        start, settings = time.monotonic(), ["", user.rng.randrange(10**6), 1, 1, 0.9, 1]
        generate(user, settings)
        seconds.append(time.monotonic() - start)

    threads = [threading.Thread(target=wait, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flowers64")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument(
        "--rounds", type=int, default=3, help="pairs of a user alone and all at once; the first warms up"
    )
    args = parser.parse_args()
    log, brought = Path(tempfile.mkdtemp(prefix="dctransformer-users-")) / "log", files()
    ends: dict[str, Counter[str]] = {}
    failures: list[str] = []
    results: list[tuple[list[Any], str]] = []
    mixed: list[float] = []
    peak = 0.0

    with page(args.model, log) as (process, port):
        first = Visitor(port, "127.0.1.1")
        for _ in range(600):
            with contextlib.suppress(OSError):
                if first.ask("GET", "/")[0] == 200:
                    break
            time.sleep(0.1)
        config = json.loads(first.ask("GET", "/config")[1])
        tabs = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        forms: dict[str, int] = {}
        for form in config["dependencies"]:
            if form["backend_fn"]:
                forms.setdefault(str(tabs[form["outputs"][0]]).removesuffix("-out"), form["id"])
        users = [User(port, i, forms) for i in range(args.users)]

        # What a job, an upload and all users at once take stays with the process in part: it is there before, too.
        for task in ("colorize", "inpaint"):
            upload(users[0], task, brought["photo"], 200)
        pairs = [(at_once(users[:1]), at_once(users)) for _ in range(max(2, args.rounds))][1:]  # the first one warms up
        alone, together = median(s for one, _ in pairs for s in one), median(s for _, all_ in pairs for s in all_)
        slowest = max(s for _, all_ in pairs for s in all_)
        before, end = memory_mb(process.pid), time.monotonic() + args.seconds

        def use(user: User) -> None:
            todo = actions(user, brought, results, mixed)
            while time.monotonic() < end:
                (name,) = user.rng.choices(list(todo), [often for often, _ in todo.values()])
                try:
                    ended = todo[name][1]()
                except Busy:
                    ended = "busy, in words"
                except Exception as error:
                    failures.append(f"{name}: {error!r}"[:500])
                    ended = "failed"
                ends.setdefault(name, Counter())[ended] += 1

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
                failures.append(f"{settings} gave another picture among others than alone")
        for _ in range(30):  # what is under way ends
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
