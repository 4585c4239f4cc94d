"""hypercorn.toml, the options over it, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypercorn.config import Config

from chat.errors import ChatError, SettingsError
from chat.ops import config
from chat.ops.server import load_config

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_file_and_the_built_in_defaults_are_the_same() -> None:
    assert tomllib.loads((CHECKOUT / "hypercorn.toml").read_text()) == config.DEFAULTS


def test_every_default_is_a_setting_of_hypercorn() -> None:
    assert all(hasattr(Config, key) for key in config.DEFAULTS)


def test_the_given_file_comes_first_then_the_folders_then_the_checkouts(tmp_path: Path) -> None:
    assert load_config().backlog == 1024
    (tmp_path / "hypercorn.toml").write_text("backlog = 7")
    assert load_config().backlog == 7
    (tmp_path / "other.toml").write_text("backlog = 8")
    assert load_config(Path("other.toml")).backlog == 8


def test_it_can_be_told_which_file_is_read_and_what_it_sets(tmp_path: Path) -> None:
    assert config.found_file() == CHECKOUT / "hypercorn.toml"
    (tmp_path / "hypercorn.toml").write_text("backlog = 7")
    assert config.found_file() == Path("hypercorn.toml")
    assert config.named_in(config.found_file()) == {"backlog"}
    assert config.named_in(None) == set()


def test_without_any_file_the_built_in_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "FILE_NAME", "nowhere.toml")
    loaded = load_config()
    assert loaded.bind == ["127.0.0.1:8000"] and loaded.read_timeout == 50
    assert config.DEFAULTS["bind"] == ["127.0.0.1:8000"]


def test_options_override_the_file() -> None:
    loaded = load_config(bind=["[::1]:9000"], workers=3)
    assert loaded.bind == ["[::1]:9000"] and loaded.workers == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("websocket_ping_intervall = 5", "there is no setting 'websocket_ping_intervall'"),
        ("_bind = []", "there is no setting '_bind'"),
        ("from_toml = 1", "there is no setting 'from_toml'"),
        ("ssl_enabled = true", "ssl_enabled cannot be set"),
        ("backlog = 'many'", "backlog must be like 100"),
        ("backlog = true", "backlog must be like 100"),
        ("backlog = -1", "backlog must be like 100"),
        ("include_server_header = 1", "include_server_header must be like True"),
        ("bind = 5", "bind must be text, or a list of texts"),
        ("bind = ['a:b:c']", "bind must be like 127.0.0.1:8000, not 'a:b:c'"),
        ("bind = '127.0.0.1:65536'", "bind must be like"),
        ("workers = 0", "workers must be at least 1, not 0"),
        ("workers = 'two'", "workers must be like 1"),
        ("backlog = ", "is not valid TOML"),
        ("certfile = 5", "certfile must be text, not 5"),
        ("certfile = 'away.pem'", "certfile away.pem cannot be read: No such file or directory."),
        ("keyfile = '/'", "keyfile / cannot be read: Is a directory."),
        ("certfile = 'hypercorn.toml'", "certfile needs the other of certfile and keyfile."),
        ("ca_certs = 'away.pem'", "ca_certs away.pem cannot be read: No such file"),
        ("logconfig = 'away.ini'", "logconfig away.ini cannot be read: No such file"),
        ("logconfig = 'toml:away'", "logconfig toml:away cannot be read: No such file"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "hypercorn.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_config(path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_there_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "hypercorn.toml"
    path.write_text(
        "certfile = 'hypercorn.toml'\nkeyfile = 'hypercorn.toml'\nlogconfig = 'toml:hypercorn.toml'"
    )
    loaded = load_config(path)
    assert (loaded.certfile, loaded.logconfig) == ("hypercorn.toml", "toml:hypercorn.toml")


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"away.toml cannot be read"):
        load_config(Path("away.toml"))


@pytest.mark.parametrize("address", ["192.0.2.1:80", "no-such-host.invalid:80"])
def test_an_address_that_cannot_be_had_is_one_sentence(address: str) -> None:
    with pytest.raises(ChatError, match=rf"Address {address} cannot be used: "):
        config.bound(address)


def test_workers_cannot_share_a_unix_socket() -> None:
    with pytest.raises(SettingsError, match="cannot share unix:/run/chat"):
        config.bound("unix:/run/chat", shared=True)


def test_an_address_is_shared_only_where_both_sides_say_so() -> None:
    with config.bound("127.0.0.1:0", shared=True) as held:
        address = config.address_of(held)
        with config.bound(address, shared=True) as other:
            other.listen()
            with pytest.raises(ChatError, match="is in use"):
                config.bound(address)


def test_ipv6_addresses_keep_their_brackets() -> None:
    assert config.host_and_port("[::1]:8000") == ("::1", 8000)
    assert config.host_and_port("[::1]") == ("::1", 8000)
