"""The tables, as SQLAlchemy Core describes them; `migrations/` builds them step by step.

Times are milliseconds since 1970, UTC, as whole numbers: the same on both databases. There are no
foreign keys: the append would pay for each row, and nothing is ever deleted that others name.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    false,
)

metadata = MetaData()

# SQLite hands out a number again after its row is gone unless the column is AUTOINCREMENT, and
# that needs the type INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")

deployment = Table(
    "deployment",
    metadata,
    # Random, made once: two deployments on one Redis must not hear each other.
    Column("id", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    # The name case-folded; null once a guest's name is free again.
    Column("name_key", Text, unique=True),
    Column("kind", Text, nullable=False),  # guest or site
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),
    Index("users_disabled_at", "disabled_at"),
    sqlite_autoincrement=True,
)

sessions = Table(
    "sessions",
    metadata,
    Column("sid", Text, primary_key=True),
    Column("user_id", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    # Set by signing out, and where a site user takes a guest's name; the ticker finds it.
    Column("revoked_at", BigInteger),
    Index("sessions_user_id", "user_id"),
    Index("sessions_revoked_at", "revoked_at"),
)

rooms = Table(
    "rooms",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    # Another epoch is another log: cursors of the old one mean nothing in it.
    Column("epoch", Text, nullable=False),
    # The oldest seq still there; last_seq + 1 where none is.
    Column("first_seq", BigInteger, nullable=False, server_default="1"),
    # The head: the newest seq, 0 in an empty room. Only the append moves it.
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    Column("last_message_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    # Both users of a direct room; null in open ones.
    Column("low_user", BigInteger),
    Column("high_user", BigInteger),
    sqlite_autoincrement=True,
)

messages = Table(
    "messages",
    metadata,
    Column("room_id", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    # The id that the sender chose.
    Column("message_id", Text, nullable=False),
    Column("sender_id", BigInteger, nullable=False),
    # Old messages keep the names they were sent under.
    Column("sender_name", Text, nullable=False),
    Column("receiver_id", BigInteger),
    Column("receiver_name", Text),
    Column("text", Text, nullable=False),
    Column("sent_at", BigInteger, nullable=False),
    Column("redacted", Boolean, nullable=False, server_default=false()),
    Index("messages_once", "room_id", "sender_id", "message_id", unique=True),
)

redactions = Table(
    "redactions",
    metadata,
    # Whose text was taken away; the ticker finds it.
    Column("room_id", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("redacted_at", BigInteger, nullable=False),
    Index("redactions_redacted_at", "redacted_at"),
)

chores = Table(
    "chores",
    metadata,
    # What one process of the deployment does for all, and who does it until when.
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("held_until", BigInteger, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("room_id", BigInteger, primary_key=True),
    # Whoever was ever in the room.
    Column("user_id", BigInteger, primary_key=True),
    Column("last_seen_at", BigInteger, nullable=False),
    # The newest seq that this user has read, on any device; 0: none yet.
    Column("last_read_seq", BigInteger, nullable=False, server_default="0"),
)
