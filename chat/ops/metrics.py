"""What is counted and measured, and the page of it for Prometheus (`GET /metrics`).

Every process of a node counts into a row of its own, in memory that all of them share since before
they were forked; whichever is asked adds the rows up. So nothing is written to files, nobody waits
for anybody, and a count costs less than a tenth of a microsecond.

Rule 1: one process writes a row at a time. A replacement goes on with the counts of the one that
died, so that no counter ever goes back; gauges of the dead are left out (`leave`).
Rule 2: the values of a label are listed here. What is not listed counts as `other`, so that
strangers cannot make series.

May be imported by all; imports nothing of ours. docs/operations.md says what each metric means.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
HANGS = 20.0  # seconds without a tick; one may take three statements of five
CELL = 8  # bytes: a double, exact for whole numbers up to 2^53
OTHER = "other"

Rows = Sequence["memoryview[float]"]
_metrics: list[Metric] = []


class Metric:
    """Some cells in every row, beginning at `place`."""

    def __init__(self, name: str, help: str, width: int = 1) -> None:
        self.name = name
        self.help = help
        self.width = width
        self.place = sum(one.width for one in _metrics)
        # The row of this process; `join` sets it.
        self.row: memoryview[float] = memoryview(b"").cast("d")
        _metrics.append(self)

    def family(self, rows: Rows) -> Family:
        """Return what all processes together have."""
        raise NotImplementedError

    @property
    def value(self) -> float:
        """What the first cell of this process holds."""
        return self.row[self.place]

    def total(self, rows: Rows, cell: int = 0) -> float:
        return sum(row[self.place + cell] for row in rows)


class Counter(Metric):
    def add(self, amount: float = 1) -> None:
        self.row[self.place] += amount

    def family(self, rows: Rows) -> Family:
        return CounterMetricFamily(self.name, self.help, self.total(rows))


class Counters(Metric):
    """A counter for each value of a label."""

    def __init__(self, name: str, help: str, label: str, values: Iterable[str]) -> None:
        self.label = label
        self.values = {value: cell for cell, value in enumerate((*values, OTHER))}
        super().__init__(name, help, len(self.values))

    def add(self, value: str) -> None:
        self.row[self.place + self.values.get(value, self.values[OTHER])] += 1

    def family(self, rows: Rows) -> Family:
        family = CounterMetricFamily(self.name, self.help, labels=[self.label])
        for value, cell in self.values.items():
            family.add_metric([value], self.total(rows, cell))
        return family


class Gauge(Metric):
    """How it is now; over all live processes the sum, or the worst of them.

    With `hanging`, that is what counts for a process that has not ticked for so long that it hangs.
    """

    def __init__(
        self,
        name: str,
        help: str,
        over_all: Literal["sum", "min", "max"] = "sum",
        hanging: float | None = None,
    ) -> None:
        super().__init__(name, help)
        of: dict[str, Callable[[list[float]], float]] = {"sum": sum, "min": min, "max": max}
        self.over_all = of[over_all]
        self.hanging = hanging

    def set(self, value: float) -> None:
        self.row[self.place] = value

    def family(self, rows: Rows) -> Family:
        live = [self._of(row) for row in rows if row[PROCESSES.place]]
        return GaugeMetricFamily(self.name, self.help, self.over_all(live) if live else 0)

    def _of(self, row: memoryview[float]) -> float:
        if self.hanging is not None and time.monotonic() - row[TICKED.place] > HANGS:
            return self.hanging
        return row[self.place]


class Histogram(Metric):
    """How often a value was in each bucket: the cells of the bounds, what is above, the sum."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        super().__init__(name, help, len(bounds) + 2)
        self.bounds = bounds

    def observe(self, value: float) -> None:
        self.row[self.place + bisect_left(self.bounds, value)] += 1
        self.row[self.place + self.width - 1] += value

    def family(self, rows: Rows) -> Family:
        buckets, count = [], 0.0
        for cell, bound in enumerate([*map(str, self.bounds), "+Inf"]):
            count += self.total(rows, cell)
            buckets.append((bound, count))
        total = self.total(rows, self.width - 1)
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=total)


# --- What there is. Seconds and messages; a counter's name gets its `_total` on the page.

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

