"""The log: rooms, messages, users, sessions and the deployment's id."""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DEPLOYMENT_BYTES = 9  # twelve characters: enough to never meet another one

key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    deployment = op.create_table(
        "deployment",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "users",
        sa.Column("id", key, primary_key=True, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", sa.Text, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("users_disabled_at", "users", ["disabled_at"])
    op.create_table(
        "sessions",
        sa.Column("sid", sa.Text, primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
    op.create_index("sessions_user_id", "sessions", ["user_id"])
    op.create_index("sessions_revoked_at", "sessions", ["revoked_at"])
    op.create_table(
        "rooms",
        sa.Column("id", key, primary_key=True, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("last_message_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("low_user", sa.BigInteger),
        sa.Column("high_user", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "messages",
        sa.Column("room_id", sa.BigInteger, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("sender_id", sa.BigInteger, nullable=False),
        sa.Column("sender_name", sa.Text, nullable=False),
        sa.Column("receiver_id", sa.BigInteger),
        sa.Column("receiver_name", sa.Text),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("sent_at", sa.BigInteger, nullable=False),
        sa.Column("redacted", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index(
        "messages_once", "messages", ["room_id", "sender_id", "message_id"], unique=True
    )
    op.bulk_insert(
        deployment,
        [{"id": secrets.token_urlsafe(DEPLOYMENT_BYTES), "created_at": int(time.time() * 1000)}],
    )
