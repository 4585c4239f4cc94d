"""`python -m bench`: measure chat and yardstick, print the table, write JSON where asked.

Exits with 1 when a figure is not valid (something was lost), not when an aim is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from json import dumps
from logging import ERROR, getLogger
from pathlib import Path
from time import monotonic

import uvloop

from bench import curves
from bench.figures import calm_room, idle_members, many_rooms, one_room
from bench.plots import draw
from bench.report import Results, doubts, table
from bench.servers import LOAD_CORE, SERVER_CORE, Chat, Server, mirror, running_chat, yardstick
from bench.step import Step

# `d` and `e` are of the same two thousand connections, so one brings the other.
# `f` are the curves of the chat alone.
LETTERS = "abcdef"
SILENCE, QUICK_SILENCE = 60.0, 5.0
PACKAGES = ("hypercorn", "starlette", "uvloop", "picows", "broadcaster", "databases", "redis")

PLOTS = Path("docs/plots")

Start = Callable[[], AbstractAsyncContextManager[Server]]


def main() -> int:
    options = arguments()
    os.sched_setaffinity(0, {LOAD_CORE})
    # It tells of every buffer that fills, which is what a load is for.
    getLogger("picows").setLevel(ERROR)
    # The load makes no cycles worth looking for, and a collection would count as latency.
    gc.disable()
    begin, drawn = monotonic(), []
    with ExitStack() as stack:
        starts: dict[str, Start] = {"yardstick": yardstick, "mirror": mirror}
        if options.server_url:
            key = os.environ.get("CHAT_API_KEY", "")
            starts["chat"] = partial(running_chat, options.server_url, key)
        elif "chat" in options.servers:
            starts["chat"] = Chat(stack).serve
        chosen = {name: starts[name] for name in options.servers}
        results = uvloop.run(measure(chosen, set(options.only), options.silence))
        if "f" in options.only and "chat" in chosen:
            drawn = uvloop.run(curves_of(chosen["chat"], options.plots))
    seconds = monotonic() - begin
    print(f"\n{machine()}, {seconds:.0f} s\n")
    print(table({"chat": results["mirror"]} if options.servers == ["mirror"] else results))
    for file in drawn:
        print(f"drawn: {file}")
    problems = doubts(results)
    for problem in problems:
        print(f"NOT VALID: {problem}")
    if options.json:
        figures = {
            name: {letter: asdict(figure) for letter, figure in of.items()}
            for name, of in results.items()
        }
        report = {"machine": machine(), "seconds": seconds, "doubts": problems, "figures": figures}
        options.json.write_text(dumps(report, indent=1) + "\n")
    return 1 if problems else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(LETTERS),
        metavar="a,b",
        help="some of the figures a to f (README.md)",
    )
    parser.add_argument(
        "--servers",
        type=lambda text: text.split(","),
        default=["chat", "yardstick"],
        metavar="chat,yardstick",
        help="what to measure; `mirror` shows what the load alone can take",
    )
    parser.add_argument(
        "--server-url",
        metavar="http://HOST:PORT",
        help="a chat that runs already, with CHAT_API_KEY and no limits",
    )
    parser.add_argument(
        "--silence",
        type=float,
        default=SILENCE,
        metavar="SECONDS",
        help="how long nobody speaks in figure e",
    )
    parser.add_argument(
        "--quick",
        dest="silence",
        action="store_const",
        const=QUICK_SILENCE,
        help="a silence of five seconds",
    )
    parser.add_argument(
        "--plots", type=Path, default=PLOTS, metavar="FOLDER", help="where the curves are drawn"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if not set(options.only) <= set(LETTERS):
        parser.error(f"--only takes {', '.join(LETTERS)}")
    if not set(options.servers) <= {"chat", "yardstick", "mirror"}:
        parser.error("--servers takes chat, yardstick, mirror")
    return options


async def measure(starts: dict[str, Start], only: set[str], silence: float) -> dict[str, Results]:
    """Take the chosen figures of each server."""
    results: dict[str, Results] = {name: {} for name in starts}
    if only & set("abc"):
        for name, start in starts.items():
            async with start() as server:
                await talk(server, only, results[name])
    if only & set("de"):
        turn = asyncio.Lock()
        # Fresh processes: memory that a busy one has freed would hide what connections take.
        async with asyncio.TaskGroup() as group:
            for name, start in starts.items():
                group.create_task(rest(start, silence if "e" in only else 0.0, turn, results[name]))
    return results


async def curves_of(start: Start, folder: Path) -> list[Path]:
    """Measure the curves, and draw them."""
    async with start() as server:
        rooms = await curves.rooms(server, lambda step: progress(f"{server.name:9} {line(step)}"))
    memory = await curves.memory(start)
    for room in rooms:
        progress(
            f"{room.members:5} members: {room.most.deliveries:,.0f} deliveries/s,"
            f" p50 {room.p50 * 1e3:.2f} ms, p99 {room.p99 * 1e3:.2f} ms"
        )
    for one in memory:
        progress(f"{one.connections:5} connections: {one.kib} KiB")
    return draw(rooms, memory, folder)


async def talk(server: Server, only: set[str], results: Results) -> None:
    def report(step: Step) -> None:
        progress(f"{server.name:9} {line(step)}")

    if "b" in only:
        results["b"] = await calm_room(server, report)
    if "c" in only:
        results["c"] = await many_rooms(server, report)
    if "a" in only:
        results["a"] = await one_room(server, report)


async def rest(start: Start, silence: float, turn: asyncio.Lock, results: Results) -> None:
    async with AsyncExitStack() as stack:
        async with turn:
            server = await stack.enter_async_context(start())
        idle = await idle_members(server, silence, turn)
        progress(f"{server.name:9} {idle}")
        results["d"] = results["e"] = idle


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def line(step: Step) -> str:
    notes = [
        f"{name} {getattr(step, name)}"
        for name in ("lost", "faults", "refused", "gone")
        if getattr(step, name)
    ]
    notes += () if step.complete else ("incomplete",)
    return (
        f"{step.rate:9,.0f}/s for {step.seconds:g} s: {step.deliveries:11,.0f} deliveries/s, "
        f"p50 {step.p50 * 1e3:8.2f} ms, p99 {step.p99 * 1e3:8.2f} ms, "
        f"growth {step.growth:+.3f}, server busy {step.busy:.2f}, "
        f"load late {step.behind * 1e3:.2f} ms " + ", ".join((*notes, *step.errors))
    )


def machine() -> str:
    alone = (
        "one core for all: figures are not comparable"
        if SERVER_CORE == LOAD_CORE
        else (f"server on core {SERVER_CORE}, load and databases on core {LOAD_CORE}")
    )
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"Python {platform.python_version()}, {packages}, {alone}"


if __name__ == "__main__":
    raise SystemExit(main())
