"""docs/operations.md, dashboard and alerts, held against what the program shows and writes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from chat.ops import metrics
from tests.test_docs import blocks, code_in, section, table, text_of

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ROOT / "docs/operations.md"
DASHBOARD = json.loads((ROOT / "docs/grafana.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((ROOT / "docs/alerts.yaml").read_text(encoding="utf-8"))

# What Grafana puts in the place of its own variables.
GRAFANA = {"$__rate_interval": "1m", "$instance": ".*"}

# Levels of lines that are documented.
LEVELS = ("info", "warning", "error")


def shown() -> dict[str, set[str]]:
    """Return the names of all samples on the page, with the labels of each."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for one in family.samples:
            found.setdefault(one.name, set()).update(one.labels)
    return found


def names() -> dict[str, set[str]]:
    """Return the names that people know the metrics by, with their labels."""
    return {
        one.name + ("_total" if isinstance(one, metrics.Counter | metrics.Counters) else ""): (
            {one.label} if isinstance(one, metrics.Counters) else set()
        )
        for one in metrics._metrics
        if one.name
    }


def panels(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in found:
        yield panel
        yield from panels(panel.get("panels", []))


def queries() -> list[str]:
    return [
        target["expr"]
        for panel in panels(DASHBOARD["panels"])
        for target in panel.get("targets", [])
    ]


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    rows = table(section(OPERATIONS, "Metrics"), "metric")
    documented = {code_in(row[0])[0]: set(code_in(row[1])) for row in rows}
    assert documented == names()
    for row in rows:
        assert all(len(cell) > 0 for cell in row[2:]), row


def test_the_page_speaks_of_no_metric_nor_value_that_does_not_exist() -> None:
    text = text_of(OPERATIONS)
    assert set(re.findall(r"\bchat_[a-z_]+\b", text)) <= set(names())
    for row in table(section(OPERATIONS, "Metrics"), "metric"):
        [one] = [one for one in metrics._metrics if one.name == re.sub("_total`|`", "", row[0])]
        if isinstance(one, metrics.Counters) and one is not metrics.CLOSES:
            told = {code for code in code_in(" ".join(row[2:])) if re.fullmatch("[a-z_]+", code)}
            assert told and told - {"chat_database_up"} <= set(one.values), told
            # The codes of errors have a page of their own.
            if one is not metrics.ERRORS:
                assert told == set(one.values) - {metrics.OTHER}


def test_names_have_the_prefix_and_the_unit() -> None:
    units = ("_total", "_seconds", "_messages")
    without = {"chat_processes", "chat_connections", "chat_rooms_open", "chat_slow_members"}
    without |= {"chat_database_up", "chat_relay_up"}
    for name in names():
        assert name.startswith("chat_")
        assert name.endswith(units) or name in without, name


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in rules())])
def test_a_query_is_valid_and_asks_for_what_is_there(query: str) -> None:
    for variable, value in GRAFANA.items():
        query = query.replace(variable, value)
    promql_parser.parse(query)
    asked = re.findall(r"\b(chat_\w+)(?:\{([^}]*)\})?", query)
    assert asked
    for name, matchers in asked:
        assert name in shown(), name
        labels = set(re.findall(r"(\w+)\s*[=!]", matchers))
        assert labels <= shown()[name] | {"instance"}, labels
    grouped = {name for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(", ")}
    assert grouped <= {"instance"}.union(*(shown()[name] for name, _ in asked)), grouped


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    assert DASHBOARD["title"] == "Tertulia" and DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD or DASHBOARD["id"] is None
    found = list(panels(DASHBOARD["panels"]))
    ids = [panel["id"] for panel in found]
    assert len(ids) == len(set(ids))
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    named = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert named - {"__rate_interval", "__all"} <= variables
    places = set()
    for panel in found:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in places, f"{panel['title']} lies over another one"
                places.add((x, y))
        if panel["type"] != "row":
            assert panel["targets"] and panel["datasource"] == {
                "type": "prometheus",
                "uid": "${prometheus}",
            }


def test_every_metric_is_on_the_dashboard() -> None:
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", one) for one in re.findall(r"chat_\w+", str(queries()))
    }
    assert asked == set(names())


def test_the_five_alerts_are_documented_and_complete() -> None:
    told = table(section(OPERATIONS, "Dashboard and alerts"), "alert")
    assert [code_in(row[0])[0] for row in told] == [rule["alert"] for rule in rules()]
    assert len(rules()) == 5
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        by = re.search(r"sum by \(([^)]*)\)", rule["expr"])
        assert labels <= (set(by[1].split(", ")) if by else {"instance"})


def test_the_first_alert_looks_for_nodes_where_the_page_lets_prometheus_ask() -> None:
    [asking] = [yaml.safe_load(text) for text in blocks(OPERATIONS, "yaml")]
    [job] = asking["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}} == 0' in rules()[0]["expr"]


def test_bells_that_were_missed_at_one_moment_are_no_alert() -> None:
    [deaf] = [rule for rule in rules() if rule["alert"] == "ChatRelayDeaf"]
    found = re.match(r"increase\(chat_relay_missed_total\[(\d+)m\]\) > (\d+) ", deaf["expr"])
    # What was counted once is seen for as long as one looks back.
    assert found and int(deaf["for"].removesuffix("m")) > int(found[1])
    told = f"for {deaf['for'][:-1]} minutes there were more than {found[2]} missed bells in each"
    assert told in text_of(OPERATIONS)


# --- Log lines


# Their lines are in the logs of whoever uses the client.
CLIENT = ("client.py", "link.py", "unsent.py")


def written() -> set[tuple[str, str]]:
    """Return level and text of all lines that a server writes from INFO on."""
    found = set()
    for path in sorted((ROOT / "chat").rglob("*.py")):
        if path.name in CLIENT:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not ast.unparse(node.func.value).endswith(("logger", "config.log")):
                continue
            level = {"exception": "error"}.get(node.func.attr, node.func.attr)
            text = node.args[0]
            # What is only passed on ("%s") is documented where it comes from.
            if level in LEVELS and isinstance(text, ast.Constant) and text.value != "%s":
                found.add((level.upper(), shape(str(text.value))))
    return found


def shape(text: str) -> str:
    """Return the text with one sign for what changes."""
    return re.sub(r"(%[.\d]*[a-z])+", "…", text)


def test_the_log_lines_are_those_that_the_program_writes() -> None:
    rows = table(section(OPERATIONS, "Log lines"), "line")
    documented = {(row[1], code) for row in rows for code in code_in(row[0])}
    assert documented - written() == set(), "not written by the program"
    assert written() - documented == set(), "not documented"
