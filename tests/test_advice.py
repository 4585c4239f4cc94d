"""What the settings are likely not meant to be, in sentences."""

from __future__ import annotations

import resource

import pytest

from chat.ops.advice import oddities
from chat.settings import Settings
from tests.conftest import ChatServerFactory
from tests.people import lines_with
from tests.servers import SECRET_KEY

HERE = ["127.0.0.1:8000"]
PUBLIC = {"CHAT_ALLOWED_HOSTS": "chat.example.org,127.0.0.1", "CHAT_COOKIE_SECURE": "1"}
GOOD = {**PUBLIC, "CHAT_TRUSTED_PROXIES": "127.0.0.1"}


def advice(bind: list[str] = HERE, **environ: str) -> list[str]:
    """Each sentence's first word: the setting that it is about."""
    sentences = oddities(Settings.load(environ), bind)
    assert all(sentence.endswith(".") for sentence in sentences)
    return [sentence.split()[0] for sentence in sentences]


def test_what_fits_together_needs_no_word() -> None:
    assert advice() == []
    assert advice(["localhost:1", "[::1]:1", "unix:/run/chat.sock", "127.0.0.2"]) == []
    assert advice(**GOOD) == []
    assert advice(["0.0.0.0:80"], **{**GOOD, "CHAT_TRUSTED_PROXIES": "10.0.0.0/8"}) == []
    assert advice(CHAT_SIGN_IN="off", CHAT_LOGIN_URL="https://www.example.org/") == []
    assert advice(CHAT_RELAY_URL="rediss://redis.internal") == []
    assert advice(CHAT_RELAY_URL="redis://:secret@redis.internal") == []
    for own in ("redis://localhost", "redis://[::1]:6379", "redis://", "redis:///2"):
        assert advice(CHAT_RELAY_URL=own) == []


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "[::]:8000", "10.1.2.3:8000"])
def test_who_listens_to_others_must_know_its_name(bind: str) -> None:
    assert advice([bind]) == ["CHAT_ALLOWED_HOSTS"]


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:8000", "127.0.0.1", "localhost:1", "0.0.0.0:8000", "[::]:8000", "[::]"]
)
def test_who_can_be_asked_from_this_machine_must_know_that_name_too(bind: str) -> None:
    hosts = {**GOOD, "CHAT_ALLOWED_HOSTS": "chat.example.org"}
    assert advice([bind], **hosts) == ["CHAT_ALLOWED_HOSTS"]
    assert advice([bind, "unix:/run/chat.sock"], **hosts) == ["CHAT_ALLOWED_HOSTS"]
    [sentence] = oddities(Settings.load(hosts), [bind])
    assert "lacks 127.0.0.1" in sentence


@pytest.mark.parametrize("bind", ["unix:/run/chat.sock", "10.1.2.3:8000", "[::1]:8000"])
def test_who_cannot_be_asked_as_127_0_0_1_needs_no_such_name(bind: str) -> None:
    assert advice([bind], **{**GOOD, "CHAT_ALLOWED_HOSTS": "chat.example.org"}) == []


@pytest.mark.parametrize(
    ("about", "environ"),
    [
        ("CHAT_ALLOWED_HOSTS", {"CHAT_ALLOWED_HOSTS": "*", "CHAT_TRUSTED_PROXIES": "127.0.0.1"}),
        ("CHAT_COOKIE_SECURE", {**GOOD, "CHAT_COOKIE_SECURE": "0"}),
        ("CHAT_TRUSTED_PROXIES", PUBLIC),
        ("CHAT_TRUSTED_PROXIES", {**GOOD, "CHAT_TRUSTED_PROXIES": "0.0.0.0/0"}),
        ("CHAT_TRUSTED_PROXIES", {**GOOD, "CHAT_TRUSTED_PROXIES": "10.0.0.1,::/0"}),
        ("CHAT_LOGIN_URL", {"CHAT_LOGIN_URL": "/sign-in"}),
        ("CHAT_API_KEY", {"CHAT_API_KEY": "guessed"}),
        ("CHAT_ALLOWED_ORIGINS", {**GOOD, "CHAT_ALLOWED_ORIGINS": "http://www.example.org"}),
        ("CHAT_RELAY_URL", {"CHAT_RELAY_URL": "redis://redis.internal"}),
        (
            "CHAT_RELAY_URL",
            {"CHAT_DATABASE_URL": "postgresql://db/chat", "CHAT_SECRET_KEY": SECRET_KEY},
        ),
    ],
)
def test_what_does_not_fit_together_is_named(about: str, environ: dict[str, str]) -> None:
    assert advice(**environ) == [about]


def test_too_few_files_for_its_sockets_is_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1_024))
    assert advice() == ["A"]


async def test_the_start_says_it_and_takes_all_files_that_it_may_have(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_API_KEY="guessed", CHAT_LOGIN_URL="/sign-in")
    for sentence in ("CHAT_API_KEY has fewer than 16 characters", "CHAT_LOGIN_URL has no effect"):
        [line] = lines_with(server, sentence)
        assert " WARNING " in line
    assert "guessed" not in server.log
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
