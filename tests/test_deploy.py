"""Dockerfile, compose.yaml and the systemd unit, judged without an engine that could run them.

What they start is run by test_wheel.py, and the proxies' files by test_proxies.py.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyCompose

from chat.live import hub, tail
from chat.log import database
from chat.ops import server, workers
from chat.ops.advice import oddities
from chat.ops.config import DEFAULTS, load_config
from chat.settings import Settings
from chat.web import delivery, draining
from tests.conftest import unavailable
from tests.deployed import (
    DOCKERFILE,
    UNIT,
    container_command,
    container_file,
    copied_from_here,
    of_image,
    stages,
    unit,
)
from tests.servers import ROOT

# systemd's measure of what a service may do to its machine, in tenths; 0 is nothing, 100 all.
EXPOSURE = 15

PAGE = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")


# --- The image


def test_the_dockerfile_has_nothing_that_its_linter_minds() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_image_holds_the_environment_and_nothing_of_its_making() -> None:
    build, image = stages()
    assert build[0][1].endswith(" AS build")
    assert [rest for name, rest in image if name == "COPY"] == [
        "--from=build /opt/tertulia /opt/tertulia",
        "--from=build /src/hypercorn.toml ./",
    ]


def test_a_container_is_not_root_and_writes_to_var_alone() -> None:
    assert int(of_image("USER")) > 0
    made = of_image("RUN")
    assert f"--uid {of_image('USER')} " in made
    assert f"-o tertulia -g tertulia -m 0700 {of_image('VOLUME')}" in made
    assert of_image("VOLUME") == f"{of_image('WORKDIR')}/var"


def test_the_server_is_what_gets_the_signal() -> None:
    # As JSON: a line for a shell would make the shell the first process, which passes none on.
    assert container_command() == ["python", "-m", "chat", "serve"]
    assert not any(name in ("ENTRYPOINT", "STOPSIGNAL") for name, _ in stages()[-1])


def test_a_container_listens_to_others_and_check_sees_it(tmp_path: Path) -> None:
    file = container_file(tmp_path)
    assert load_config(file).bind == ["0.0.0.0:8000"]
    built, plain = (tomllib.loads(one.read_text()) for one in (file, ROOT / "hypercorn.toml"))
    assert {**plain, "bind": built["bind"]} == built


def test_the_health_of_a_container_is_what_healthcheck_says() -> None:
    options, command = of_image("HEALTHCHECK").split(" CMD ")
    assert json.loads(command) == ["python", "-m", "chat", "healthcheck"]
    # The command itself takes ten seconds at most.
    limit = re.search(r"--timeout=(\d+)s", options)
    assert limit and int(limit[1]) > 10


def test_the_builder_gets_what_the_image_is_made_of_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {*copied_from_here()}
    assert all((ROOT / name).exists() for name in let_in)
    kept_out = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]
    for name in ("__pycache__", "app.cpython-313.pyc"):
        assert any(fnmatch.fnmatch(name, rule) for rule in kept_out), name


# --- Several of them


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """What compose.yaml says, after it was held against the specification."""
    whole: dict[str, Any] = PyCompose.from_yaml(
        (ROOT / "compose.yaml").read_text(encoding="utf-8")
    ).to_dict()
    return whole


def test_all_that_compose_names_is_there(compose: dict[str, Any]) -> None:
    services, kept = compose["services"], {*compose["volumes"], *compose["configs"]}
    used = set()
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in ("service_healthy", "service_started")
            assert how["condition"] != "service_healthy" or has_check(services[other])
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).is_file()
            else:
                used.add(source)
        used |= {config["source"] for config in service.get("configs", [])}
    assert used == kept


def has_check(service: dict[str, Any]) -> bool:
    return "healthcheck" in service or "build" in service  # the image has one of its own


def test_each_service_is_checked_and_comes_back_and_only_the_proxy_is_reached(
    compose: dict[str, Any],
) -> None:
    for name, service in compose["services"].items():
        assert has_check(service), name
        assert service["restart"] == "unless-stopped"
        assert ("ports" in service) == (name == "proxy")
        if "build" not in service:
            assert re.fullmatch(r"\w+:\d+", service["image"]), "a version that stays"


def test_the_two_nodes_are_alike_and_may_do_little(compose: dict[str, Any]) -> None:
    one, two = (compose["services"][f"chat-{number}"] for number in (1, 2))
    assert one == two
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    places = dict(place.partition(":")[::2] for place in one["tmpfs"])
    assert set(places) == {of_image("VOLUME"), "/tmp"}
    assert f"uid={of_image('USER')}" in places[of_image("VOLUME")]
    assert int(one["stop_grace_period"].removesuffix("s")) > server.STOP_LIMIT


def test_the_nodes_get_settings_that_exist_and_no_secret_that_stands_in_the_file(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    [bind] = load_config(container_file(tmp_path)).bind
    node, proxy = compose["services"]["chat-1"], compose["services"]["proxy"]
    given = {
        "POSTGRES_PASSWORD": "p" * 20,
        "REDIS_PASSWORD": "r" * 20,
        "CHAT_SECRET_KEY": "k" * 20,
        "DOMAIN": "chat.example",
    }
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for variable in (*given, "CHAT_API_KEY"):
        assert f"${{{variable}:" in text

    def filled(value: str) -> str:
        return re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given.get(found[1], ""), value)

    environment = {name: filled(value) for name, value in node["environment"].items()}
    assert not Settings.unknown(environment)
    settings = Settings.load(environment)
    settings.check_workers(2)
    assert minded(settings, bind) == []
    assert settings.allowed_hosts == ("chat.example", "127.0.0.1")
    assert settings.database_url == f"postgresql://chat:{'p' * 20}@postgres/chat"
    [network] = compose["networks"]["default"]["ipam"]["config"]
    assert settings.trusted_proxies == (network["subnet"],)
    assert ipaddress.ip_network(network["subnet"]).is_private
    port = bind.rpartition(":")[2]
    assert proxy["environment"]["NODES"].split() == [f"chat-1:{port}", f"chat-2:{port}"]


def minded(settings: Settings, bind: str) -> list[str]:
    """Return what `check` would say of settings; the machine of the tests is another matter."""
    return [sentence for sentence in oddities(settings, [bind]) if "CHAT_" in sentence]


# --- A service of systemd


def systemd_analyze(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        raise unavailable("systemd-analyze is not installed")
    # As systemd knows it: an instance has its file, too.
    text = UNIT.read_text(encoding="utf-8").replace("/opt/tertulia/bin/tertulia", sys.executable)
    file = folder / "tertulia@8000.service"
    file.write_text(text, encoding="utf-8")
    return subprocess.run([program, *arguments, file], capture_output=True, text=True)


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    ended = systemd_analyze("verify", folder=tmp_path)
    said = [line for line in ended.stderr.splitlines() if "tertulia" in line]
    assert (ended.returncode, said) == (0, [])


def test_a_node_may_do_little_to_its_machine(tmp_path: Path) -> None:
    ended = systemd_analyze(
        "security", "--offline=true", f"--threshold={EXPOSURE}", folder=tmp_path
    )
    assert ended.returncode == 0, ended.stdout[-500:]


def test_the_unit_gives_a_node_the_time_to_drain_and_restarts_what_may_get_better() -> None:
    said = unit()
    assert int(said["TimeoutStopSec"][0]) > workers.KILL_LIMIT > server.STOP_LIMIT
    assert said["Restart"] == ["on-failure"]
    # A wrong setting is exit code 2.
    assert said["RestartPreventExitStatus"] == ["2"]
    # A database that is away at the start is waited for, a second after the other.
    assert said["StartLimitIntervalSec"] == ["0"]
    assert said["WorkingDirectory"] == [f"/var/lib/{said['StateDirectory'][0]}"]


# --- The page


def test_the_unit_starts_after_its_settings_are_there() -> None:
    filled, started = PAGE.index("CHAT_RELAY_URL=redis:"), PAGE.index("systemctl enable --now")
    assert PAGE.index("/etc/tertulia/environment") < filled < started


def test_a_container_that_may_write_nowhere_else_gets_a_place_for_temporary_files() -> None:
    shown = re.findall(r"docker run --read-only.*", PAGE)
    assert shown and all(f"{of_image('VOLUME')} --tmpfs /tmp " in line for line in shown)


def test_the_commands_for_compose_name_what_is_there(compose: dict[str, Any]) -> None:
    text = PAGE + (ROOT / "docs/data.md").read_text(encoding="utf-8")
    calls = re.findall(r"docker compose (?:exec|run)((?: --?[\w-]+)*) ([\w-]+) (\S+)", text)
    assert {name for _, name, _ in calls} >= {"chat-1", "postgres"}
    for _, name, program in calls:
        service = compose["services"][name]
        assert (program == "tertulia") == ("build" in service), program
        if program in ("pg_dump", "psql"):
            user = service["environment"]["POSTGRES_USER"]
            assert f"{program} --username={user}" in text
    stopped = re.findall(r"docker compose stop (.*)", text)
    assert stopped and all(set(names.split()) <= set(compose["services"]) for names in stopped)


def test_the_page_names_all_files_and_no_others() -> None:
    named = set(re.findall(r"deploy/([\w.@]+)", PAGE))
    assert named == {path.name for path in (ROOT / "deploy").iterdir()}


def test_the_settings_that_the_page_shows_are_good_ones() -> None:
    shown = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    unit_s, compose_s = (
        dict(line.split("=", 1) for line in text.replace("…", "x" * 20).splitlines())
        for text in shown
    )
    assert not Settings.unknown(unit_s)
    settings = Settings.load(unit_s)
    settings.check_workers(2)
    assert minded(settings, "127.0.0.1:8000") == []
    assert settings.cookie_secure and "127.0.0.1" in settings.allowed_hosts
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    wanted = set(re.findall(r"\$\{(\w+)", text))
    assert set(compose_s) == wanted


def test_the_numbers_of_the_page_are_the_code_s() -> None:
    steps = (
        draining.FLUSH_LIMIT
        + draining.SETTLE_LIMIT
        + draining.FAREWELL_LIMIT
        + draining.MARKS_LIMIT
    )
    for sentence in (
        f"within {steps:g} s where something hangs, after {server.STOP_LIMIT:g} s by force",
        f"come back within {delivery.RECONNECT_SPREAD:g} s",
        f"pings them every {DEFAULTS['websocket_ping_interval']:g} s",
        f"silent for {DEFAULTS['read_timeout']} s",
        f"at most {database.POOL_SIZE} for each process",
        f"its newest {tail.TAIL_COUNT:,} messages, at most {tail.TAIL_BYTES // 2**20} MiB",
        f"an empty room goes after {hub.ROOM_LINGER:g} s",
    ):
        assert sentence in PAGE, sentence
    # The proxies wait longer than the chat itself.
    for name in ("nginx.conf", "haproxy.cfg", "apache.conf"):
        text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
        waits = re.findall(
            r"(?:read_timeout|timeout tunnel|^ *(?:Proxy)?Timeout) (\d+)", text, re.M
        )
        assert waits and all(int(one) > DEFAULTS["read_timeout"] for one in waits), name
