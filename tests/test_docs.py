"""The documentation, held against the code in both directions, and its examples, run.

What is documented but absent fails here, and what is present but undocumented. Tables are read
row by row; the clients and the two ways to bring one's own users are taken out of the README and
run against the real program, through a proxy that loses what the test wants it to lose.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import json
import os
import pkgutil
import re
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

import chat.__main__ as program
from chat import incoming, protocol
from chat.app import create_app
from chat.errors import WireError
from chat.ops.config import load_config
from chat.settings import Settings
from chat.web import api, problems
from chat.web.connection import MAX_IN_FLIGHT
from chat.web.delivery import RECONNECT_SPREAD, SEND_LIMIT
from tests.conftest import ChatServerFactory
from tests.lossy import lossy
from tests.node import node
from tests.people import API_KEY, SOON, Person, a_room, ask, dial, site, until, whose
from tests.servers import SECRET_KEY

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PROTOCOL = ROOT / "docs/protocol.md"
DESIGN = ROOT / "docs/design.md"
DEPLOYMENT = ROOT / "docs/deployment.md"
OPERATIONS = ROOT / "docs/operations.md"
PAGES = (
    *(README, PROTOCOL, DESIGN, DEPLOYMENT, OPERATIONS, ROOT / "docs/data.md"),
    *(ROOT / "CHANGELOG.md", ROOT / "bench/README.md"),
)

# Where protocol.md says what is not there; nothing in it counts as documented.
NOT_BUILT = "Not built yet"

Rows = list[list[str]]


# --- Reading Markdown


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def sections(page: Path) -> dict[tuple[str, ...], str]:
    """Return the text under each heading, by the names of all headings above it."""
    found: dict[tuple[str, ...], str] = {}
    path: tuple[str, ...] = ()
    lines: list[str] = []
    fenced = False
    for line in text_of(page).splitlines():
        fenced ^= line.startswith("```")
        heading = re.match(r"(#+) (.+)", line)
        if heading and not fenced:
            found[path] = "\n".join(lines)
            path, lines = (*path[: len(heading[1]) - 1], heading[2].replace("`", "")), []
        else:
            lines.append(line)
    found[path] = "\n".join(lines)
    return found


def section(page: Path, *path: str) -> str:
    """Return the text under the heading whose names end so."""
    [found] = [text for names, text in sections(page).items() if names[-len(path) :] == path]
    return found


def tables(text: str) -> Iterator[Rows]:
    """Yield each table of the text, its head first, without the line of dashes."""
    rows: Rows = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            assert all(set(cell) <= {"-", ":"} for cell in rows[1]), rows[1]
            yield [rows[0], *rows[2:]]
            rows = []


def table(text: str, head: str) -> Rows:
    """Return the rows below the head of the one table whose first column is called so."""
    [found] = [rows for rows in tables(text) if rows[0][0] == head]
    return found[1:]


def code_in(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def first_codes(rows: Rows) -> list[str]:
    return [code for row in rows for code in code_in(row[0])]


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


def block(page: Path, language: str, what: str) -> str:
    """Return the one block of this language that holds `what`."""
    [found] = [text for text in blocks(page, language) if what in text]
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of all headings, as GitHub makes them."""
    names = [path[-1] for path in sections(page) if path]
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}


# --- Settings, commands, targets


def test_the_settings_table_is_the_settings() -> None:
    real = [
        [
            f"`{one.metadata['variable']}`",
            f"`{one.metadata['default']}`" if one.metadata["default"] else "none",
            one.metadata["help"],
        ]
        for one in fields(Settings)
    ]
    assert table(section(README, "Settings"), "variable") == real


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_speaks_of_a_setting_that_does_not_exist(page: Path) -> None:
    known = {one.metadata["variable"] for one in fields(Settings)}
    # The Django view's own; and what chooses the servers of the tests.
    known |= {"CHAT_URL", "CHAT_TEST_DATABASE_URL", "CHAT_TEST_REDIS_URL"}
    assert set(re.findall(r"CHAT_[A-Z_]+", text_of(page))) <= known


def test_the_make_targets_are_those_of_the_makefile() -> None:
    makefile = text_of(ROOT / "Makefile")
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    documented = first_codes(table(section(README, "Developing"), "command"))
    assert sorted(documented) == sorted(f"make {one}" for one in targets)
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", text_of(page))}
    assert named <= set(targets)


