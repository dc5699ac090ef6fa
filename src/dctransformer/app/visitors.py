"""Fair use of the queue: bounds on the jobs of a visitor, and an end to jobs that nobody waits for."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

GRACE = 5
"""Seconds for which a job goes on while no browser listens to it."""

START = 5
"""Seconds after which a job is not begun to which no browser has listened; the page's own script listens at once."""

UNREAD = 20
"""Messages that may wait for a browser; as long as there are more, it is sent the end of its job only."""

REMEMBERED = 1000
"""Sessions (browser tabs) whose last sign of life is remembered."""


def visitor(scope: Mapping[str, Any]) -> str:
    """Return the address that a request came from, shared by all who come through a proxy that forwards no addresses.

    For IPv6 it is the network, since whoever has one address there has all of the network's.
    """
    address = (scope.get("client") or ("",))[0]
    try:
        ip = ipaddress.ip_address(str(address).partition("%")[0])
    except ValueError:
        return str(address)
    if ip.version == 4 or ip.ipv4_mapped is not None:
        return str(ip if ip.version == 4 else ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


@contextlib.contextmanager
def counting(counter: Counter[str], key: str, amount: int = 1) -> Iterator[None]:
    """Add to a counter for the time of the block; what comes to 0 is forgotten."""
    counter[key] += amount
    try:
        yield
    finally:
        counter[key] -= amount
        if not counter[key]:
            del counter[key]


class Presence:
    """Tracks which sessions have a browser that listens."""

    def __init__(self, grace: float = GRACE, clock: Callable[[], float] = time.monotonic):
        """Set the seconds for which a session may be silent, ``grace``, and a clock in seconds."""
        self.grace, self._clock = grace, clock
        self.unread: Callable[[str], int] = lambda session: 0
        """Returns the number of messages that a session has not read yet."""
        self._open: Counter[str] = Counter()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def seen(self, session: str) -> None:
        """Note that a session has sent something."""
        self._seen[session] = self._clock()
        self._seen.move_to_end(session)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def opened(self, session: str) -> None:
        """Note that a browser begins to listen."""
        self._open[session] += 1

    def closed(self, session: str) -> None:
        """Note that a browser no longer listens."""
        self._open[session] -= 1
        if not self._open[session]:
            del self._open[session]
        self.seen(session)

    def listens(self, session: str) -> bool:
        """Return whether a browser listens now."""
        return session in self._open

    def reads(self, session: str) -> bool:
        """Return whether a browser listens now and takes what it is sent."""
        return self.listens(session) and self.unread(session) < UNREAD

    def waits(self, session: str) -> bool:
        """Return whether a browser listens or did so until a moment ago."""
        return self.listens(session) or self._clock() - self._seen.get(session, -1e9) <= self.grace

    def pass_on(self, session: str, work: Iterator[str]) -> Iterator[str]:
        """Yield what a job yields while somebody reads it, else its end only; without anybody, the job is given up."""
        last = None
        try:
            while not self.listens(session):
                if self._clock() - self._seen.get(session, -1e9) > START:
                    return
                time.sleep(0.02)
            for html in work:
                if self.reads(session):
                    yield html
                    last = None
                elif self.waits(session):
                    last = html
                else:
                    return
            if last is not None:
                yield last
        finally:
            if isinstance(work, Generator):
                work.close()


class Line:
    """A bound on each visitor's share of Gradio's queue: the jobs that one may have running and waiting."""

    def __init__(self, queue: Any, most: int):
        """Watch a queue.

        Args:
            queue: of a `gradio.Blocks`.
            most: jobs that may wait.
        """
        self._queue, self.visitor_most = queue, max(2, 3 * most // 4)  # one under way and one waiting
        self._arriving: Counter[str] = Counter()
        # Messages for tabs, read or not; Gradio would keep those of 2,000.
        self._queue.pending_messages_per_session.max_size = max(100, 6 * most)

    def admit(self, who: str, session: str) -> str | None:
        """Return the reason why a visitor's job is refused now; None if it is accepted."""
        messages = self._queue.pending_messages_per_session
        if session in messages:
            messages.move_to_end(session)  # so that it is among the last to be forgotten
        lines = [line.queue for line in self._queue.event_queue_per_concurrency_id.values()]
        under_way = [events for events in self._queue.active_jobs if events is not None]
        of_visitor = sum(visitor(event.request.scope) == who for events in (*lines, *under_way) for event in events)
        of_visitor += self._arriving[who]
        if of_visitor >= self.visitor_most:
            return f"{of_visitor} jobs from your address are under way or waiting already; wait until some are done"
        return None

    def arriving(self, who: str) -> contextlib.AbstractContextManager[None]:
        """Count a job that was admitted, until the queue has it at the end of the block."""
        return counting(self._arriving, who)

    def take_turns(self) -> None:
        """Sort the jobs that wait: everybody's first, then everybody's second, and so on."""
        for line in self._queue.event_queue_per_concurrency_id.values():
            before: Counter[str] = Counter()
            turns = []
            for event in line.queue:
                who = visitor(event.request.scope)
                turns.append(before[who])
                before[who] += 1
            line.queue[:] = [line.queue[i] for i in sorted(range(len(turns)), key=turns.__getitem__)]

    def unread(self, session: str) -> int:
        """Count the messages that wait for a session's browser."""
        messages = self._queue.pending_messages_per_session.get(session)
        return 0 if messages is None else messages.qsize()
