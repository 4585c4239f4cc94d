"""The languages that pages speak: English, and each that has a catalogue in chat/web/locales.

English stands where it is used, and is what a text is found by. `make texts` takes new texts into
a language's .po, for its translator, and makes of it what is read here: the .mo with the texts of
pages and errors, the .json with those of scripts. Called by `web/pages.py`.
"""

from __future__ import annotations

import json
import re
from gettext import GNUTranslations, NullTranslations
from pathlib import Path
from typing import NamedTuple

LOCALES = Path(__file__).resolve().parent / "locales"
DEFAULT = "en"
WEIGHT = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


class Language(NamedTuple):
    code: str
    translations: NullTranslations
    # What scripts say, by the English.
    scripts: dict[str, str]

    def translate(self, english: str) -> str:
        """Return the text in this language, or as it is where the catalogue has none."""
        # By an empty text gettext finds the head of its catalogue.
        return self.translations.gettext(english) if english else ""


def _read(path: Path) -> Language:
    with path.open("rb") as file:
        translations = GNUTranslations(file)
    scripts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Language(path.stem, translations, scripts)


LANGUAGES = {DEFAULT: Language(DEFAULT, NullTranslations(), {})} | {
    path.stem: _read(path) for path in sorted(LOCALES.glob("*.mo"))
}


def preferred(accept_language: str) -> Language:
    """Return the language that this header of a browser likes best of ours; else English."""
    best, most = DEFAULT, 0.0
    for part in accept_language.lower().split(","):
        tag, semicolon, rest = part.partition(";")
        # es-MX is Spanish.
        code = tag.strip().partition("-")[0].replace("*", DEFAULT)
        found = WEIGHT.fullmatch(rest.strip())
        weight = float(found[1]) if found else 0.0 if semicolon else 1.0
        if code in LANGUAGES and weight > most:
            best, most = code, weight
    return LANGUAGES[best]
