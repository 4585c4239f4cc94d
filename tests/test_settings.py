"""Settings from the environment: defaults, values, and one sentence for each wrong one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from chat.errors import SettingsError
from chat.settings import Settings

KEY = "sixteen-letters!"
PASSWORD = "pass-never-shown"

# The contract's section 7: variable, attribute, default.
DEFAULTS: dict[str, tuple[str, Any]] = {
    "CHAT_DATABASE_URL": ("database_url", "sqlite:///var/chat.db"),
    "CHAT_RELAY_URL": ("relay_url", "memory://"),
    "CHAT_SECRET_KEY": ("secret_key", ()),
    "CHAT_API_KEY": ("api_key", None),
    "CHAT_SIGN_IN": ("sign_in", "guest"),
    "CHAT_LOGIN_URL": ("login_url", None),
    "CHAT_SESSION_COOKIE": ("session_cookie", "session"),
    "CHAT_SESSION_HOURS": ("session_hours", 336),
    "CHAT_COOKIE_SECURE": ("cookie_secure", False),
    "CHAT_ALLOWED_HOSTS": ("allowed_hosts", ("localhost", "127.0.0.1", "[::1]")),
    "CHAT_ALLOWED_ORIGINS": ("allowed_origins", ()),
    "CHAT_SEND_RATE": ("send_rate", "10/second"),
    "CHAT_FRAME_RATE": ("frame_rate", "50/second"),
    "CHAT_SIGN_IN_RATE": ("sign_in_rate", "30/minute"),
    "CHAT_ROOM_RATE": ("room_rate", "20/hour"),
    "CHAT_MAX_CONNECTIONS_PER_USER": ("max_connections_per_user", 20),
    "CHAT_MAX_CONNECTIONS_PER_ADDRESS": ("max_connections_per_address", 0),
    "CHAT_TRUSTED_PROXIES": ("trusted_proxies", ()),
    "CHAT_RETENTION_DAYS": ("retention_days", 0),
    "CHAT_LOG_FORMAT": ("log_format", "text"),
    "CHAT_LOG_LEVEL": ("log_level", "INFO"),
}


@pytest.mark.parametrize("variable", DEFAULTS)
def test_unset_and_empty_variables_have_the_contracts_default(variable: str) -> None:
    attribute, default = DEFAULTS[variable]
    for environ in ({}, {variable: ""}, {variable: "  "}):
        assert getattr(Settings.load(environ), attribute) == default


def test_no_setting_is_without_its_contract_and_its_help() -> None:
    for one in fields(Settings):
        assert DEFAULTS[one.metadata["variable"]][0] == one.name
        assert one.metadata["help"]


POSTGRES = "postgresql://chat:secret%40word@db.example:5433/chat"


@pytest.mark.parametrize(
    ("variable", "raw", "value"),
    [
        ("CHAT_DATABASE_URL", "sqlite:////srv/chat.db", "sqlite:////srv/chat.db"),
        ("CHAT_DATABASE_URL", " sqlite:///chat.db\n", "sqlite:///chat.db"),
        ("CHAT_RELAY_URL", "redis://localhost:6379/1", "redis://localhost:6379/1"),
        ("CHAT_RELAY_URL", "rediss://:pw@redis.example", "rediss://:pw@redis.example"),
        ("CHAT_SECRET_KEY", KEY, (KEY,)),
        ("CHAT_SECRET_KEY", f" {KEY} , {'x' * 40},", (KEY, "x" * 40)),
        ("CHAT_API_KEY", "key", "key"),
        ("CHAT_SIGN_IN", "off", "off"),
        ("CHAT_LOGIN_URL", "https://www.example.org/login", "https://www.example.org/login"),
        ("CHAT_LOGIN_URL", "http://localhost:3000", "http://localhost:3000"),
        ("CHAT_LOGIN_URL", "/accounts/login?next=/chat", "/accounts/login?next=/chat"),
        ("CHAT_SESSION_COOKIE", "__Host-chat.id", "__Host-chat.id"),
        ("CHAT_SESSION_HOURS", "1", 1),
        ("CHAT_COOKIE_SECURE", "1", True),
        ("CHAT_COOKIE_SECURE", "0", False),
        ("CHAT_ALLOWED_HOSTS", "*", ("*",)),
        ("CHAT_ALLOWED_HOSTS", "Chat.Example, [2001:DB8::1]", ("chat.example", "[2001:db8::1]")),
        (
            "CHAT_ALLOWED_ORIGINS",
            "https://www.example.org, http://localhost:3000",
            ("https://www.example.org", "http://localhost:3000"),
        ),
        ("CHAT_SEND_RATE", "off", None),
        ("CHAT_FRAME_RATE", "1/day", "1/day"),
        ("CHAT_SIGN_IN_RATE", "600/minute", "600/minute"),
        ("CHAT_ROOM_RATE", "2/hour", "2/hour"),
        ("CHAT_MAX_CONNECTIONS_PER_USER", "0", 0),
        ("CHAT_MAX_CONNECTIONS_PER_ADDRESS", "5", 5),
        ("CHAT_TRUSTED_PROXIES", "10.0.0.0/8, 10.1.2.3/8,::1", ("10.0.0.0/8", "10.1.2.3/8", "::1")),
        ("CHAT_RETENTION_DAYS", "90", 90),
        ("CHAT_LOG_FORMAT", "json", "json"),
        ("CHAT_LOG_LEVEL", "DEBUG", "DEBUG"),
    ],
)  # fmt: skip
def test_a_variable_is_read(variable: str, raw: str, value: Any) -> None:
    assert getattr(Settings.load({variable: raw}), DEFAULTS[variable][0]) == value


WRONG = {
    "CHAT_DATABASE_URL": [
        "chat.db",
        "sqlite:chat.db",
        "sqlite://chat.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///chat.db?timeout=10",
        f"mysql://chat:{PASSWORD}@db.example/chat",
        f"postgres://chat:{PASSWORD}@db.example/chat",
        f"postgresql:chat:{PASSWORD}@db.example/chat",
        f"postgresql://chat:{PASSWORD}#5@db.example/chat",
        f"postgresql://chat:{PASSWORD}[@db.example/chat",
        f"postgresql://chat@db.example:{PASSWORD}/chat",
        f"postgresql://chat:{PASSWORD}@db.example:99999/chat",
        f"postgresql://chat:{PASSWORD}\uff03@db.example/chat",
        f"postgresql://chat:{PASSWORD}@db.example/chat?sslmode=require",
        f"postgresql://chat:{PASSWORD}@db.example/chat?ssl=require&min_size=1",
        f"postgresql://chat@db.example/chat?password={PASSWORD}",
        f"postgresql://chat@db.example/chat?{PASSWORD}",
        f"postgresql://chat@db.example/chat?{PASSWORD}=",
    ],
    "CHAT_RELAY_URL": [
        "localhost",
        "redis:localhost",
        "memory://x",
        f"http://:{PASSWORD}@redis.example",
        f"redis://:{PASSWORD}/5@redis.example",
    ],
    "CHAT_SECRET_KEY": [PASSWORD[:15], f"{KEY},{PASSWORD[:10]}", ",", " , ,"],
    "CHAT_SIGN_IN": ["password", "on", "Guest"],
    "CHAT_LOGIN_URL": ["www.example.org", "javascript:alert(1)", "ftp://example.org", "sign-in"],
    "CHAT_SESSION_COOKIE": ["a b", "a;b", "a=b", "sesión", '"s"'],
    "CHAT_SESSION_HOURS": ["0", "-1", "1.5", "1h", "999999999", "9" * 5_000, "\u0661"],
    "CHAT_COOKIE_SECURE": ["yes", "true", "2"],
    "CHAT_ALLOWED_HOSTS": ["https://chat.example", "chat.example:8000", "*.example", "a b", "::1"],
    "CHAT_ALLOWED_ORIGINS": [
        "*",
        "null",
        "chat.example",
        "https://",
        "https://chat.example/",
        "https://chat.example/x",
        "HTTPS://chat.example",
        "ftp://chat.example",
        "https://[chat.example",
        f"https://maria:{PASSWORD}@chat.example",
    ],
    "CHAT_SEND_RATE": ["10", "0/second", "10/fortnight", "ten/second", "10/second/", "1.5/second"],
    "CHAT_FRAME_RATE": ["none", "-1/second"],
    "CHAT_SIGN_IN_RATE": ["OFF", "10 per minute"],
    "CHAT_ROOM_RATE": ["10/", "/hour"],
    "CHAT_MAX_CONNECTIONS_PER_USER": ["-1", "many", "1e3", "9" * 10],
    "CHAT_MAX_CONNECTIONS_PER_ADDRESS": ["-1", "0x10"],
    "CHAT_TRUSTED_PROXIES": ["proxy.example", "10.0.0.0/33", "10.0.0.1:80", "*"],
    "CHAT_RETENTION_DAYS": ["-1", "90d", "36501"],
    "CHAT_LOG_FORMAT": ["xml", "JSON"],
    "CHAT_LOG_LEVEL": ["info", "TRACE", "10"],
}


@pytest.mark.parametrize(
    ("variable", "raw"),
    [
        pytest.param(variable, raw, id=f"{variable}-{raw[:40]}")
        for variable, raws in WRONG.items()
        for raw in raws
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_variable(variable: str, raw: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.load({"CHAT_SECRET_KEY": KEY, variable: raw})
    sentence = str(wrong.value)
    assert sentence.startswith(f"{variable} is wrong: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert PASSWORD[:10] not in sentence


def test_every_setting_with_rules_has_its_wrong_values_here() -> None:
    assert set(WRONG) == set(DEFAULTS) - {"CHAT_API_KEY"}


@pytest.mark.parametrize(
    "options", ["?ssl=require", "?host=/run/postgresql", "?host=/run/postgresql&ssl=prefer", "?"]
)
def test_a_postgresql_url_may_name_ssl_and_a_socket_s_folder(options: str) -> None:
    environ = {"CHAT_DATABASE_URL": POSTGRES + options, "CHAT_SECRET_KEY": KEY}
    assert Settings.load(environ).database_url == POSTGRES + options


def test_postgresql_needs_a_secret_key() -> None:
    with pytest.raises(SettingsError, match=r"^CHAT_SECRET_KEY is missing: .* 16 ") as missing:
        Settings.load({"CHAT_DATABASE_URL": POSTGRES})
    assert "secret%40word" not in str(missing.value)
    settings = Settings.load({"CHAT_DATABASE_URL": POSTGRES, "CHAT_SECRET_KEY": KEY})
    assert settings.database_url == POSTGRES
    assert not settings.on_sqlite
    assert Settings.load({}).on_sqlite


def test_the_memory_relay_serves_one_process_only() -> None:
    Settings.load({}).check_workers(1)
    Settings.load({"CHAT_RELAY_URL": "redis://localhost"}).check_workers(8)
    with pytest.raises(SettingsError, match=r"^CHAT_RELAY_URL is wrong: memory://.* 2 workers"):
        Settings.load({}).check_workers(2)


def test_variables_that_no_setting_reads_are_found() -> None:
    environ = {"CHAT_SECRET": "x", "CHAT_API_KEY": "x", "CHAT_TEST_REDIS_URL": "x", "HOME": "x",
               "CHAT_": "x"}  # fmt: skip
    assert Settings.unknown(environ) == ["CHAT_", "CHAT_SECRET"]
    assert Settings.unknown({}) == []


def test_settings_do_not_change_once_loaded() -> None:
    with pytest.raises(AttributeError):
        Settings.load({}).sign_in = "off"  # type: ignore[misc]
