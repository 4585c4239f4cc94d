"""Members: who was ever in a room, when last, and how far they have read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "members",
        sa.Column("room_id", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.BigInteger, primary_key=True),
        sa.Column("last_seen_at", sa.BigInteger, nullable=False),
        sa.Column("last_read_seq", sa.BigInteger, nullable=False, server_default="0"),
    )
