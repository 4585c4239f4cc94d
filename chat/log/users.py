"""Users and their sessions: who may have which name, and what signing out ends.

Guests pick a free name and keep it while a session of theirs lasts. Site users come from
elsewhere (tokens, backends, cookies of another application) and keep theirs for ever; a guest who
has such a name gives it up. Called by `web/identity.py`, `web/pages.py` and `web/api.py`.
"""

from __future__ import annotations

import secrets
import unicodedata
from typing import Any, NamedTuple

from chat.clock import now
from chat.errors import ChatError, Unavailable
from chat.log.database import Database
from chat.protocol import Person

MAX_NAME = 32  # characters
NAME_CATEGORIES = "LMNPS"  # letters, marks, numbers, punctuation, symbols
SID_BYTES = 18  # random bytes of a session's id: not to be guessed
RACES = 5  # how often two may want one name at the same moment before we give up
SIGN_IN_GRACE = 60_000  # ms between making a guest and opening its first session, at most
USER_FIELDS = "u.id, u.name, u.kind, u.disabled_at"


class NameRefused(ChatError):
    """A name breaks the rules; the sentence says which."""

    def __init__(self, sentence: str, **values: object) -> None:
        super().__init__(sentence % values)
        # Apart, for who says it in another language.
        self.sentence = sentence
        self.values = values


class NameTaken(NameRefused):
    """Somebody has this name now."""


class User(NamedTuple):
    id: int
    name: str
    kind: str
    disabled_at: int | None

    @property
    def person(self) -> Person:
        return Person(self.id, self.name)


class Session(NamedTuple):
    sid: str
    created_at: int  # ms
    expires_at: int  # ms
    user: User


