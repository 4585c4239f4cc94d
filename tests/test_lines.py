"""The lines of an export: good ones pass as they are, bad ones are named by their number."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from chat.commands import Impossible
from chat.commands.lines import MAX_LINE, MessageLine, RoomLine, UserLine, checked, written

AT = "2026-11-24T10:00:00.123Z"
ROOM = {"type": "room", "version": 1, "name": "lobby", "first_seq": 3, "last_seq": 5}
MARIA = {"type": "user", "id": 7, "name": "maria", "kind": "site"}
JUAN = {"type": "user", "id": 12, "name": "juan", "kind": "guest"}
DIRECT = ROOM | {"name": "dm.7.12"}


def message(seq: int, **other: Any) -> dict[str, Any]:
    return {
        "type": "message",
        "seq": seq,
        "id": f"c-{seq}",
        "sender": {"id": 7, "name": "maria"},
        "receiver": None,
        "text": "hola",
        "sent_at": AT,
    } | other


GOOD = [ROOM, MARIA, message(3), JUAN, message(4, sender={"id": 12, "name": "juan~9"}), message(5)]
TO_JUAN = {"receiver": {"id": 12, "name": "juan"}}


def read(lines: list[Any], name: str | None = None) -> list[Any]:
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines]
    return [line for _, line in checked(io.BytesIO(b"".join(raw)), name)]


def changed(place: int, **fields: Any) -> list[Any]:
    return [*GOOD[:place], GOOD[place] | fields, *GOOD[place + 1 :]]


def test_good_lines_pass_as_they_are() -> None:
    found = read(GOOD)
    assert [type(one) for one in found] == [
        RoomLine,
        UserLine,
        MessageLine,
        UserLine,
        MessageLine,
        MessageLine,
    ]
    assert (found[4].seq, found[4].sender.name, found[4].milliseconds) == (
        4,
        "juan~9",
        1795514400123,
    )
    assert read([DIRECT, MARIA, JUAN, *[message(seq, **TO_JUAN) for seq in (3, 4, 5)]])
    assert read([ROOM | {"first_seq": 6}]), "all was trimmed"
    assert read(changed(2, text="", redacted=True)) and read(changed(2, sender=GOOD[2]["sender"]))
    assert read(GOOD, "another")[0].name == "lobby"
    assert read([*GOOD[:4], message(4, text="🦜" * 4_000), GOOD[5]]), "the longest there is"
    assert read([ROOM | {"first_seq": 2**52, "last_seq": 2**52}, MARIA, message(2**52)])
    assert read([*GOOD[:4], JUAN | {"id": 13, "name": "Juan"}, *GOOD[4:]]), "guests of one name"


def test_what_is_written_is_read_again() -> None:
    room, user = RoomLine("lobby", 1, 0, "e", AT), UserLine(7, "maría", "guest")
    assert read([written(room), written(user)]) == [room, user]


def test_lines_are_copied_as_they_came() -> None:
    raw = [json.dumps(one, indent=None).encode() + b" \r\n" for one in GOOD]
    copy = io.BytesIO()
    assert len(list(checked(io.BytesIO(b"".join(raw)), None, copy))) == 6
    assert copy.getvalue() == b"".join(raw)


BAD: list[tuple[list[Any], str]] = [
    ([], "There is nothing to import."),
    ([b"\n"], "Line 1: this is not valid JSON."),
    ([b"\xff\n"], "Line 1: this is not valid JSON."),
    ([b"[]"], "Line 1: Expected `object`, got `array`."),
    ([{"type": "rooms"}], "Line 1: Field `type`: Invalid value 'rooms'."),
    (GOOD[1:], "Line 1: an export begins with its room."),
    ([*GOOD, ROOM], "Line 7: a second room."),
    (changed(0, version=2), "Line 1: version 2 is not known here; this is 1."),
    (changed(0, name="a b"), "Line 1: a b is not a name of a room."),
    (changed(0, name="dm.7"), "Line 1: dm.7 is not a name of a room."),
    (changed(0, last_seq=1), "Line 1: last_seq is too small for first_seq."),
    (changed(0, last_seq=2**52 + 1), "Line 1: Field `last_seq`: Expected `int` <= 4503599627"),
    (changed(0, first_seq=0), "Line 1: Field `first_seq`: Expected `int` >= 1."),
    (changed(1, kind="root"), "Line 2: Field `kind`: Invalid enum value 'root'."),
    (changed(1, name=" maria"), "Line 2: A name has only single spaces, and none at its ends."),
    (changed(1, name="ﬁona"), "Line 2: the name is not in NFKC."),
    (changed(3, id=7), "Line 4: user 7 was there before."),
    (changed(3, name="Maria", kind="site"), "Line 4: another site user has this name, but for"),
    (changed(2, seq=4), "Line 3: seq 4 comes where 3 should."),
    (changed(5, seq=4), "Line 6: seq 4 comes where 5 should."),
    ([*GOOD, message(6)], "Line 7: seq 6 comes where 6 should."),
    (GOOD[:5], "The export was cut off: messages 5 to 5 are missing."),
    (GOOD[:2], "The export was cut off: messages 3 to 5 are missing."),
    (changed(2, sender={"id": 9, "name": "x"}), "Line 3: a user who was not told of before."),
    (changed(2, sender={"id": 7, "name": "x" * 33}), "Line 3: A name has at most 32 characters."),
    (changed(2, sender={"id": 7, "name": " "}), "Line 3: Please give a name."),
    (changed(2, sender={"id": 7, "name": "a\n"}), "Line 3: A name has only letters, digits,"),
    (changed(2, sender={"id": 7, "name": "\x1b[31m"}), "Line 3: A name has only letters, digits,"),
    (changed(2, sender={"id": 7, "name": "ﬁona"}), "Line 3: the name is not in NFKC."),
    (changed(2, receiver={"id": 7, "name": "a  b"}), "Line 3: A name has only single spaces,"),
    (changed(2, **TO_JUAN), "Line 3: a user who was not told of before."),
    (changed(2, id="a b"), "Line 3: Field `id`: Expected 1 to 64 printable ASCII characters."),
    (changed(2, text=" "), "Line 3: A message needs some text."),
    (changed(2, text="x" * 4001), "Line 3: A message has at most 4000 characters"),
    (changed(2, text="a\0"), "Line 3: Field `text` must not hold a NUL character."),
    (changed(2, redacted=True), "Line 3: a redacted message has no text."),
    (changed(2, sent_at="today"), "Line 3: 'today' is not a time such as"),
    (changed(4, sent_at="2026-11-24T09:59:59.999Z"), "Line 5: sent_at goes backwards."),
    ([DIRECT, MARIA, message(3)], "Line 3: this is not a message between the two users"),
    ([DIRECT | {"first_seq": 6}, MARIA], "A user of this direct room is missing."),
]


@pytest.mark.parametrize(("lines", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_bad_line_is_named_by_its_number(lines: list[Any], sentence: str) -> None:
    with pytest.raises(Impossible) as caught:
        read(lines)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(".")


def test_a_direct_room_takes_no_other_name_and_no_other_room_a_direct_ones() -> None:
    with pytest.raises(Impossible, match="named after its users"):
        read([DIRECT, MARIA, JUAN], "dm.1.2")
    with pytest.raises(Impossible, match="not by --room"):
        read([DIRECT, MARIA, JUAN], "lobby")
    with pytest.raises(Impossible, match=r"dm\.1\.2 is not a name of a room"):
        read(GOOD, "dm.1.2")


def test_a_line_without_an_end_is_not_read_to_its_end() -> None:
    class Endless(io.BytesIO):
        taken = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None and size > 0, "all of it"
            self.taken += size
            return b"a" * size

    endless = Endless()
    with pytest.raises(Impossible, match=rf"^Line 1 is too long: .* {MAX_LINE} bytes\.$"):
        list(checked(endless, None))
    assert endless.taken == MAX_LINE + 1
