"""What deploy/, the Dockerfile and compose.yaml say, read for the tests that do as they say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.servers import ROOT

UNIT = ROOT / "deploy/tertulia@.service"
DOCKERFILE = ROOT / "Dockerfile"


def steps() -> Iterator[tuple[str, str]]:
    """Yield each instruction of the Dockerfile with what follows it on its lines."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line:
            name, _, rest = line.partition(" ")
            yield name, rest


def stages() -> list[list[tuple[str, str]]]:
    """Return the steps of each stage; the last one is the image."""
    found: list[list[tuple[str, str]]] = []
    for step in steps():
        if step[0] == "FROM":
            found.append([])
        found[-1].append(step)
    return found


def of_image(name: str) -> str:
    """Return the one instruction of this name in the image."""
    [rest] = [rest for step, rest in stages()[-1] if step == name]
    return rest


def container_command() -> list[str]:
    """Return what a container runs, which must not be a line for a shell."""
    command = json.loads(of_image("CMD"))
    assert isinstance(command, list)
    return command


def container_file(folder: Path) -> Path:
    """Make the hypercorn.toml of the image in the folder, as the build does."""
    [line] = [rest for step, rest in stages()[0] if step == "RUN" and "hypercorn.toml" in rest]
    shutil.copy(ROOT / "hypercorn.toml", folder)
    subprocess.run(shlex.split(line), cwd=folder, check=True)
    return folder / "hypercorn.toml"


def copied_from_here() -> list[str]:
    """Return what the first stage takes from the checkout."""
    return [name for step, rest in stages()[0] if step == "COPY" for name in rest.split()[:-1]]


def unit() -> dict[str, list[str]]:
    """Return the settings of the systemd unit; one may be given several times."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found
