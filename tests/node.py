"""The Node that runs scripts in tests, and what npm has installed for them.

`make test` installs what tests/js/package.json names; Playwright brings the Node.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import playwright

from tests.conftest import unavailable

SCRIPTS = Path(__file__).parent / "js"


def node() -> str:
    """Return a Node with WebSocket: Playwright's own, whatever is on PATH."""
    program = Path(playwright.__file__).parent / "driver/node"
    if program.exists():
        return str(program)
    raise unavailable("Playwright brings no Node here")


def installed(path: str) -> Path:
    """Return a file of what npm has installed, `axe-core/axe.min.js` say."""
    file = SCRIPTS / "node_modules" / path
    if file.exists():
        return file
    raise unavailable(f"npm has not installed {path} here: run `make test` where it reaches it")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    # What a developer's own Node is told, and a proxy that is for other addresses than this one.
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env.pop("NODE_OPTIONS", None)
    return subprocess.run(
        [node(), *arguments],
        cwd=SCRIPTS,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