class Users:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def find(self, user_id: int) -> User | None:
        return await self._one("WHERE u.id = :id", {"id": user_id})

    async def named(self, name: str) -> User | None:
        """Return who has this name now, whatever its case."""
        return await self._one("WHERE u.name_key = :key", {"key": key_of(name)})

    async def site_user(self, name: str) -> User:
        """Return the site user of this name, made if new; raise NameRefused."""
        name = checked(name)
        for _ in range(RACES):
            found = await self.named(name)
            if found is not None and found.kind == "site":
                return found
            if found is not None:
                await self._rename_guest(found)
            made = await self._make(name, "site")
            if made is not None:
                return made
        raise Unavailable("Too many ask for this name at the same moment.")

    async def guest(self, name: str) -> User:
        """Make a new guest of this name; raise NameRefused or NameTaken."""
        name = checked(name)
        for _ in range(RACES):
            found = await self.named(name)
            if found is not None:
                if found.kind == "site" or await self._in_use(found):
                    raise NameTaken(
                        "The name %(name)s is taken; choose another one.", name=found.name
                    )
                # Its sessions ran out: the name is free, and whoever takes it is someone new.
                await self._free(found.id)
            made = await self._make(name, "guest")
            if made is not None:
                return made
        raise NameTaken("The name %(name)s is taken; choose another one.", name=name)

    async def former_guest(self, name: str) -> User:
        """Make a guest who has gone already: nobody can be it, and its name is free."""
        rows = await self.database.change(
            "INSERT INTO users (name, kind, created_at) VALUES (:name, 'guest', :at) RETURNING id",
            {"name": name, "at": now()},
        )
        return User(rows[0][0], name, "guest", None)

    async def after(self, user_id: int, limit: int) -> list[tuple[User, int]]:
        """Return users by number, after this one, each with when it was made in ms."""
        rows = await self.database.rows(
            f"SELECT {USER_FIELDS}, u.created_at FROM users u WHERE u.id > :after"
            " ORDER BY u.id LIMIT :limit",
            {"after": user_id, "limit": limit},
        )
        return [(User(*row[:4]), row[4]) for row in rows]

    async def disable(self, user_id: int, disabled: bool = True) -> None:
        """Let somebody in no more, or again; who is disabled already stays so since then."""
        value = f"coalesce(disabled_at, {self.database.clock})" if disabled else "NULL"
        await self.database.change(
            f"UPDATE users SET disabled_at = {value} WHERE id = :id RETURNING id", {"id": user_id}
        )

    # --- Sessions

    async def open_session(self, user: User, hours: int) -> Session:
        session = Session(secrets.token_urlsafe(SID_BYTES), now(), now() + hours * 3_600_000, user)
        await self.database.change(
            "INSERT INTO sessions (sid, user_id, created_at, expires_at)"
            " VALUES (:sid, :user, :at, :end) RETURNING sid",
            {
                "sid": session.sid,
                "user": user.id,
                "at": session.created_at,
                "end": session.expires_at,
            },
        )
        return session

    async def session(self, sid: str) -> Session | None:
        """Return the session if it is still good and its user may enter."""
        row = await self.database.row(
            f"SELECT s.created_at, s.expires_at, {USER_FIELDS} FROM sessions s"
            " JOIN users u ON u.id = s.user_id"
            " WHERE sid = :sid AND revoked_at IS NULL AND expires_at > :now"
            " AND u.disabled_at IS NULL",
            {"sid": sid, "now": now()},
        )
        return Session(sid, row[0], row[1], User(*row[2:])) if row else None

    async def renew(self, session: Session, hours: int) -> None:
        """Let the session last for its whole life again, from now."""
        await self.database.change(
            "UPDATE sessions SET created_at = :at, expires_at = :end"
            " WHERE sid = :sid AND revoked_at IS NULL RETURNING sid",
            {"sid": session.sid, "at": now(), "end": now() + hours * 3_600_000},
        )

    async def sign_out(self, session: Session) -> None:
        """End the session for good, and free the name of a guest who has no other one."""
        await self._revoke("sid = :one", session.sid)
        if session.user.kind == "guest" and not await self._signed_in(session.user.id):
            await self._free(session.user.id)

    # --- In here only

    async def _one(self, where: str, values: dict[str, Any]) -> User | None:
        row = await self.database.row(f"SELECT {USER_FIELDS} FROM users u {where}", values)
        return User(*row) if row else None

    async def _make(self, name: str, kind: str) -> User | None:
        """Return the new user, or None where another one took the name first."""
        rows = await self.database.change(
            "INSERT INTO users (name, name_key, kind, created_at)"
            " VALUES (:name, :key, :kind, :at) ON CONFLICT DO NOTHING RETURNING id",
            {"name": name, "key": key_of(name), "kind": kind, "at": now()},
        )
        return User(rows[0][0], name, kind, None) if rows else None

    async def _signed_in(self, user_id: int) -> bool:
        row = await self.database.row(
            "SELECT 1 FROM sessions WHERE user_id = :id AND revoked_at IS NULL"
            " AND expires_at > :now LIMIT 1",
            {"id": user_id, "now": now()},
        )
        return row is not None

    async def _in_use(self, guest: User) -> bool:
        """Tell whether a guest is signed in, or made so lately that it is about to be."""
        row = await self.database.row(
            "SELECT 1 FROM users WHERE id = :id AND created_at > :lately",
            {"id": guest.id, "lately": now() - SIGN_IN_GRACE},
        )
        return row is not None or await self._signed_in(guest.id)

    async def _free(self, user_id: int) -> None:
        await self.database.change(
            "UPDATE users SET name_key = NULL WHERE id = :id AND kind = 'guest' RETURNING id",
            {"id": user_id},
        )

    async def _revoke(self, where: str, one: Any) -> None:
        await self.database.change(
            f"UPDATE sessions SET revoked_at = {self.database.clock}"
            f" WHERE {where} AND revoked_at IS NULL RETURNING sid",
            {"one": one},
        )

    async def _rename_guest(self, guest: User) -> None:
        """Take a name from a guest for the site user it belongs to, and end its sessions."""
        tail = f"~{guest.id}"
        while True:
            name = guest.name[: MAX_NAME - len(tail)].rstrip() + tail
            if await self.named(name) is None:
                # No row: it has given the name up already, or another node took it from it.
                await self.database.change(
                    "UPDATE users SET name = :name, name_key = :key"
                    " WHERE id = :id AND name_key = :old RETURNING id",
                    {
                        "name": name,
                        "key": key_of(name),
                        "id": guest.id,
                        "old": key_of(guest.name),
                    },
                )
                break
            # Guests who take all these names beforehand must not keep a site user out.
            tail = _next_tail(tail, guest.id)
        await self._revoke("user_id = :one", guest.id)


def _next_tail(tail: str, user_id: int) -> str:
    """Return ~7~2 after ~7, ~7~3 after ~7~2."""
    _, _, count = tail[1:].partition("~")
    return f"~{user_id}~{int(count or 1) + 1}"


def checked(raw: str) -> str:
    """Return the name in NFKC; raise NameRefused where it breaks a rule."""
    name = unicodedata.normalize("NFKC", raw)
    if not name.strip():
        raise NameRefused("Please give a name.")
    if len(name) > MAX_NAME:
        raise NameRefused("A name has at most %(most)s characters.", most=MAX_NAME)
    if name != name.strip(" ") or "  " in name:
        raise NameRefused("A name has only single spaces, and none at its ends.")
    if any(one != " " and unicodedata.category(one)[0] not in NAME_CATEGORIES for one in name):
        raise NameRefused("A name has only letters, digits, punctuation and symbols.")
    return name


def key_of(name: str) -> str:
    """Return what must be unique: Maria and maria are one."""
    return unicodedata.normalize("NFKC", name.casefold())
