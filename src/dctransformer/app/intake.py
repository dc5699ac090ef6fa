"""Uploads and examples: the two addresses of the server that are not Gradio's.

``POST /pictures/TASK`` has a file as its body, one per request; ``GET /pictures/TASK/NUMBER`` chooses an example. Both
answer with the name that the picture is kept by and with what the page shows of it, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from weakref import WeakValueDictionary

import anyio
from anyio import CapacityLimiter
from starlette.requests import Request
from starlette.responses import JSONResponse

from dctransformer.app.guard import Refused, body
from dctransformer.app.limits import Limits
from dctransformer.app.memory import give_back
from dctransformer.app.reader import Kind, Reader
from dctransformer.app.render import canvas, parts, png_uri
from dctransformer.app.shelf import Picture, Shelf
from dctransformer.app.uploads import Upload, examples, halve, read_for_inspection, read_upload
from dctransformer.app.visitors import counting, visitor
from dctransformer.files import printable_lines

TASKS: dict[str, Kind] = {
    "upscale": "work", "colorize": "work", "inpaint": "work", "continue": "work", "inspect": "inspect"
}  # fmt: skip
"""Tabs that start from a picture, and how it is read for them."""

ARRIVAL_SECONDS = 60
"""How long an upload may take to arrive."""

WAIT_SECONDS = 30
"""How long an upload waits, unread, for room in memory."""

UPLOADS, VISITOR_UPLOADS = 8, 4
"""Uploads of the largest size that memory is lent to at a time: to all visitors, and to one."""

READS = 2
"""Files that are read at a time; one per visitor."""


class Room:
    """Memory lent to uploads while they arrive and are read; whoever finds none left waits before anything is read."""

    def __init__(self, most: int, visitor_most: int, wait: float = WAIT_SECONDS):
        """Set the bytes lent to all visitors and to one, and the seconds that one waits at most."""
        self.most, self.visitor_most, self.wait = most, visitor_most, wait
        self.lent: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def lend(self, who: str, size: int) -> AsyncIterator[None]:
        """Lend memory for the time of the block.

        Raises:
            Refused: no memory became free in time.
        """
        deadline = asyncio.get_running_loop().time() + self.wait
        while self.lent[who] + size > self.visitor_most or self.lent.total() + size > self.most:
            if asyncio.get_running_loop().time() > deadline:
                raise Refused(503, "many pictures are arriving just now; try again in a minute")
            await asyncio.sleep(0.05)
        with counting(self.lent, who, size):
            yield


class Intake:
    """Takes pictures in, has them read, and keeps them for the page."""

    def __init__(self, limits: Limits, side: int, shape: tuple[int, int], quality: int):
        """Prepare the examples; see `dctransformer.app.reader.Reader` for the arguments."""
        self.reader = Reader(limits, side, shape, quality)
        largest = 8 * side**2  # pixels and a JPEG file of them
        self.shelf = Shelf(max(64_000_000, 8 * largest), max(16_000_000, 2 * largest))
        self.max_bytes = int(limits.max_megabytes * 1e6)
        self.room = Room(UPLOADS * self.max_bytes, VISITOR_UPLOADS * self.max_bytes)
        # One lock per visitor, as long as somebody holds it or waits for it: one file per visitor is read at a time.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reads = CapacityLimiter(READS)
        self.shown: dict[tuple[str, int], dict[str, str]] = {}
        for task, kind in TASKS.items():
            for number, data in enumerate(examples().values()):
                name = f"example-{task}-{number}"
                if kind == "inspect":
                    picture: Picture = read_for_inspection(data, limits, shape, quality)
                else:
                    picture = read_upload(halve(data) if task == "upscale" else data, limits, side)
                self.shelf.fix(name, picture)
                self.shown[task, number] = {"picture": name, "shown": show(task, picture)}

    async def example(self, request: Request) -> JSONResponse:
        """Answer with an example."""
        task, number = request.path_params["task"], request.path_params["number"]
        found = self.shown.get((task, number))
        return JSONResponse(found) if found else _nothing(404, "there is no such example")

    async def upload(self, request: Request) -> JSONResponse:
        """Take a file in."""
        task, who = request.path_params["task"], visitor(request.scope)
        if task not in TASKS:
            return _nothing(404, "there is no such task")
        try:
            size = int(request.headers["content-length"])
            async with self.room.lend(who, size):
                data = await body(request.receive, size, ARRIVAL_SECONDS)
                async with self._locks.setdefault(who, asyncio.Lock()):
                    read = functools.partial(self.reader.read, data, TASKS[task])
                    picture = await anyio.to_thread.run_sync(read, limiter=self._reads)
            shown = show(task, picture)
        except Refused as refusal:
            return _nothing(refusal.status, str(refusal))
        except ValueError as error:
            return _nothing(400, str(error))
        except Exception:
            log_error()
            return _nothing(500, UNFORESEEN)
        finally:
            give_back()
        return JSONResponse({"picture": self.shelf.put(picture, who), "shown": shown})


def log_error() -> None:
    """Print the error being handled, for whoever runs the page; what visitors sent can't control the terminal."""
    print(printable_lines(traceback.format_exc()), file=sys.stderr)


UNFORESEEN = "something went wrong on the server; its log says what. Try other settings or another picture"


def _nothing(status: int, why: str) -> JSONResponse:
    return JSONResponse({"picture": "", "shown": parts.message(why)}, status)


def show(task: str, picture: Any) -> str:
    """Render the page's view of a picture as HTML."""
    if not isinstance(picture, Upload):
        return parts.notes(picture.notes)
    if task == "inpaint":
        return canvas(picture.pixels) + parts.notes(picture.notes)
    height, width = picture.pixels.shape[:2]
    return parts.thumbnail(png_uri(picture.pixels), width, height) + parts.notes(picture.notes)
