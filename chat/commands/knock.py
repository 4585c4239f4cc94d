"""The socket of a chat, tried as its members would: for `healthcheck.py`.

Without a token one must be closed with 4401. With one, where the key and the database are at hand,
a message goes round in the direct room of two site users of our own. Whatever fails is a Failing;
where nothing answers in time, `silence` says what is known by then.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from chat.client import Rejected, Room
from chat.commands.at_hand import AtHand, Entry
from chat.commands.place import Failing, Place, ask, refusal_of, room_path
from chat.errors import Refused
from chat.link import GIVEN_UP, Link
from chat.log.retention import CHECKERS
from chat.patience import Patience
from chat.protocol import CloseCode, Error

ROOM = "healthcheck"  # who has no token is sent away before anybody looks for it
PATIENCE = Patience(close=0.5)  # the check has four seconds for everything
# What the chat says with 4429, and the setting that is meant.
LIMITS = {
    "too many connections of this user": "CHAT_MAX_CONNECTIONS_PER_USER",
    "too many connections of this address": "CHAT_MAX_CONNECTIONS_PER_ADDRESS",
    "too many new rooms": "CHAT_ROOM_RATE",
}
# Codes for a token that was made for another chat: its key, or its users, are others.
ANOTHER_CHAT = (CloseCode.UNAUTHENTICATED, CloseCode.FORBIDDEN, CloseCode.NOT_FOUND)
OTHER_KEY = (
    "It does not take a token made here: CHAT_SECRET_KEY and CHAT_DATABASE_URL must be those that"
    " it was started with."
)


class Member(Room):
    """One that remembers why something was not taken; as all clients do, it says it again."""

    # The last error about something of ours; None: there was none.
    refused: Error | None = None

    def _hear(self, frame: Any) -> None:
        if isinstance(frame, Error):
            self.refused = frame
        super()._hear(frame)


class Knock:
    def __init__(self, place: Place, http: str) -> None:
        self._place = place
        # The name of the line about the same place over HTTP.
        self._http = http
        # Our member; None before it tries to enter.
        self._member: Member | None = None

    async def run(self, own: asyncio.Task[AtHand]) -> str:
        """Return what there is to say; raise Failing."""
        await self._without_token()
        closed = "who has no token is closed with 4401"
        try:
            entry = (await asyncio.shield(own)).entry
        except Failing:
            return f"{closed}; no message sent: see the line database"
        if entry is None:
            return f"{closed}; no message sent: no key and database are at hand"
        if entry.disabled:
            raise Failing(
                f"No message can be sent: the user {CHECKERS[0]} is disabled; `user enable"
                f" {CHECKERS[0]}` lets it in again."
            )
        spent = await self._round_trip(entry) * 1000
        return f"{closed}; a message went round in {spent:.0f} ms"

    @property
    def silence(self) -> str:
        """What there is to say where no answer came in time."""
        member, lines = self._member, f"the lines {self._http} and database"
        if member is not None and member.trouble in LIMITS:
            return (
                f"It does not let our member in ({member.trouble}): {LIMITS[member.trouble]}"
                " leaves no place for it."
            )
        if member is not None and member.refused is not None:
            if member.refused.code == "rate_limited":
                return (
                    f"It takes no message more of the user {CHECKERS[0]} for now: CHAT_SEND_RATE is"
                    " too low for so many health checks."
                )
            return f"It does not store our message ({member.refused.code}): see {lines}."
        return (
            f"There is no answer: see {lines}; if they are ok, something between holds the"
            " socket's frames back."
        )

    async def _without_token(self) -> None:
        async def leave(link: Link) -> None:
            await link.close()

        place = self._place
        link = Link(None, {}, lambda frame: None, leave, place.at, PATIENCE)
        code, reason = await link.run(place.room(ROOM))
        if link.joined_at is not None:
            raise Failing("It lets in who has no token and no cookie: is that Tertulia?")
        if link.status is not None:
            raise Failing(await refusal_of(place, ROOM, link.status))
        if code == GIVEN_UP:
            # The same over HTTP may tell why.
            await ask(place, room_path(ROOM), (404,))
            raise Failing(f"There is no handshake: {reason}; see the line {self._http}.")
        if code != CloseCode.UNAUTHENTICATED:
            raise Failing(f"It closes with {code} who has no token, and not with 4401: {reason}.")

    async def _round_trip(self, entry: Entry) -> float:
        """Send a message and wait for it; return the seconds that took."""
        place = self._place
        self._member = Member(
            place.room(entry.room),
            token=entry.token,
            # Nothing but our own message is to come.
            since=entry.since,
            epoch=entry.epoch,
            at=place.at,
            patience=PATIENCE,
        )
        try:
            async with self._member as room:
                if room.welcome is None or room.welcome.user.name != CHECKERS[0]:
                    # Another database has these numbers: two people, who must not hear of us.
                    raise Failing(OTHER_KEY)
                began = time.monotonic()
                ack = await room.send("healthcheck")
                async for message in room:
                    if message.seq == ack.seq:
                        break
                return time.monotonic() - began
        except Rejected as rejected:
            raise Failing(f"It takes no message: {rejected.code}.") from rejected
        except Refused as refused:
            if refused.code in ANOTHER_CHAT:
                raise Failing(OTHER_KEY) from refused
            raise Failing(f"It closes our member with {refused.code}: {refused}.") from refused