PROCESSES = Gauge("chat_processes", "Processes of this node that serve.", hanging=0)
CONNECTIONS = Gauge("chat_connections", "Open sockets of members.")
ROOMS_OPEN = Gauge("chat_rooms_open", "Rooms held in memory, one for each process that has it.")
ACCEPTED = Counter("chat_messages_accepted", "Messages that were new and are committed.")
DELIVERED = Counter("chat_messages_delivered", "Messages written to members' sockets.")
FRAMES = Counter("chat_message_frames", "Frames of messages written to members' sockets.")
BATCH = Histogram(
    "chat_batch_messages",
    "Messages in one transaction, repeats included.",
    (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
COMMIT = Histogram("chat_commit_seconds", "From the begin of a transaction to its COMMIT.", SECONDS)
DELIVERY = Histogram(
    "chat_delivery_seconds",
    "From the commit, elsewhere from the bell, to the last socket that one turn of the loop wrote.",
    SECONDS,
)
CATCH_UP = Counter("chat_catch_up_pages", "Pages of the log that were read for members.")
SLOW = Gauge("chat_slow_members", "Members whose socket has not taken a frame for a second.")
SLOW_BEHIND = Gauge(
    "chat_slow_members_behind_messages", "Messages that the slowest of them is behind.", "max"
)
DATABASE_UP = Gauge(
    "chat_database_up", "1 while every process reads and writes in the database.", "min", hanging=0
)
RELAY_UP = Gauge(
    "chat_relay_up", "1 while every process hears itself over the relay.", "min", hanging=0
)
# For ourselves, not on the page: when the ticker looked last (monotonic, the same clock for all
# processes of a machine), and 1 from a failed commit to the next that goes well.
TICKED = Gauge("", "")
FAILING = Gauge("", "")
ROUND_TRIP = Gauge(
    "chat_relay_round_trip_seconds", "The last heartbeat's way to the relay and back.", "max"
)
MISSED = Counter("chat_relay_missed", "Bells that did not come though the relay seemed well.")
STRANGERS = Counter("chat_relay_foreign", "Announcements of another epoch, dropped.")
ERRORS = Counters(
    "chat_errors",
    "Errors told to clients, over sockets and HTTP.",
    "code",
    (
        *("bad_json", "bad_frame", "unknown_type", "text_too_long", "text_empty"),
        *("missing_receiver", "unknown_receiver", "forbidden", "id_conflict"),
        *("unauthenticated", "not_found", "method_not_allowed", "too_large", "not_json"),
        *("rate_limited", "unavailable", "fault"),
    ),
)
CLOSES = Counters(
    "chat_closes",
    "Members' sockets that ended, by their close code.",
    "code",
    (
        *("1000", "1001", "1003", "1005", "1006", "1008", "1009", "1011", "1012", "1013"),
        *("4401", "4403", "4404", "4429"),
    ),
)
REFUSED = Counters(
    "chat_handshakes_refused",
    "Sockets that were not let in.",
    "reason",
    (
        *("host", "origin", "draining", "crowded", "unauthenticated", "forbidden", "not_found"),
        *("too_many", "database", "restart"),
    ),
)
RESTARTED = Counters(
    "chat_tasks_restarted",
    "Tasks of ours that died and were started again.",
    "task",
    ("writer", "ticker", "tending", "presence", "marks", "retention", "relay"),
)
FALLBACKS = Counter(
    "chat_limiter_fallbacks", "Limits that were kept in memory because Redis did not answer."
)


class Sent:
    """Frames of messages to members: the one count that comes with every frame.

    Plain integers, which cost a quarter of a cell. Who makes `frames` 1 sees to it that
    `hand_over` is called in the loop's next turn, when all are written that one bell woke.
    """

    __slots__ = ("frames", "messages")

    def __init__(self) -> None:
        self.frames = 0
        self.messages = 0

    def hand_over(self, seconds: float | None) -> None:
        """Put the counts into the row, and how long it took where that is known."""
        FRAMES.add(self.frames)
        DELIVERED.add(self.messages)
        self.frames = self.messages = 0
        if seconds is not None:
            DELIVERY.observe(seconds)


sent = Sent()

# --- The rows

_rows: list[memoryview[float]] = []


def share(processes: int) -> None:
    """Make a row for each process. Call it before they are forked."""
    width = sum(one.width for one in _metrics)
    # Anonymous, and so the same memory in all that are forked from here on.
    cells = memoryview(mmap.mmap(-1, processes * width * CELL)).cast("d")
    _rows[:] = [cells[start : start + width] for start in range(0, len(cells), width)]


def join(process: int = 0) -> None:
    """Count into this row from now on: in the process itself, once it begins to serve."""
    for one in _metrics:
        one.row = _rows[process]
    leave(process)
    TICKED.set(time.monotonic())
    PROCESSES.set(1)


def leave(process: int) -> None:
    """Forget how it was with this process; what it counted stays."""
    for one in _metrics:
        if isinstance(one, Gauge):
            _rows[process][one.place] = 0


class _Rows(Collector):
    def collect(self) -> Iterator[Family]:
        for one in _metrics:
            if one.name:
                yield one.family(_rows)


def page() -> bytes:
    """Return all metrics of all processes as Prometheus reads them (CONTENT_TYPE)."""
    return generate_latest(_registry)


_registry = CollectorRegistry()
_registry.register(_Rows())
share(1)
join()
