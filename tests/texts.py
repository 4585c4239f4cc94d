"""The texts of pages and scripts, and their catalogues in chat/web/locales.

`make texts` takes new texts into each language's .po and lets go of those that are used no more;
then it makes of each .po what the program reads. test_language.py sees that this was done.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

from chat.web.language import LOCALES

ROOT = Path(__file__).resolve().parent.parent

SAY = re.compile(r'(?<![\w.#])say\(\s*("(?:[^"\\\n]|\\.)*")?')


def said(file: BinaryIO, *_: Any, **__: Any) -> Iterator[tuple[int, str, str, list[str]]]:
    """Yield what a script says, as an extractor of Babel does; its own looks into no `${…}`."""
    source = file.read().decode()
    # In others `say` is something else.
    if 'from "./texts.js"' in source:
        for call in SAY.finditer(source):
            assert call[1], f"{source[call.start() : call.end() + 20]}… has no text to be found"
            yield source.count("\n", 0, call.start()) + 1, "say", json.loads(call[1]), []


# Where texts stand, and the calls that they stand in. Of errors only those that pages show.
SOURCES: list[tuple[str, str | Callable[..., Any], dict[str, Any]]] = [
    ("templates/*.html", babel_extract, {"_": None}),
    ("chat/web/static/*.js", said, {"say": None}),
    ("chat/web/pages.py", "python", {"_": None, "NotFound": None, "problem_page": (3,)}),
    ("chat/web/rooms.py", "python", {"NotFound": None, "Forbidden": None}),
    ("chat/log/users.py", "python", {"NameRefused": None, "NameTaken": None}),
]

# No dates and versions: files change where a text does, and only there.
HEAD = """\
msgid ""
msgstr ""
"Language: {code}\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""


def texts() -> Iterator[tuple[str, str]]:
    """Yield each text, and the file it stands in."""
    for pattern, method, keywords in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            with path.open("rb") as file:
                for _, text, _, _ in extract(method, file, keywords, options={"silent": "false"}):
                    assert isinstance(text, str), text
                    yield text, path.relative_to(ROOT).as_posix()


class Compiled(Catalog):
    mime_headers: ClassVar = [("Content-Type", "text/plain; charset=utf-8")]


def catalogue(po: str, code: str) -> Catalog:
    return read_po(io.StringIO(po), locale=code, abort_invalid=True)


def messages(catalog: Catalog) -> Iterator[Message]:
    """Yield all but the head."""
    yield from (message for message in catalog if message.id)


def updated(po: str, code: str) -> str:
    """Return the .po with exactly the texts there are now, each with what it had."""
    template = Catalog()
    for text, place in texts():
        template.add(text, locations=[(place, 0)])
    catalog = catalogue(po, code)
    # What only looks alike is left to the translator.
    catalog.update(template, no_fuzzy_matching=True)
    buffer = io.BytesIO()
    write_po(
        buffer,
        catalog,
        width=100,
        omit_header=True,
        ignore_obsolete=True,
        sort_by_file=True,
        include_lineno=False,
    )
    return HEAD.format(code=code) + buffer.getvalue().decode()


def made_of(po: str, code: str) -> dict[str, bytes]:
    """Return what the program reads, by the ends of the files' names."""
    pages, scripts = Compiled(code), {}
    for message in messages(catalogue(po, code)):
        if not message.string or message.fuzzy:
            continue
        of_scripts = [place.endswith(".js") for place, _ in message.locations]
        if any(of_scripts):
            scripts[message.id] = message.string
        if not all(of_scripts):
            pages.add(message.id, message.string)
    mo = io.BytesIO()
    write_mo(mo, pages)
    readable = json.dumps(scripts, ensure_ascii=False, indent=1, sort_keys=True)
    return {".mo": mo.getvalue(), ".json": f"{readable}\n".encode()}


def main() -> None:
    for path in sorted(LOCALES.glob("*.po")):
        po = updated(path.read_text(encoding="utf-8"), path.stem)
        path.write_text(po, encoding="utf-8")
        for suffix, made in made_of(po, path.stem).items():
            path.with_suffix(suffix).write_bytes(made)
        lacking = [one for one in messages(catalogue(po, path.stem)) if not one.string or one.fuzzy]
        print(f"{path.relative_to(ROOT)}: {len(lacking)} texts to be translated")


if __name__ == "__main__":
    main()
