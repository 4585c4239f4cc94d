"""The client in the browser, chat-client.js and its siblings: its tests, and all scripts' types.

The tests are in tests/js and run in Node, against a server that says what each of them lets it say.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.node import SCRIPTS, installed, run

FILES = sorted(SCRIPTS.glob("*.test.js"))

# Milliseconds that one test may take; some hundredths of a second will do, as its clock is its own.
PATIENCE = 20_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.partition(".")[0])
def test_the_client_does_as_its_own_tests_say(file: Path) -> None:
    done = run("--test", "--test-reporter=tap", f"--test-timeout={PATIENCE}", file)
    counts = {name: int(n) for name, n in re.findall(r"^# ([a-z]+) (\d+)$", done.stdout, re.M)}
    assert done.returncode == 0, done.stdout
    # None is passed over, either.
    assert counts["pass"] == counts["tests"] > 1, done.stdout


def test_the_scripts_keep_their_types() -> None:
    done = run(installed("typescript/bin/tsc"), "--project", SCRIPTS)
    assert done.returncode == 0, done.stdout
