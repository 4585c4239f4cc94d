"""The pages: rooms, sign-in and the chat itself, rendered from templates/.

People are known here by the session cookie. Without one they are sent to `/login`, and from there
back to where they wanted to go, on this site only. Pages speak the language of the browser.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from chat.clock import now
from chat.errors import Forbidden, NotFound, RateLimited, Unauthenticated
from chat.log.users import NameRefused, NameTaken, checked, key_of
from chat.protocol import direct_pair
from chat.web.api import ROOMS_PAGE
from chat.web.guard import client_of
from chat.web.identity import Identity
from chat.web.language import LANGUAGES, Language, preferred
from chat.web.rooms import admit, listed
from chat.web.services import Services, services

logger = logging.getLogger(__name__)

MAX_FORM = 16 * 1024  # bytes: a name, and where to go next
HERE = Path(__file__).resolve().parent
# In a checkout the templates lie beside the package, in an installed one within it.
_places = (HERE.parent / "templates", HERE.parent.parent / "templates")
PLACE = next((place for place in _places if place.is_dir()), _places[0])


def _templates(language: Language) -> Jinja2Templates:
    templates = Jinja2Templates(PLACE)
    env: Any = templates.env
    env.add_extension("jinja2.ext.i18n")
    env.install_gettext_translations(language.translations, newstyle=True)
    env.globals.update(language=language.code, texts=language.scripts)
    return templates


TEMPLATES = {language.code: _templates(language) for language in LANGUAGES.values()}


async def rooms(request: Request) -> Response:
    identity = await _signed_in(request)
    if identity is None:
        return _to_login(request)
    if identity.room is not None:
        return problem_page(request, 403, "This token is for one room only.", identity)
    chat, problem = services(request), None
    wanted, person = (request.query_params.get(one, "").strip() for one in ("room", "person"))
    if wanted or person:
        try:
            name = wanted or await _room_with(chat, identity, person)
            await admit(chat, identity, name)
        except (NotFound, Forbidden) as error:
            problem = language_of(request).translate(error.detail)
        else:
            return RedirectResponse(f"{root_of(request)}/test-chat/{quote(name)}/", 303)
    found, more = await chat.repository.rooms_of(identity.user.id, None, ROOMS_PAGE)
    context = {
        "rooms": listed(chat, found),
        "more": more,
        "room": wanted,
        "person": "" if wanted else person,
        "problem": problem,
    }
    return page(request, "rooms.html", context, identity, 400 if problem else 200)


async def test_chat(request: Request) -> Response:
    identity = await _signed_in(request)
    if identity is None:
        return _to_login(request)
    chat, name = services(request), request.path_params["room"].removesuffix("/")
    try:
        await admit(chat, identity, name)
    except (NotFound, Forbidden) as error:
        return problem_page(request, error.status, error.detail, identity)
    if not request.url.path.endswith("/"):
        return RedirectResponse(f"{root_of(request)}/test-chat/{quote(name)}/", 307)
    others = [one for one in direct_pair(name) or () if one != identity.user.id]
    other = await chat.users.find(others[0]) if others else None
    context = {"room": name, "title": other.name if other else name}
    return page(request, "test-chat.html", context, identity)


async def login(request: Request) -> Response:
    identity = await _signed_in(request)
    wanted = request.query_params.get("next", "")
    if identity is not None:
        return RedirectResponse(_here(request, wanted), 303)
    return _login_form(request, "", wanted)


async def sign_in(request: Request) -> Response:
    chat, _ = services(request), language_of(request).translate
    form = await _form(request)
    name, wanted = form.get("username", ""), form.get("next", "")
    if chat.settings.sign_in == "off":
        return _login_form(request, name, wanted, None, 403)
    before = await _signed_in(request)
    if before is not None and key_of(name) == key_of(before.user.name):
        return RedirectResponse(_here(request, wanted), 303)
    try:
        await chat.limits.take(chat.limits.sign_in, "sign-in", client_of(request))
        user = await chat.users.guest(name)
    except NameRefused as error:
        problem = _(error.sentence) % error.values
        status = 409 if isinstance(error, NameTaken) else 400
        return _login_form(request, name, wanted, problem, status)
    except RateLimited as error:
        wait = math.ceil(error.retry_after or 1)
        problem = _("That was too often. Try again in %(n)s s.") % {"n": wait}
        return _login_form(request, name, wanted, problem, 429)
    if before is not None:
        await _sign_out(request, before)
    session = await chat.users.open_session(user, chat.settings.session_hours)
    request.session.clear()
    request.session.update(user=user.name, sid=session.sid)
    logger.info("User %s signed in", user.name)
    return RedirectResponse(_here(request, wanted), 303)


async def sign_out(request: Request) -> Response:
    # The cookie's session, whatever else the request carries.
    identity = await services(request).identities.from_cookie(request)
    if identity is not None:
        await _sign_out(request, identity)
        logger.info("User %s signed out", identity.user.name)
    request.session.clear()
    return RedirectResponse(f"{root_of(request)}/login", 303)


# --- What the pages share


def page(
    request: Request,
    template: str,
    context: dict[str, Any],
    identity: Identity | None,
    status: int = 200,
) -> Response:
    shared = {"root": root_of(request), "user": identity.user if identity else None}
    templates = TEMPLATES[language_of(request).code]
    answer = templates.TemplateResponse(request, template, shared | context, status)
    answer.headers["Cache-Control"] = "no-store"
    answer.headers.add_vary_header("Accept-Language")
    return answer


def problem_page(
    request: Request, status: int, detail: str, identity: Identity | None = None
) -> Response:
    """Return the page that says what is wrong; `detail` is an English sentence of the catalogue."""
    _ = language_of(request).translate
    titles = {403: _("You may not enter here"), 404: _("There is nothing here")}
    # Where the sentence is for programs, or its cause for the log.
    details = {
        500: _("The server failed to answer; it has been logged."),
        503: _("The chat cannot look anything up just now. Try again in a moment."),
    }
    context = {
        "status": status,
        "title": titles.get(status, _("That did not work")),
        "detail": details.get(status) or _(detail),
    }
    return page(request, "problem.html", context, identity, status)


def language_of(request: Request) -> Language:
    return preferred(request.headers.get("accept-language", ""))


async def _signed_in(request: Request) -> Identity | None:
    """Return who is signed in, and renew a session that is past half its life."""
    chat = services(request)
    try:
        identity = await chat.identities.identify(request)
    except Unauthenticated:
        return None
    session = identity.session
    if session is not None and now() > (session.created_at + session.expires_at) // 2:
        await chat.users.renew(session, chat.settings.session_hours)
        request.session.update(user=identity.user.name, sid=session.sid)
    return identity


async def _room_with(chat: Services, identity: Identity, name: str) -> str:
    """Return the direct room of this user and who is called so; raise NotFound."""
    try:
        other = await chat.users.named(checked(name))
    except NameRefused:
        other = None
    if other is None:
        raise NotFound("There is nobody with this name.")
    if other.id == identity.user.id:
        raise NotFound("That is you. A direct room is for you and somebody else.")
    low, high = sorted((identity.user.id, other.id))
    return f"dm.{low}.{high}"


async def _sign_out(request: Request, identity: Identity) -> None:
    if identity.session is not None:
        chat = services(request)
        await chat.users.sign_out(identity.session)
        chat.hub.revoke(identity.session.sid)


async def _form(request: Request) -> dict[str, str]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_FORM:
            return {}
    try:
        fields = parse_qs(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=10, errors="strict"
        )
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}


def _login_form(
    request: Request, name: str, wanted: str, problem: str | None = None, status: int = 200
) -> Response:
    settings = services(request).settings
    context = {
        "name": name[:64],
        "next": wanted,
        "problem": problem,
        "sign_in": settings.sign_in,
        "login_url": settings.login_url,
    }
    return page(request, "login.html", context, None, status)


def _to_login(request: Request) -> Response:
    settings = services(request).settings
    if settings.sign_in == "off" and settings.login_url:
        return RedirectResponse(settings.login_url, 303)
    wanted = request.url.path
    if request.url.query:
        wanted += f"?{request.url.query}"
    return RedirectResponse(f"{root_of(request)}/login?next={quote(wanted)}", 303)


def _here(request: Request, wanted: str) -> str:
    """Return where to go next: a path of this site, whatever the form said."""
    clean = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted
    if not clean or not wanted.isprintable():
        return f"{root_of(request)}/"
    return quote(wanted, safe="/?&=#%:;,+@!$'()*~")


def root_of(request: Request) -> str:
    """Return the prefix under which the chat is served: `root_path` of hypercorn.toml."""
    # The routing of what is mounted changes `root_path`, and keeps the first one by this name.
    scope = request.scope
    return str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/")


ROUTES = [
    Route("/", rooms),
    Route("/login", login, methods=["GET"]),
    Route("/login", sign_in, methods=["POST"]),
    Route("/logout", sign_out, methods=["POST"]),
    Route("/test-chat/{room:whole}", test_chat),
]
