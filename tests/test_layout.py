"""The shape of chat/: who may import whom, which names are banned, how long a file may be.

Imports go down only: app, web, live, log. `faults` reads code without running it, and is itself
tested on small made-up trees.
"""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

# Lines of the longest file that chat/ may have.
MAX_LINES = 300

# These may be imported by all.
COMMON = (
    "chat.clock",
    "chat.errors",
    "chat.protocol",
    "chat.incoming",
    "chat.settings",
    "chat.ops.metrics",
    "chat.ops.logging",
)

# What a module may import of ours: the entry with the longest fitting name counts. A name stands
# for the module and all below it. The version, in `chat` itself, may be imported by all.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "chat": (),
    "chat.clock": (),
    "chat.errors": COMMON[:5],
    "chat.protocol": COMMON[:5],
    "chat.incoming": COMMON[:5],
    "chat.settings": COMMON[:5],
    "chat.unsent": COMMON,
    "chat.outgoing": COMMON,
    "chat.patience": (),
    "chat.link": ("chat.outgoing", "chat.patience", *COMMON),
    "chat.client": ("chat.link", "chat.outgoing", "chat.patience", "chat.unsent", *COMMON),
    "chat.log": ("chat.log", *COMMON),
    "chat.live": ("chat.live", "chat.log", *COMMON),
    "chat.web": ("chat.web", "chat.live", "chat.log", "chat.ops.health", *COMMON),
    # The server is given the app factory, and knows nothing of the app.
    "chat.ops": ("chat.ops", *COMMON),
    "chat.ops.metrics": (),
    "chat.ops.logging": ("chat.ops.repeats",),
    "chat.ops.repeats": (),
    "chat.ops.health": ("chat.live", "chat.log", *COMMON),
    # They work beside a server: on the log, or as a client.
    "chat.commands": (
        "chat.commands",
        "chat.client",
        "chat.link",
        "chat.live.redis_backend",
        "chat.live.redis_session",
        "chat.log",
        "chat.ops",
        "chat.patience",
        "chat.web.identity",
        *COMMON,
    ),
    "chat.app": ("chat.web", "chat.live", "chat.log", "chat.ops", *COMMON),
    "chat.__main__": ("chat",),
}

# Modules, ours and others', that only these may import: what is wrong with the others is fenced
# in there, and what ours know stays out of the layers below.
ONLY_BY = {
    "chat.app": ("chat.__main__",),
    "chat.ops.health": ("chat.app", "chat.web", "chat.__main__"),
    "broadcaster": ("chat.live.relay", "chat.live.redis_backend"),
    "databases": ("chat.log",),
    "sqlalchemy": ("chat.log",),
    "alembic": ("chat.log",),
    "websockets": ("chat.link",),
}

BANNED_WORDS = ("manager", "handler", "helper", "utils")

# Modules whose tests stand in a file with another name.
TESTED_IN = {"chat.__main__": "test_main.py"}


def below(module: str, name: str) -> bool:
    """Say whether `module` is the one called `name`, or lies in it."""
    return module == name or module.startswith(f"{name}.")


def module_files(root: Path) -> dict[str, Path]:
    """Return all modules of the tree's `chat`, by full name."""
    files = {}
    for path in sorted((root / "chat").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of all that is imported, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" for alias in node.names)


def faults(root: Path) -> list[str]:
    """Return a sentence for each breach of the rules in the tree's `chat`."""
    files = module_files(root)
    found = []
    for module, path in files.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        if (lines := len(source.splitlines())) > MAX_LINES:
            found.append(f"{module} has {lines} lines, above {MAX_LINES}")
        found += [f"{module} {fault}" for fault in import_faults(module, tree, set(files))]
        found += [f"{module} {fault}" for fault in call_faults(tree)]
        classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for name in [*classes, path.stem, *path.relative_to(root).parent.parts]:
            if any(word in name.lower() for word in BANNED_WORDS):
                found.append(f"{module}: {name} is no name that says what it is")
    return found


def import_faults(module: str, tree: ast.Module, ours: set[str]) -> Iterator[str]:
    may = MAY_IMPORT[max((name for name in MAY_IMPORT if below(module, name)), key=len)]
    for name in sorted(set(imports(tree))):
        if name.startswith("."):
            yield f"imports {name} by a relative name"
        for target, importers in ONLY_BY.items():
            if below(name, target) and not any(below(module, one) for one in (target, *importers)):
                yield f"may not import {target}: only {', '.join(importers)} may"
        if below(name, "chat"):
            # A name imported from a module stands for the module.
            while name not in ours:
                name = name.rpartition(".")[0]
            if name not in ("chat", module) and not any(below(name, one) for one in may):
                yield f"may not import {name}"


def call_faults(tree: ast.Module) -> Iterator[str]:
    """Yield each use of what loses cancellations (wait_for) or connections (the others)."""
    knows_databases = any(below(name, "databases") for name in imports(tree))
    for name in imports(tree):
        if name == "asyncio.wait_for":
            yield "imports asyncio.wait_for: use asyncio.timeout"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        used = ast.unparse(node)
        if used == "asyncio.wait_for":
            yield "uses asyncio.wait_for: use asyncio.timeout"
        elif node.attr == "iterate":
            yield f"uses {used}: read by fetch_all, in pages"
        elif node.attr == "transaction" and knows_databases and not on_raw_connection(node):
            yield f"uses {used}: use the raw connection's"


def on_raw_connection(node: ast.Attribute) -> bool:
    """Say whether it is the driver's own connection that the attribute is taken from."""
    return ast.unparse(node.value).endswith(("raw", "raw_connection"))


def file_of_tests(module: str) -> str:
    return TESTED_IN.get(module, f"test_{module.rpartition('.')[2]}.py")


def modules_with_tests() -> list[str]:
    return [
        module
        for module, path in module_files(ROOT).items()
        if path.name != "__init__.py" and not below(module, "chat.log.migrations")
    ]


def test_the_code_keeps_the_import_table_and_the_bans() -> None:
    assert not faults(ROOT), "\n".join(faults(ROOT))


@pytest.mark.parametrize("module", modules_with_tests())
def test_each_module_has_a_test_file(module: str) -> None:
    assert (ROOT / "tests" / file_of_tests(module)).exists()


def test_the_distribution_holds_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split()) - {"chat.templates"}
    assert listed == {
        module for module, path in module_files(ROOT).items() if path.name == "__init__.py"
    }


