"""The table of `make bench`: each figure of chat and yardstick, beside what is aimed at.

Pure: figures in, text out. `__main__.py` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.figures import Calm, Idle, Rate

Figure = Rate | Calm | Idle
Results = dict[str, Figure]
# Chat's value and the yardstick's, to words that compare them and whether the aim is reached.
Aim = Callable[[float, float | None], tuple[str, bool | None]]


def times(least: float) -> Aim:
    def compare(chat: float, bare: float | None) -> tuple[str, bool | None]:
        if not bare:
            return "", None
        return f"{chat / bare:.1f} times", chat / bare >= least

    return compare


def below(limit: float) -> Aim:
    return lambda chat, bare: ("", chat < limit)


def more(most: float) -> Aim:
    def compare(chat: float, bare: float | None) -> tuple[str, bool | None]:
        if bare is None:
            return "", None
        return f"{chat - bare:+.1f}", chat - bare <= most

    return compare


@dataclass(frozen=True)
class Line:
    text: str
    # The figure's letter, and the name of the value in it.
    letter: str
    value: str
    form: str = "{:,.0f}"
    scale: float = 1.0
    aim: str = ""
    compare: Aim | None = None


LINES = (
    Line("room of 200: deliveries/s", "a", "deliveries", aim="20 times", compare=times(20)),
    Line("  messages/s offered and kept up with", "a", "accepted"),
    Line("  p50 there, ms", "a", "p50", "{:.1f}", 1e3),
    Line("  p99 there, ms", "a", "p99", "{:.1f}", 1e3),
    Line("room of 50, 20 messages/s: p50, ms", "b", "p50", "{:.2f}", 1e3, "< 3", below(3)),
    Line("  p99, ms", "b", "p99", "{:.2f}", 1e3, "< 10", below(10)),
    Line("100 rooms of 10: accepted messages/s", "c", "accepted", aim="2 times", compare=times(2)),
    Line("  p50 there, ms", "c", "p50", "{:.1f}", 1e3),
    Line("  p99 there, ms", "c", "p99", "{:.1f}", 1e3),
    Line("idle connections", "d", "connections"),
    Line("  connects/s", "d", "connects_per_second"),
    Line("  memory of each, KiB", "d", "kib_per_connection", "{:.1f}", 1.0, "<= +8", more(8)),
    Line("  seconds of silence", "e", "silence"),
    Line("  open and hearing after it", "e", "left", aim="all"),
)


def table(results: dict[str, Results]) -> str:
    """Lay the figures of "chat" and "yardstick" out beside the aims."""
    rows: list[Sequence[str]] = [("", "chat", "yardstick", "chat is", "aim", "reached")]
    for line in LINES:
        chat, bare = (value_of(results, name, line) for name in ("chat", "yardstick"))
        if chat is None and bare is None:
            continue
        words, reached = "", None
        if line.value == "left" and chat is not None:
            reached = chat == value_of(results, "chat", LINES[9])
        elif line.compare is not None and chat is not None:
            words, reached = line.compare(chat, bare)
        verdict = {None: "", True: "yes", False: "NO"}[reached]
        rows.append((line.text, show(line, chat), show(line, bare), words, line.aim, verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def doubts(results: dict[str, Results]) -> list[str]:
    """Return why the figures are not valid: what lost, doubled or disordered messages."""
    found = []
    for name, figures in results.items():
        for letter, figure in figures.items():
            if isinstance(figure, Idle):
                continue
            if figure.lost:
                found.append(f"{name}, {letter}: {figure.lost} deliveries never came")
            if figure.faults:
                found.append(f"{name}, {letter}: {figure.faults} frames with a gap or a repetition")
            if isinstance(figure, Calm) and not figure.complete:
                found.append(f"{name}, {letter}: not every member got every message")
            if isinstance(figure, Rate) and not figure.accepted:
                found.append(f"{name}, {letter}: no rate held")
    return found


def value_of(results: dict[str, Results], name: str, line: Line) -> float | None:
    figure = results.get(name, {}).get(line.letter)
    value = None if figure is None else getattr(figure, line.value)
    return None if value is None else value * line.scale


def show(line: Line, value: float | None) -> str:
    # Figures in ms are scaled, limits too: `below` gets what is shown.
    return "-" if value is None else line.form.format(value)
