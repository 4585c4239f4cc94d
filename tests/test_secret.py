"""The key that is made where nobody set one: once, for its owner alone, the same for all."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from chat.errors import SettingsError
from chat.ops.secret import KEY_BYTES, kept_key, with_secret_key
from chat.settings import MIN_SECRET, Settings
from tests.servers import ChatServer

KEY = "sixteen-letters!"
STARTS = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder that is not there yet."""
    return tmp_path / "var" / "secret_key"


def made(path: Path) -> str:
    (key,) = with_secret_key(Settings.load({}), path).secret_key
    return key


def test_a_key_that_is_set_is_used_and_nothing_is_written(path: Path) -> None:
    settings = Settings.load({"CHAT_SECRET_KEY": KEY})
    assert with_secret_key(settings, path) is settings
    assert not path.parent.exists()


def test_a_key_is_made_for_its_owner_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        with caplog.at_level(logging.INFO):
            key = made(path)
    finally:
        os.umask(before)
    assert len(key) > KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == f"{key}\n"
    assert [one.name for one in path.parent.iterdir()] == ["secret_key"]
    assert (
        f"CHAT_SECRET_KEY is not set: made a key and keep it in {path} (mode 0600)" in caplog.text
    )
    assert key not in caplog.text


def test_the_key_is_made_once_and_used_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = made(path)
    with caplog.at_level(logging.INFO):
        assert made(path) == key
    assert f"using the key in {path}" in caplog.text
    assert key not in caplog.text
    assert made(path.with_name("other")) != key


def test_all_other_settings_stay(path: Path) -> None:
    settings = Settings.load({"CHAT_SIGN_IN": "off"})
    assert with_secret_key(settings, path).sign_in == "off"


def _start(path: Path, keys: multiprocessing.SimpleQueue[str]) -> None:
    keys.put(made(path))


def test_starts_at_the_same_moment_agree_on_one_key(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    keys: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    starts = [context.Process(target=_start, args=(path, keys)) for _ in range(STARTS)]
    for one in starts:
        one.start()
    for one in starts:
        one.join()
    assert [one.exitcode for one in starts] == [0] * STARTS
    assert {keys.get() for _ in starts} == {path.read_text().strip()}
    assert [one.name for one in path.parent.iterdir()] == ["secret_key"]


def test_what_a_killed_start_left_behind_stops_no_later_one(path: Path) -> None:
    path.parent.mkdir()
    # In a container each start has the same process id.
    path.with_name(f"secret_key.{os.getpid()}").write_text("half a k")
    assert len(made(path)) > KEY_BYTES


def test_white_space_around_a_kept_key_is_no_part_of_it(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(f"\n {KEY} \r\n")
    assert made(path) == KEY


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"x" * (MIN_SECRET - 1), b"\xff\xfe"])
def test_a_kept_key_that_is_too_short_stops_the_start(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"CHAT_SECRET_KEY.*too short; delete the file"
    ) as wrong:
        made(path)
    assert str(path) in str(wrong.value)
    assert "short\n" not in str(wrong.value)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_kept_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where a folder should be")
    path = tmp_path / "var" / "secret_key"
    with pytest.raises(
        SettingsError, match=r"^CHAT_SECRET_KEY is not set, and .*; set it to .*\.$"
    ):
        made(path)


async def test_a_key_that_this_user_cannot_read_is_another_sentence(tmp_path: Path) -> None:
    made(tmp_path / "var" / "secret_key")
    (tmp_path / "var" / "secret_key").chmod(0)
    server = ChatServer(tmp_path, {"CHAT_SECRET_KEY": None})
    server.obeys = True
    server.spawn()
    assert await server.wait() == 2
    assert server.log.endswith(
        "CHAT_SECRET_KEY is not set, and var/secret_key cannot be read: Permission denied; let the"
        " chat's own user read it, or set CHAT_SECRET_KEY.\n"
    )


def test_a_key_that_others_can_read_is_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = made(path)
    assert not caplog.records
    path.chmod(0o640)
    assert made(path) == key
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage() == f"Others can read the key in {path}; its mode should be 0600"


def test_a_key_is_looked_for_without_making_one(path: Path) -> None:
    assert kept_key(path) is None
    assert not path.parent.exists()
    assert made(path) == kept_key(path)


def test_a_link_that_leads_nowhere_stops_the_start(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("nowhere")
    with pytest.raises(SettingsError, match="secret_key cannot be kept: No such file"):
        made(path)


def test_a_folder_in_the_place_of_the_key_stops_the_start(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(SettingsError, match="CHAT_SECRET_KEY is not set"):
        made(path)