def test_the_distribution_names_all_that_it_imports() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    fast = config["options.extras_require"]["fast"]
    lines = (config["options"]["install_requires"] + fast).splitlines()
    declared = {
        canonicalize_name(Requirement(line).name) for line in lines if line and line[0] != "#"
    }
    sources = [path.read_text(encoding="utf-8") for path in module_files(ROOT).values()]
    used = {name.partition(".")[0] for source in sources for name in imports(ast.parse(source))}
    providers = packages_distributions()
    for name in used - sys.stdlib_module_names - {"chat"}:
        assert {canonicalize_name(one) for one in providers[name]} & declared, (
            f"{name} is not in setup.cfg"
        )


ALLOWED = {
    "chat/__init__.py": "__version__ = '1'",
    "chat/errors.py": "",
    "chat/app.py": "from chat.web import sockets\nfrom chat.live.hub import Hub",
    "chat/__main__.py": "from chat.app import create_app",
    "chat/web/sockets.py": "from chat import __version__\nfrom chat.live.hub import Hub",
    "chat/live/hub.py": "import chat.errors\nfrom chat.log.writer import Writer",
    "chat/live/relay.py": "from broadcaster import Broadcast",
    "chat/log/writer.py": "import databases\nasync with raw.transaction(): pass",
    "chat/ops/metrics.py": "import time",
}


def made_up(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith("async with"):
            source = f"async def run():\n    {source}"
        path.write_text(source.replace("\nasync with", "\nasync def run():\n    async with"))
    return root


def test_a_tree_that_keeps_the_rules_has_no_faults(tmp_path: Path) -> None:
    assert faults(made_up(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("chat/log/tables.py", "from chat.live.hub import Hub", "may not import chat.live.hub"),
        ("chat/log/tables.py", "from chat.live import hub", "may not import chat.live.hub"),
        ("chat/live/room.py", "import chat.web.sockets", "may not import chat.web.sockets"),
        ("chat/live/room.py", "def f():\n    import chat.app", "may not import chat.app"),
        ("chat/web/api.py", "from chat.app import x", "only chat.__main__ may"),
        ("chat/web/api.py", "from chat import app", "only chat.__main__ may"),
        ("chat/errors.py", "from chat.log.writer import Writer", "may not import chat.log.writer"),
        ("chat/ops/server.py", "from chat.live.hub import Hub", "may not import chat.live.hub"),
        ("chat/ops/metrics.py", "import chat.errors", "may not import chat.errors"),
        ("chat/brandnew.py", "import chat.errors", "may not import chat.errors"),
        ("chat/live/room.py", "from .hub import Hub", "by a relative name"),
        ("chat/live/hub.py", "from broadcaster import Broadcast", "only chat.live.relay"),
        ("chat/live/hub.py", "import databases.core", "only chat.log may"),
        ("chat/web/api.py", "from sqlalchemy import select", "only chat.log may"),
        ("chat/live/hub.py", "import asyncio\nasyncio.wait_for(x, 1)", "use asyncio.timeout"),
        ("chat/live/hub.py", "from asyncio import wait_for", "use asyncio.timeout"),
        ("chat/log/read.py", "import databases\ndb.transaction()", "use the raw connection's"),
        ("chat/log/read.py", "self.db.iterate(query)", "in pages"),
        ("chat/live/hub.py", "class RoomManager: pass", "RoomManager is no name"),
        ("chat/live/utils.py", "", "utils is no name"),
        ("chat/helpers/room.py", "", "helpers is no name"),
        ("chat/live/hub.py", "\n" * (MAX_LINES + 1), "301 lines"),
    ],
)
def test_each_breach_of_the_rules_is_a_fault(
    tmp_path: Path, name: str, source: str, fault: str
) -> None:
    found = faults(made_up(tmp_path, ALLOWED | {name: source}))
    assert any(fault in sentence for sentence in found), found
