"""The tables as described and as built: the same, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from chat.log.migrations import upgrade
from chat.log.migrations.apply import DRIVERS
from chat.log.tables import members, messages, metadata, rooms, users

AT = 1_000


async def on(url: str, work: Callable[[Connection], Any]) -> Any:
    """Run `work` on a connection to the migrated database, in a transaction."""
    await upgrade(url)
    target = make_url(url)
    engine = create_async_engine(
        target.set(drivername=DRIVERS[target.get_backend_name()]), poolclass=NullPool
    )
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def test_the_migrations_build_what_is_described(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    assert await on(database_url, differences) == []


async def test_keys_defaults_and_emptiness_are_those_described(database_url: str) -> None:
    """What Alembic's comparison passes over."""

    def look(connection: Connection) -> None:
        found = inspect(connection)
        assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
        for table in metadata.tables.values():
            columns = {one["name"]: one for one in found.get_columns(table.name)}
            assert list(columns) == [one.name for one in table.columns]
            key = found.get_pk_constraint(table.name)["constrained_columns"]
            assert key == [one.name for one in table.primary_key]
            for column in table.columns:
                built = columns[column.name]
                assert built["nullable"] == column.nullable, column
                if not column.primary_key:
                    has_default = built["default"] is not None
                    assert has_default == (column.server_default is not None), column

    await on(database_url, look)


async def test_numbers_as_large_as_the_contracts_fit(database_url: str) -> None:
    def fill(connection: Connection) -> Any:
        largest = 2**53 - 1
        connection.execute(
            messages.insert().values(
                room_id=largest,
                seq=largest,
                message_id="c-1",
                sender_id=largest,
                sender_name="maria",
                text="hola",
                sent_at=largest,
            )
        )
        return connection.execute(messages.select()).one()

    row = await on(database_url, fill)
    assert row.room_id == row.seq == row.sender_id == row.sent_at == 2**53 - 1
    assert (row.receiver_id, row.receiver_name, row.redacted) == (None, None, False)


async def test_a_new_room_is_empty_and_its_seqs_begin_at_one(database_url: str) -> None:
    def fill(connection: Connection) -> Any:
        connection.execute(rooms.insert().values(name="lobby", epoch="e", created_at=AT))
        return connection.execute(rooms.select()).one()

    row = await on(database_url, fill)
    assert (row.first_seq, row.last_seq, row.last_message_at) == (1, 0, None)
    assert (row.low_user, row.high_user) == (None, None)


async def test_a_new_member_has_read_nothing(database_url: str) -> None:
    def fill(connection: Connection) -> Any:
        connection.execute(members.insert().values(MEMBER))
        return connection.execute(members.select()).one()

    assert (await on(database_url, fill)).last_read_seq == 0


async def test_an_id_is_never_given_twice(database_url: str) -> None:
    """Not even after its row is gone: old messages name it."""

    def fill(connection: Connection) -> list[int]:
        ids = []
        for number in range(3):
            one = users.insert().values(name=f"u{number}", kind="guest", created_at=AT)
            ids.append(connection.execute(one.returning(users.c.id)).scalar_one())
            connection.execute(users.delete())
        return ids

    ids = await on(database_url, fill)
    assert len(set(ids)) == 3 and min(ids) >= 1


NAMED = {"name": "maria", "name_key": "maria", "kind": "guest", "created_at": AT}
ROOM = {"name": "lobby", "epoch": "e", "created_at": AT}
MESSAGE = {
    "room_id": 1,
    "seq": 1,
    "message_id": "c-1",
    "sender_id": 7,
    "sender_name": "maria",
    "text": "hola",
    "sent_at": AT,
}
MEMBER = {"room_id": 1, "user_id": 7, "last_seen_at": AT}


@pytest.mark.parametrize(
    ("table", "first", "change"),
    [
        pytest.param(users, NAMED, {"name": "Maria"}, id="a name"),
        pytest.param(rooms, ROOM, {"epoch": "f"}, id="a room"),
        pytest.param(messages, MESSAGE, {"message_id": "c-2"}, id="a seq"),
        pytest.param(messages, MESSAGE, {"seq": 2}, id="an id of a sender in a room"),
        pytest.param(members, MEMBER, {"last_read_seq": 5}, id="a member of a room"),
    ],
)
async def test_these_can_be_there_once_only(
    database_url: str, table: Any, first: dict[str, Any], change: dict[str, Any]
) -> None:
    def fill(connection: Connection) -> None:
        connection.execute(table.insert().values(first))
        connection.execute(table.insert().values(first | change))

    with pytest.raises(IntegrityError):
        await on(database_url, fill)


@pytest.mark.parametrize(
    ("table", "first", "change"),
    [
        pytest.param(users, NAMED | {"name_key": None}, {}, id="a name that was freed"),
        pytest.param(rooms, ROOM, {"name": "Lobby"}, id="a room in another case"),
        pytest.param(messages, MESSAGE, {"seq": 2, "sender_id": 8}, id="an id of another sender"),
        pytest.param(messages, MESSAGE, {"room_id": 2}, id="a seq of another room"),
        pytest.param(messages, MESSAGE, {"seq": 2, "message_id": "C-1"}, id="ids of other cases"),
        pytest.param(members, MEMBER, {"user_id": 8}, id="members of a room"),
        pytest.param(members, MEMBER, {"room_id": 2}, id="a member of two rooms"),
    ],
)
async def test_these_can_be_there_together(
    database_url: str, table: Any, first: dict[str, Any], change: dict[str, Any]
) -> None:
    def fill(connection: Connection) -> None:
        connection.execute(table.insert().values(first))
        connection.execute(table.insert().values(first | change))

    await on(database_url, fill)
