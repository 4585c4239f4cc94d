"""The distribution, built and installed: it serves all there is from a folder with nothing in it.

Built from what the Dockerfile copies, by way of the sdist; started as the container and the
systemd unit start it. Nothing is fetched: the packages it needs are those of the tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from chat import __version__
from tests.deployed import container_command, container_file, copied_from_here, unit
from tests.people import ask, guest
from tests.servers import ROOT, SECRET_KEY, START_LIMIT, ChatServer, launch

BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def built(kind: str, source: Path, folder: Path) -> Path:
    """Call a hook of the build backend, as pip does; return the file that it made."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, f"build_{kind}", str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=START_LIMIT,
    )
    assert ended.returncode == 0, ended.stderr
    return folder / ended.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in copied_from_here():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    with tarfile.open(built("sdist", source, folder)) as archive:
        # Debian's Python 3.11 knows no filters; the archive is our own.
        archive.extractall(
            folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return built("wheel", folder / f"tertulia-{__version__}", folder)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what it needs is borrowed from the tests' own."""
    folder = tmp_path_factory.mktemp("opt") / "tertulia"
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    subprocess.run([*pip, "-qq", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder


class Installed(ChatServer):
    """The installed program, started by a command with places for a port."""

    def __init__(self, folder: Path, environment: Path, command: list[str]) -> None:
        super().__init__(folder, {})
        self.log_file = folder.parent / f"{folder.name}.log"
        self.path = environment / "bin"
        # Where programs like to leave something.
        self.elsewhere = folder.parent / "elsewhere"
        self.command_line = [
            word.replace("%i", str(self.port)).replace("/opt/tertulia", str(environment))
            for word in command
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.path}:/usr/bin:/bin",
            "CHAT_SECRET_KEY": SECRET_KEY,
            "HOME": str(self.elsewhere),
            "TMPDIR": str(self.elsewhere),
        }

    def spawn(self, *arguments: str) -> None:
        program = shutil.which(self.command_line[0], path=str(self.path))
        assert program is not None
        self.process = launch(
            [program, *self.command_line[1:]],
            folder=self.folder,
            log=self.log_file,
            env=self.environment,
        )


def files_of(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {f"chat/{name}" for name in files_of(ROOT / "chat")}
    wanted |= {f"chat/templates/{name}" for name in files_of(ROOT / "templates")}
    assert held == wanted


@pytest.mark.parametrize("how", ["container", "unit"])
async def test_it_serves_everything_from_an_empty_folder_and_writes_to_var_alone(
    how: str, environment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    command = container_command() if how == "container" else unit()["ExecStart"][0].split()
    server = Installed(folder, environment, command)
    server.elsewhere.mkdir()
    if how == "container":
        file = container_file(folder)
        file.write_text(file.read_text().replace("0.0.0.0:8000", f"127.0.0.1:{server.port}"))
    await server.start()
    try:
        page = await ask(server, "GET", "/login", {"Accept-Language": "es"})
        assert (page.status, '<html lang="es">' in page.text) == (200, True)
        assert "Nombre" in page.text
        for name in files_of(ROOT / "chat/web/static"):
            answer = await ask(server, "GET", f"/static/{name}")
            assert answer.body == (ROOT / "chat/web/static" / name).read_bytes(), name
        assert (await ask(server, "GET", "/readyz")).json["status"] == "ok"
        maria = await guest(server)
        async with maria.enter("lobby") as member:
            await member.say("hola")
            await member.read_to(1)
        # Other commands find the same database.
        listing = subprocess.run(
            [environment / "bin/tertulia", "user", "list"],
            cwd=folder,
            env=server.environment,
            capture_output=True,
            text=True,
        )
        assert maria.name in listing.stdout
    finally:
        # The very process that was started gets the signal, and drains.
        assert await server.stop() == 0, server.log
    there = {"var", "hypercorn.toml"} if how == "container" else {"var"}
    assert {path.name for path in folder.iterdir()} == there
    assert not list(server.elsewhere.iterdir())
    told = subprocess.run(
        [environment / "bin/python", "-c", "import chat; print(chat.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert told.stdout.startswith(str(environment))
