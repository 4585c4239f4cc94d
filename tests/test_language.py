"""Which language a page speaks, and that the catalogues have all that it says."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from chat.web.language import LANGUAGES, LOCALES, preferred
from tests.texts import catalogue, made_of, messages, said, texts, updated

CATALOGUES = sorted(LOCALES.glob("*.po"))
EACH = pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)


# --- Which language


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "en"),
        ("es", "es"),
        ("es-MX", "es"),
        ("ES-419,en;q=0.5", "es"),
        ("en,es", "en"),
        ("es,en", "es"),
        ("en;q=0.8, es;q=0.9", "es"),
        ("en; q=0.9 , es; q=0.8", "en"),
        ("es;q=0", "en"),
        ("es;q=0.001", "es"),
        ("fr", "en"),
        ("fr-CA,fr;q=0.9", "en"),
        # What is no language of ours counts for nothing.
        ("fr,es;q=0.3", "es"),
        ("*", "en"),
        ("es;q=0.5,*;q=0.8", "en"),
        ("es,*;q=0.5", "es"),
        # Another language that begins so.
        ("est", "en"),
        ("esp-MX", "en"),
    ],
)
def test_a_page_speaks_what_the_browser_likes_best(header: str, code: str) -> None:
    assert preferred(header).code == code


@pytest.mark.parametrize(
    "header", [",", ";", "es;q=", "es;q=2", "es;q=-1", "es;q=nan", "es;x", "-", "es_MX", ",;q=1,"]
)
def test_a_header_that_breaks_the_rules_is_english(header: str) -> None:
    assert preferred(header).code == "en"


def test_what_has_no_translation_stays_english() -> None:
    for language in LANGUAGES.values():
        for text in ("", "Nobody ever wrote this."):
            assert language.translate(text) == text


def test_spanish_is_spanish() -> None:
    assert {"en", "es"} <= set(LANGUAGES)
    assert LANGUAGES["es"].translate("Sign in") == "Entrar"
    assert LANGUAGES["es"].scripts["Connected"] == "Conectado"
    assert LANGUAGES["en"].translate("Sign in") == "Sign in"


# --- What is in the catalogues


@EACH
def test_a_catalogue_has_exactly_the_texts_that_are_used(path: Path) -> None:
    po = path.read_text(encoding="utf-8")
    assert updated(po, path.stem) == po, "make texts"


@EACH
def test_each_text_has_its_translation(path: Path) -> None:
    found = list(messages(catalogue(path.read_text(encoding="utf-8"), path.stem)))
    assert len(found) == len({text for text, _ in texts()}) > 90
    lacking = [one.id for one in found if not one.string or one.fuzzy]
    assert not lacking, lacking


@EACH
def test_a_translation_has_the_same_places_for_values(path: Path) -> None:
    places = re.compile(r"%\(\w+\)s|\{\w+\}|%")
    for one in messages(catalogue(path.read_text(encoding="utf-8"), path.stem)):
        assert sorted(places.findall(one.id)) == sorted(places.findall(one.string)), one.id


@EACH
def test_what_the_program_reads_was_made_of_the_catalogue(path: Path) -> None:
    made = made_of(path.read_text(encoding="utf-8"), path.stem)
    for suffix, content in made.items():
        assert path.with_suffix(suffix).read_bytes() == content, "make texts"


def test_each_language_has_its_files_and_there_are_no_others() -> None:
    codes = set(LANGUAGES) - {"en"}
    assert {path.name for path in LOCALES.iterdir()} == {
        f"{code}{suffix}" for code in codes for suffix in (".po", ".mo", ".json")
    }


# --- What is found


def test_texts_are_found_in_pages_scripts_and_errors() -> None:
    places: dict[str, set[str]] = {}
    for text, place in texts():
        places.setdefault(text, set()).add(place)
    for text, place in (
        ("Sign in", "templates/login.html"),
        ("Connected", "chat/web/static/status.js"),
        ("({n} characters)", "chat/web/static/frames.js"),
        ("There is nothing here", "chat/web/pages.py"),
        ("This token is for one room only.", "chat/web/pages.py"),
        ("This is not a valid room name.", "chat/web/rooms.py"),
        ("A name has at most %(most)s characters.", "chat/log/users.py"),
    ):
        assert place in places[text]


IMPORTED = 'import { say } from "./texts.js";\n'


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('say("One");', ["One"]),
        ('show(`${say("Two {n}", { n: 2 })}, ${say("three")}`)', ["Two {n}", "three"]),
        ('say(\n  "Four \\"and\\" five",\n)', ['Four "and" five']),
        ('client.say("six"); this.#say({ type: "send" }); essay("seven")', []),
    ],
)
def test_scripts_say_their_texts_in_quotes(source: str, found: list[str]) -> None:
    script = io.BytesIO((IMPORTED + source).encode())
    assert [text for _, _, text, _ in said(script)] == found
    assert not list(said(io.BytesIO(source.encode())))


@pytest.mark.parametrize("source", ["say(words)", "say(`so`)", 'say(one ? "a" : "b")', "say('so')"])
def test_what_a_script_says_in_another_way_is_a_fault(source: str) -> None:
    with pytest.raises(AssertionError, match="no text to be found"):
        list(said(io.BytesIO((IMPORTED + source).encode())))


def test_texts_of_scripts_and_of_pages_are_kept_apart() -> None:
    po = "\n\n".join(
        f'{places}msgid "{text}"\nmsgstr "{text}!"'
        for places, text in (
            ("#: templates/base.html\n", "page"),
            ("#: chat/web/static/x.js\n", "script"),
            ("#: templates/base.html chat/web/static/x.js\n", "both"),
            ("#: templates/base.html\n#, fuzzy\n", "unsure"),
        )
    )
    made = made_of(po, "es")
    assert json.loads(made[".json"]) == {"script": "script!", "both": "both!"}
    assert all(text in made[".mo"] for text in (b"page!", b"both!"))
    assert not any(text in made[".mo"] for text in (b"script!", b"unsure!"))
