"""The key that signs cookies and tokens, where nobody set one: made once, and kept in a file.

For SQLite only: with PostgreSQL several nodes must share the key, so the setting is required.
Called by `__main__.py` before any worker starts, and by commands that make tokens; `check` asks
without making one.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import replace
from errno import ENOENT
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
    made = False
    if (key := kept_key(path)) is None:
        try:
            made = _make(path)
            if (key := kept_key(path)) is None:
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT))  # a link that leads nowhere
        except OSError as error:
            raise SettingsError(
                f"CHAT_SECRET_KEY is not set, and {path} cannot be kept: {error.strerror}; set it "
                f"to at least {MIN_SECRET} random characters."
            ) from error
    if made:
        logger.info("CHAT_SECRET_KEY is not set: made a key and keep it in %s (mode 0600)", path)
    else:
        logger.info("CHAT_SECRET_KEY is not set: using the key in %s", path)
    if others_can_read(path):
        logger.warning("Others can read the key in %s; its mode should be 0600", path)
    return replace(settings, secret_key=(key,))


def kept_key(path: Path = KEY_FILE) -> str | None:
    """Return the key in the file, None where there is none; raise SettingsError for no good one."""
    try:
        # Bytes that are no text are no part of a key; what then is left is likely too short.
        key = path.read_text("utf-8", errors="ignore").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(
            f"CHAT_SECRET_KEY is not set, and {path} cannot be read: {error.strerror}; let "
            "the chat's own user read it, or set CHAT_SECRET_KEY."
        ) from error
    if len(key) < MIN_SECRET:
        raise SettingsError(
            f"CHAT_SECRET_KEY is not set, and the key in {path} is too short; delete the file to "
            "have a new one made (everybody is signed out then)."
        )
    return key


def others_can_read(path: Path = KEY_FILE) -> bool:
    """Tell whether more than its owner can read the file that is there."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _make(path: Path) -> bool:
    """Make a key and keep it; tell whether it was this one, and not another start's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another node may start in the same moment. A name of its own each time:
    # what a killed start left behind must not stop the next one.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(descriptor)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
            return True
    finally:
        draft.unlink()
    return False