def test_the_variables_of_make_run_are_those_of_the_makefile() -> None:
    makefile = text_of(ROOT / "Makefile")
    for page in PAGES:
        for command in re.findall(r"make run((?: [A-Z]+=\S+)+)", text_of(page)):
            for name in re.findall(r"([A-Z]+)=", command):
                assert re.search(rf"^{name} *\??=", makefile, re.MULTILINE), name


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those of its commands, and of theirs."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers_of(below)


def test_the_commands_and_options_are_the_programs() -> None:
    [commands] = [
        action.choices
        for action in program._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    text = text_of(README)
    assert set(re.findall(r"`python -m chat ([a-z-]+)", text)) == set(commands)
    options = {
        option
        for parser in parsers_of(program._parser())
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--version")
    }
    told = section(README, "Settings") + section(README, "Commands")
    assert set(re.findall(r"`(--[a-z-]+)", told)) == options


def test_the_settings_of_several_nodes_let_checks_and_commands_in() -> None:
    text = block(README, "sh", "export CHAT_DATABASE_URL")
    given = dict(re.findall(r"(CHAT_\w+)=(\S+)", text))
    settings = Settings.load(given | {"CHAT_SECRET_KEY": SECRET_KEY})
    assert settings.allowed_hosts == ("chat.example.org", "127.0.0.1")


# --- Frames, errors, close codes

SERVER_STRUCTS = (
    protocol.Welcome,
    protocol.Ack,
    protocol.Error,
    protocol.Pong,
    protocol.Renewed,
    protocol.Closing,
    protocol.Present,
    protocol.Changed,
    protocol.Typing,
    protocol.Read,
    protocol.Redacted,
)
CLIENT_STRUCTS = (
    incoming.Send,
    incoming.History,
    incoming.Renew,
    incoming.Typing,
    incoming.Read,
    incoming.Ping,
)


def tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def wire_fields(kind: Any) -> set[str]:
    return {one.encode_name for one in msgspec.structs.fields(kind)}


def server_frames() -> dict[str, set[str]]:
    """Return the fields of each frame that the server sends."""
    joined = (
        protocol.messages_frame("lobby", []),
        protocol.history_frame("h1", "lobby", [], False),
    )
    frames: dict[str, set[str]] = {}
    for kind in SERVER_STRUCTS:  # `presence` has two shapes
        frames.setdefault(tag(kind), set()).update(wire_fields(kind))
    for raw in joined:
        frame = json.loads(raw)
        frames[frame["type"]] = set(frame) - {"type"}
    return frames


def documented_frames(side: str) -> dict[str, set[str]]:
    """Return the fields of each frame in protocol.md, as its tables name them."""
    found = {}
    for path, text in sections(PROTOCOL).items():
        if len(path) == 3 and path[1] == side:
            rows = [rows[1:] for rows in tables(text) if rows[0][0] == "field"]
            found[path[2]] = set(first_codes(rows[0])) if rows else set()
    return found


def test_all_structs_with_a_tag_are_looked_at_here() -> None:
    tagged = {
        kind
        for kind in [*vars(protocol).values(), *vars(incoming).values()]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and tag(kind) != "None"
    }
    assert tagged == {*SERVER_STRUCTS, *CLIENT_STRUCTS}


def test_the_frames_from_the_server_and_their_fields_are_documented() -> None:
    assert documented_frames("Frames from the server") == server_frames()


def test_the_frames_from_the_client_and_their_fields_are_documented() -> None:
    assert documented_frames("Frames from the client") == {
        tag(kind): wire_fields(kind) for kind in CLIENT_STRUCTS
    }


def test_the_fields_of_an_entry_are_documented() -> None:
    rows = table(section(PROTOCOL, "messages"), "field of an entry")
    assert set(first_codes(rows)) == wire_fields(protocol.Message)


def test_the_examples_of_frames_have_the_real_fields() -> None:
    examples = [json.loads(raw) for raw in blocks(PROTOCOL, "json")]
    assert {example["type"] for example in examples} == {"welcome", "messages"}
    for example in examples:
        assert set(example) - {"type"} == server_frames()[example["type"]]
        for entry in example.get("messages", []):
            assert set(entry) == wire_fields(protocol.Message) - {"redacted"}


def test_the_readme_names_each_frame_and_who_sends_it() -> None:
    server, client = set(server_frames()), {tag(kind) for kind in CLIENT_STRUCTS}
    documented = {code_in(row[0])[0]: row[1] for row in table(section(README, "The wire"), "frame")}
    assert documented == {
        name: "both" if name in server & client else "server" if name in server else "client"
        for name in server | client
    }


def wire_errors(kind: type[WireError] = WireError) -> Iterator[type[WireError]]:
    for one in kind.__subclasses__():
        yield one
        yield from wire_errors(one)


def test_the_error_codes_and_their_statuses_are_documented() -> None:
    rows = [
        row
        for rows in tables(section(PROTOCOL, "Errors"))
        if rows[0][0] == "code"
        for row in rows[1:]
    ]
    documented = {code_in(row[0])[0]: row[2] for row in rows}
    real = {one.code: str(one.status) for one in wire_errors()}
    real |= {code: str(status) for status, code in problems.CODES.items()}
    source = Path(problems.__file__).read_text(encoding="utf-8")
    for code, status in (("error", ""), ("fault", "500")):
        assert f'"{code}"' in source
        real[code] = status
    # It cannot happen over HTTP, where the body has no type.
    real["unknown_type"] = ""
    assert documented == real


@pytest.mark.parametrize(
    "text", [section(README, "The wire"), section(PROTOCOL, "Close codes")], ids=["readme", "docs"]
)
def test_the_close_codes_are_documented(text: str) -> None:
    rows = table(text, "close code" if "close code" in text else "code")
    documented = [int(code) for row in rows for code in row[0].split(",")]
    assert sorted(documented) == sorted(protocol.CloseCode)


def test_the_numbers_of_the_contract_are_the_codes() -> None:
    text = text_of(PROTOCOL)
    assert f"1 to {protocol.MAX_TEXT:,} characters" in text
    assert f"1 to {protocol.PAGE_MAX}, default {protocol.PAGE_DEFAULT}" in text
    assert f"{protocol.MAX_CLIENT_FRAME // 1024} KiB" in text
    assert f"1 to {api.MAX_TOKEN_TTL:,} s, default {api.TOKEN_TTL:,}" in text
    assert f"{api.ROOMS_PAGE} a page" in text
    assert f"`{protocol.ROOM_NAME.pattern}`" in text
    assert f"at {MAX_IN_FLIGHT} the server stops reading" in text
    assert f"0 to {RECONNECT_SPREAD:g}, random" in text
    assert f"within {SEND_LIMIT:g} s" in text
    assert f"takes {SEND_LIMIT:g} s for one frame" in text_of(README)


# --- HTTP


def routes(found: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and path of all that is served, paths as the docs write them."""
    for route in found:
        if isinstance(route, Mount):
            if route.routes:
                yield from routes(route.routes, prefix + route.path)
            else:
                yield "GET", f"{prefix}{route.path}/…"
        elif isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield method, _plain(prefix + route.path)
        elif isinstance(route, WebSocketRoute):
            yield "GET", _plain(prefix + route.path)
        else:
            raise AssertionError(f"an unknown kind of route: {route}")


def _plain(path: str) -> str:
    path = re.sub(r"\{(\w+):\w+\}", r"{\1}", path)
    return path.rstrip("/") or "/"


def documented_routes(text: str) -> set[tuple[str, str]]:
    found = (
        re.fullmatch(r"(GET|POST|PUT|DELETE) (/[^\s?]*)(\?\S*)?", one) for one in code_in(text)
    )
    return {(one[1], _plain(one[2])) for one in found if one}


def test_all_addresses_are_documented_and_no_others() -> None:
    app = create_app(Settings(secret_key=(SECRET_KEY,)))
    real = set(routes(app.routes))
    built = "".join(text for path, text in sections(PROTOCOL).items() if NOT_BUILT not in path)
    assert documented_routes(built) == real
    assert documented_routes(text_of(README)) <= real


def test_what_is_called_not_built_is_not_there() -> None:
    names = code_in(section(PROTOCOL, NOT_BUILT).partition(" A client that sends")[0])
    frames = set(server_frames()) | {tag(kind) for kind in CLIENT_STRUCTS}
    assert names and not frames & set(names)
    app = create_app(Settings(secret_key=(SECRET_KEY,)))
    assert not {path for _, path in routes(app.routes)} & set(names)


# --- Links, names of files and tests, numbers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    # Without what stands in code.
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(aim), f"{target} has no such heading"


def test_the_page_about_the_inside_names_files_that_exist() -> None:
    named = {one for one in code_in(text_of(DESIGN)) if re.match(r"(chat|tests|docs)/", one)}
    assert named
    assert not [one for one in named if not (ROOT / one).exists()]


def test_each_module_has_a_place_in_the_page_about_the_inside() -> None:
    named = code_in(text_of(DESIGN))
    folders = [one for one in named if one.endswith("/")]
    for path in (ROOT / "chat").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if path.name != "__init__.py":
            assert name in named or any(name.startswith(one) for one in folders), name


def test_the_tests_that_hold_the_rules_exist() -> None:
    named = {one for one in code_in(text_of(DESIGN)) if one.startswith("test_")}
    names = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(named) > 20
    assert named <= names, named - names


def test_the_bounds_have_the_values_that_are_told() -> None:
    rows = table(section(DESIGN, "The rules that keep the promises"), "bound")
    for row in rows:
        [name] = code_in(row[0])
        assert pkgutil.resolve_name(name) == float(row[1]), name


def test_the_picture_is_readable_in_light_and_dark() -> None:
    picture = text_of(ROOT / "docs/picture.svg")
    assert "prefers-color-scheme: dark" in picture
    # Nothing from elsewhere, which GitHub would not show.
    assert not re.search(r"href=|url\((?!#)|<script|<image", picture)


# --- hypercorn.toml


def test_the_comments_of_hypercorn_toml_fit() -> None:
    text = text_of(ROOT / "hypercorn.toml")
    config = load_config(ROOT / "hypercorn.toml")
    assert config.websocket_max_message_size == protocol.MAX_CLIENT_FRAME
    assert config.websocket_ping_interval is not None and config.read_timeout is not None
    # "above 2 pings"
    assert config.read_timeout > 2 * config.websocket_ping_interval
    # "no query string, no Referer"
    assert not re.search(r"%\((q|R|Uq|f|\{.*)\)", config.access_log_format)
    # "The same values are built in (…)"
    [place] = re.findall(r"chat/[a-z/_]+\.py", text)
    assert re.search(r"^DEFAULTS\b", text_of(ROOT / place), re.MULTILINE), place
    # What the other pages say of the same values.
    seconds = f"every {config.websocket_ping_interval:g} s"
    assert seconds in text_of(PROTOCOL)
    for page in (README, PROTOCOL):
        assert f"silent for {config.read_timeout} s" in text_of(page)


# --- The examples, run


# What the README leaves to its reader: each line of standard input is sent as a message; what is
# shown, and each clear, is a line of standard output.
NODE = """
import { createInterface } from "node:readline";
const url = process.argv[2];
const tell = (what) => console.log(JSON.stringify(what));
const show = (message) => tell(message), clear = () => tell("clear");
%s
createInterface({ input: process.stdin }).on("line", (text) => send(text));
"""
PYTHON = """
%s
import sys

def tell(what):
    print(json.dumps(what), flush=True)

url, show = sys.argv[1], tell

def clear():
    tell("clear")

async def main():
    loop = asyncio.get_running_loop()
    async def speak():
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await send(line.rstrip("\\n"))
    speaking = asyncio.create_task(speak())
    await follow()
    tell("over")
    speaking.cancel()

asyncio.run(main())
"""


class Example:
    """A client from the README, running as a program of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        # What it told, in order.
        self.told: list[Any] = []
        self._reading = asyncio.create_task(self._read(), name="example")

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The messages that are shown: those since the last clear."""
        places = [place for place, one in enumerate(self.told) if one == "clear"]
        since = self.told[places[-1] + 1 :] if places else self.told
        return [one for one in since if isinstance(one, dict)]

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.shown]

    def say(self, *texts: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{text}\n" for text in texts).encode())

    async def end(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.told.append(json.loads(line))


@asynccontextmanager
async def example(language: str, url: str, folder: Path) -> AsyncIterator[Example]:
    """Start the README's client of this language in a room."""
    if language == "js":
        file = folder / "client.mjs"
        file.write_text(NODE % block(README, "js", "new WebSocket"), encoding="utf-8")
        command = [node(), str(file)]
    else:
        file = folder / "client.py"
        file.write_text(PYTHON % block(README, "python", "from websockets"), encoding="utf-8")
        command = [sys.executable, str(file)]
    # A proxy that the machine may have set is for other addresses than this one.
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    process = await asyncio.create_subprocess_exec(
        *command, url, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    client = Example(process)
    try:
        yield client
    finally:
        await client.end()


async def log_of(reader: Person, room: str) -> list[dict[str, Any]]:
    answer = await reader.read(room, "?limit=200")
    assert answer.status == 200, answer.text
    return list(answer.json["messages"])


async def until_stored(reader: Person, room: str, text: str) -> None:
    """Wait until the log holds the text, whoever was told of it."""

    async def stored() -> bool:
        return any(one["text"] == text for one in await log_of(reader, room))

    await until(stored)


LANGUAGES = pytest.mark.parametrize("language", ["js", "python"])


@LANGUAGES
async def test_the_small_client_resumes_and_repeats(
    language: str, chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY, CHAT_SEND_RATE="off")
    maria, jon = await site(server), await site(server)
    room = a_room()
    for number in range(60):
        await jon.post(room, f"old {number}")
    async with lossy(server) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws/chat/{room}/?token={maria.token}"
        async with example(language, url, tmp_path) as client:
            expected = [f"old {number}" for number in range(10, 60)]
            await until(lambda: client.texts == expected)

            client.say("hola", "qué tal")
            expected += ["hola", "qué tal"]
            await until(lambda: client.texts == expected)

            # The ack is lost, and with it what others say. Both are there after the next welcome.
            proxy.swallowing = True
            client.say("perdido")
            await until_stored(jon, room, "perdido")
            await jon.post(room, "meanwhile")
            proxy.cut()
            proxy.swallowing = False
            expected += ["perdido", "meanwhile"]
            await until(lambda: client.texts == expected)

            # The server is gone for a while, and people go on typing.
            assert await server.stop() == 0
            client.say("typed while away")
            await server.start()
            expected += ["typed while away"]
            await until(lambda: client.texts == expected)

            # Nothing was shown twice and nothing forgotten: the log agrees.
            assert client.told.count("clear") == 1
            log = await log_of(jon, room)
            assert [one["text"] for one in log[10:]] == expected
            assert [one["seq"] for one in client.shown] == [one["seq"] for one in log[10:]]


@LANGUAGES
async def test_the_small_client_starts_afresh_in_another_log(
    language: str, chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    maria = await site(server)
    room = a_room()
    url = f"{server.ws_url}/ws/chat/{room}/?token={maria.token}"
    async with example(language, url, tmp_path) as client:
        # Also from an empty room.
        client.say("before")
        await until(lambda: client.texts == ["before"])
        await server.says("new-epoch", "--anyway")
        await until(lambda: client.told.count("clear") == 2 and client.texts == ["before"])
        client.say("after")
        await until(lambda: client.texts == ["before", "after"])


@LANGUAGES
async def test_the_small_client_waits_where_it_is_told_to(
    language: str, chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY, CHAT_SEND_RATE="4/second")
    maria = await site(server)
    room = a_room()
    url = f"{server.ws_url}/ws/chat/{room}/?token={maria.token}"
    async with example(language, url, tmp_path) as client:
        await until(lambda: client.told == ["clear"])
        # A refusal in between is given up, and stops nothing.
        client.say("1", "2", "x" * 4_001, "3", "4", "5", "6")
        await until(lambda: len(client.shown) == 6)
        assert sorted(client.texts) == ["1", "2", "3", "4", "5", "6"]


@LANGUAGES
async def test_the_small_client_hears_others_while_a_refused_send_waits(
    language: str, chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY, CHAT_SEND_RATE="1/hour")
    maria, jon = await site(server), await site(server)
    room = a_room()
    async with lossy(server) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws/chat/{room}/?token={maria.token}"
        async with example(language, url, tmp_path) as client:
            await until(lambda: client.told == ["clear"])
            client.say("hola", "too soon")
            await until(lambda: b'"rate_limited"' in proxy.passed)
            await jon.post(room, "meanwhile")
            await until(lambda: client.texts == ["hola", "meanwhile"])


@LANGUAGES
async def test_the_small_client_stays_away_where_it_is_told_to(
    language: str, chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    async with lossy(server) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws/chat/lobby/?token=wrong"
        async with example(language, url, tmp_path) as client:
            if language == "python":
                await until(lambda: client.told == ["over"])
            else:
                # Node ends by itself once there is nothing to wait for.
                assert client.process.stdin is not None
                client.process.stdin.close()
                async with asyncio.timeout(SOON):
                    assert await client.process.wait() == 0
            assert proxy.count == 1
    assert server.log.count("Unauthenticated user trying to connect to chat") == 1


async def test_the_session_of_another_application_opens_the_chat(
    chat_server: ChatServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of several keys the first one signs, here and there.
    keys = f"{SECRET_KEY}, an-older-key-for-tests-only"
    site_url = "http://127.0.0.1:9000"
    login_url = f"{site_url}/sign-in"
    assert login_url in section(README, "Your own users")
    server = await chat_server(CHAT_SECRET_KEY=keys, CHAT_SIGN_IN="off", CHAT_LOGIN_URL=login_url)
    monkeypatch.setenv("CHAT_SECRET_KEY", keys)
    names: dict[str, Any] = {}
    exec(block(README, "python", "SessionMiddleware"), names)
    app: Starlette = names["app"]
    with TestClient(app, site_url, follow_redirects=False) as web:
        # As a browser does: the chat sends it to the form, and the form back to the chat.
        redirect = await ask(server, "GET", "/test-chat/lobby/")
        assert redirect.status == 303
        answer = web.get(redirect.headers["location"])
        assert answer.status_code == 200 and "<form method=post>" in answer.text
        answer = web.post(redirect.headers["location"])
        assert answer.status_code == 303
        assert answer.headers["location"] == "http://127.0.0.1:8000/test-chat/lobby/"
        cookie = f"session={web.cookies['session']}"
    person = await whose(server, {"Cookie": cookie})
    assert person.name == "maria"
    async with person.enter("lobby") as member:
        assert member.welcome["user"]["name"] == "maria"
        assert member.welcome["expires_at"] is not None


# Django's own part: what a project has, a user who is signed in, and a request.
DJANGO = """
import sys
from django.conf import settings
settings.configure(
    SECRET_KEY="for-tests-only", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import django
django.setup()
%s
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import path
urlpatterns = [path("chat/token", chat_token)]
call_command("migrate", verbosity=0)
web = Client()
assert web.get("/chat/token").status_code == 302
for name in ("maria", "x" * 33):
    web.force_login(User.objects.create_user(name))
    answer = web.get("/chat/token")
    print(answer.status_code, answer["Content-Type"], answer.content.decode())
os.environ["CHAT_API_KEY"] = "another"
print(web.get("/chat/token").status_code)
"""


async def test_the_django_view_gets_a_token_that_opens_the_chat_or_says_why_not(
    chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY, CHAT_SIGN_IN="off")
    file = tmp_path / "project.py"
    file.write_text(DJANGO % block(README, "python", "from django"), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env |= {"CHAT_URL": server.url, "CHAT_API_KEY": API_KEY}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(file), env=env, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(SOON):
        output, _ = await process.communicate()
    assert process.returncode == 0
    good, refused, wrong_key = output.decode().splitlines()
    # What the API refuses is passed on with its sentence.
    assert refused.startswith("400 application/problem+json") and "32 characters" in refused
    assert wrong_key == "401"
    status, _, body = good.split(" ", 2)
    assert status == "201"
    made = json.loads(body)
    assert made["user"]["name"] == "maria"
    async with dial(server, f"/ws/chat/lobby/?token={made['token']}") as socket:
        welcome = json.loads(await socket.recv())
        assert welcome["user"] == made["user"]
        assert welcome["expires_at"] == made["expires_at"]
