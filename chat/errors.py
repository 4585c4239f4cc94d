"""Every error that the product itself raises.

ChatError
├── SettingsError        a setting is wrong: the start stops with its sentence
├── Refused              a socket is closed with a code before or while it is a member
├── Reset                the log under a room is another one than before: its members start afresh
└── WireError            a request or frame gets an answer with a code
    ├── BadJson · BadFrame · UnknownType · TextTooLong · TextEmpty
    ├── MissingReceiver · UnknownReceiver · Forbidden · IdConflict
    ├── Unauthenticated · NotFound
    └── RateLimited · Unavailable        trying again helps: `retry_after`

Only `web/connection.py`, `web/sockets.py` and `web/api.py` turn them into frames, close codes and
responses.
"""

from __future__ import annotations

from typing import ClassVar

UNAVAILABLE_RETRY_AFTER = 1.0  # seconds; the writer takes its next batch long before


class ChatError(Exception):
    """The root of the tree; `str()` of it is a sentence for people."""


class SettingsError(ChatError):
    """A setting is wrong; the sentence names it."""


class Refused(ChatError):
    """The socket is closed with `code` (a WebSocket close code)."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Reset(ChatError):
    """The next message of a cursor is not in the log any more, or the log is another one."""


class WireError(ChatError):
    """What a client is told: a `code`, a sentence, and where it helps a time to try again."""

    code: ClassVar[str]
    status: ClassVar[int] = 400

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        # Seconds until trying again helps; None where it does not.
        self.retry_after = retry_after
        # The id to repeat a message under, where the server made it.
        self.message_id: str | None = None


class BadJson(WireError):
    code = "bad_json"


class BadFrame(WireError):
    code = "bad_frame"


class UnknownType(WireError):
    code = "unknown_type"


class TextTooLong(WireError):
    code = "text_too_long"


class TextEmpty(WireError):
    code = "text_empty"


class MissingReceiver(WireError):
    code = "missing_receiver"


class UnknownReceiver(WireError):
    code = "unknown_receiver"


class Forbidden(WireError):
    code = "forbidden"
    status = 403


class IdConflict(WireError):
    code = "id_conflict"
    status = 409


class Unauthenticated(WireError):
    code = "unauthenticated"
    status = 401


class NotFound(WireError):
    code = "not_found"
    status = 404


class RateLimited(WireError):
    code = "rate_limited"
    status = 429


class Unavailable(WireError):
    code = "unavailable"
    status = 503

    def __init__(
        self,
        detail: str = "The database did not confirm; send it again with the same id.",
        *,
        retry_after: float = UNAVAILABLE_RETRY_AFTER,
    ) -> None:
        super().__init__(detail, retry_after=retry_after)
