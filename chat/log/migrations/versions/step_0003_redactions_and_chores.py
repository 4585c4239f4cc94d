"""Redactions: texts that were taken away; chores: who does what one process alone should do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # New tables only: no lock on what nodes of the version before are using meanwhile.
    op.create_table(
        "redactions",
        sa.Column("room_id", sa.BigInteger, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("redacted_at", sa.BigInteger, nullable=False),
    )
    op.create_index("redactions_redacted_at", "redactions", ["redacted_at"])
    op.create_table(
        "chores",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("held_until", sa.BigInteger, nullable=False),
    )
