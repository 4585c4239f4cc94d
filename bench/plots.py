"""The curves as SVG files: throughput and latency against members, memory against connections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from bench.curves import Memory, Room
from bench.figures import CALM_RATE

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "tertulia"  # equal figures are equal files

from matplotlib import pyplot  # noqa: E402

SIZE = (6.4, 3.6)  # inches


def draw(rooms: Sequence[Room], memory: Sequence[Memory], folder: Path) -> list[Path]:
    """Write the plots into the folder, and return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    members = [room.members for room in rooms]
    files = [
        plot(
            folder / "throughput.svg",
            "Into one room, the highest rate that holds",
            "members of the room",
            "deliveries per second",
            {"": (members, [room.most.deliveries for room in rooms])},
        ),
        plot(
            folder / "latency.svg",
            f"From sending to arrival, at {CALM_RATE:.0f} messages per second",
            "members of the room",
            "ms",
            {
                "p50": (members, [room.p50 * 1e3 for room in rooms]),
                "p99": (members, [room.p99 * 1e3 for room in rooms]),
            },
        ),
    ]
    known = [(one.connections, one.kib / 1024) for one in memory if one.kib is not None]
    if known:
        files.append(
            plot(
                folder / "memory.svg",
                "Memory of open sockets, beside the program's own",
                "connections",
                "MiB",
                {"": ([0, *(one[0] for one in known)], [0, *(one[1] for one in known)])},
            )
        )
    return files


def plot(
    file: Path,
    title: str,
    across: str,
    up: str,
    lines: dict[str, tuple[Sequence[float], Sequence[float]]],
) -> Path:
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    for name, (x, y) in lines.items():
        axes.plot(x, y, marker="o", label=name)
    axes.set(title=title, xlabel=across, ylabel=up, ylim=(0, None), xlim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
