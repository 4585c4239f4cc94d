"""What servers send, as clients parse it: by its type, and nothing that is not known."""

from __future__ import annotations

import pytest

from chat.outgoing import parse
from chat.protocol import Closing, Renewed


def test_a_frame_is_parsed_by_its_type() -> None:
    assert parse('{"type":"token","expires_at":"x"}') == Renewed("x")
    assert parse('{"type":"closing","code":1012,"reason":"r","reconnect_after":2}') == Closing(
        1012, "r", 2.0
    )


@pytest.mark.parametrize(
    "raw", ["{", "[]", b"\xff", '{"type":"confetti"}', '{"type":7}', '{"type":"messages"}']
)
def test_what_is_not_known_is_nothing(raw: str | bytes) -> None:
    assert parse(raw) is None
