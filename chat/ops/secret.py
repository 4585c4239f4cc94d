"""The key that signs cookies and tokens, where nobody set one: made once, and kept in a file.

For SQLite only: with PostgreSQL several nodes must share the key, so the setting is required.
Called by `__main__.py` before any worker starts.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from chat.errors import SettingsError
from chat.settings import MIN_SECRET, Settings

logger = logging.getLogger(__name__)

KEY_FILE = Path("var/secret_key")
KEY_BYTES = 32  # random bytes: as strong as the signature itself


def with_secret_key(settings: Settings, path: Path = KEY_FILE) -> Settings:
    """Return the settings with a key; raise SettingsError where it cannot be kept."""
    if settings.secret_key:
        return settings
    try:
        key, made = _kept(path)
    except OSError as error:
        raise SettingsError(
            f"CHAT_SECRET_KEY is not set, and {path} cannot be kept: {error.strerror}; set it to "
            f"at least {MIN_SECRET} random characters."
        ) from error
    if len(key) < MIN_SECRET:
        raise SettingsError(
            f"CHAT_SECRET_KEY is not set, and the key in {path} is too short; delete the file to "
            "have a new one made (everybody is signed out then)."
        )
    if made:
        logger.info("CHAT_SECRET_KEY is not set: made a key and keep it in %s (mode 0600)", path)
    else:
        logger.info("CHAT_SECRET_KEY is not set: using the key in %s", path)
    return replace(settings, secret_key=(key,))


def _kept(path: Path) -> tuple[str, bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = False
    if not path.exists():
        # Whole or not at all: another node may start in the same moment. A name of its own each
        # time: what a killed start left behind must not stop the next one.
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(descriptor)
        try:
            with suppress(FileExistsError):
                os.link(draft, path)
                made = True
        finally:
            draft.unlink()
    # Bytes that are no text are no part of a key; what then is left is likely too short.
    return path.read_text("utf-8", errors="ignore").strip(), made
