"""The relay, on memory and on Redis: what any listener and announcer may count on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from chat.live.relay import LISTENER_EVENTS, Relay
from tests.relays import LIMIT, Node, listening, nodes, until

BURST = 2_000


async def test_every_listener_hears_what_is_published(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node], listening(node, "room") as listener:
        node.relay.publish("room", "hola, señora – 🌍")
        await until(lambda: listener.heard == ["hola, señora – 🌍"])


async def test_a_burst_arrives_whole_and_in_order(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node], listening(node, "room") as listener:
        burst = [f"{number}" for number in range(BURST)]
        for text in burst:
            node.relay.publish("room", text)
        await until(lambda: len(listener.heard) == BURST)
        assert listener.heard == burst
        assert node.relay.published == BURST
        assert node.relay.dropped == 0


async def test_a_channel_hears_only_its_own(relay_url: str) -> None:
    async with (
        nodes(relay_url, "a") as [node],
        listening(node, "one") as one,
        listening(node, "two") as two,
    ):
        node.relay.publish("three", "nobody")
        node.relay.publish("one", "1")
        node.relay.publish("two", "2")
        await until(lambda: one.heard == ["1"] and two.heard == ["2"])


async def test_first_listeners_that_come_at_once_all_hear(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node]:
        heard: list[str] = []
        ready = asyncio.Barrier(5)

        async def listen() -> None:
            async with node.relay.listen("room") as texts:
                assert await node.relay.confirmed("room")
                await ready.wait()
                heard.append(await anext(texts))

        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(listen())
            await ready.wait()
            node.relay.publish("room", "all")
        assert heard == ["all"] * 4


async def test_a_first_subscription_is_reported_as_a_gap(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node], listening(node, "room"):
        await until(lambda: node.gaps == ["room"])


async def test_leaving_and_coming_back_is_reported_as_a_gap_too(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node]:
        async with listening(node, "room"):
            await until(lambda: node.gaps == ["room"])
        async with listening(node, "room") as listener:
            await until(lambda: node.gaps == ["room", "room"])
            node.relay.publish("room", "again")
            await until(lambda: listener.heard == ["again"])


async def test_who_left_hears_nothing_more(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node], listening(node, "other") as other:
        async with listening(node, "room") as left:
            pass
        node.relay.publish("room", "too late")
        node.relay.publish("other", "after it")
        await until(lambda: other.heard == ["after it"])
        assert left.heard == []
        assert not await node.relay.confirmed("room")


async def test_a_control_text_is_heard_by_the_process_itself_too(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node]:
        node.relay.tell("revoked 7")
        await until(lambda: node.controls == ["revoked 7"])


async def test_closing_ends_the_listeners(relay_url: str) -> None:
    async with nodes(relay_url, "a") as [node], listening(node, "room") as listener:
        await node.relay.close()
        await until(lambda: listener.ended)


async def test_publishing_before_opening_and_after_closing_is_dropped(relay_url: str) -> None:
    node = Node(relay_url, "a")
    node.relay.publish("room", "early")
    async with asyncio.timeout(LIMIT):
        await node.relay.open()
        await node.relay.close()
        await node.relay.close()
        node.relay.publish("room", "late")
        await node.relay.flush()
    assert (node.relay.published, node.relay.dropped) == (0, 2)


async def test_a_listener_that_hangs_costs_bounded_memory_and_is_told_of_a_gap(
    relay_url: str,
) -> None:
    async with (
        nodes(relay_url, "a") as [node],
        node.relay.listen("room") as texts,
        listening(node, "other") as other,
    ):
        await node.relay.confirmed("room")
        await until(lambda: "room" in node.gaps)
        node.gaps.clear()
        for start in range(0, LISTENER_EVENTS + 100, BURST):
            for number in range(start, start + BURST):
                node.relay.publish("room", f"{number}")
            node.relay.publish("other", "on")
            await until(lambda: other.heard == ["on"])
            other.heard.clear()
        assert "room" in node.gaps
        # What was kept is the oldest, without a hole.
        for number in range(LISTENER_EVENTS):
            assert await anext(texts) == f"{number}"


async def test_all_listeners_together_keep_a_bounded_amount_of_text(
    relay_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.relay.LISTENERS_CHARACTERS", 1_000)
    async with nodes(relay_url, "a") as [node], listening(node, "other") as other:
        async with node.relay.listen("room"):
            await node.relay.confirmed("room")
            await until(lambda: "room" in node.gaps)
            node.gaps.clear()
            node.relay.publish("room", "x" * 900)
            node.relay.publish("room", "y" * 200)
            await until(lambda: node.gaps == ["room"])
        # Who leaves takes along what was not read.
        node.relay.publish("other", "z" * 999)
        await until(lambda: len(other.heard) == 1)


async def test_a_callback_that_fails_is_logged_and_disturbs_nobody(
    relay_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str) -> None:
        raise LookupError("a mistake of the callback")

    relay = Relay(relay_url, prefix="p", process="a", on_gap=fail, on_control=fail)
    await relay.open()
    try:
        async with asyncio.timeout(LIMIT), relay.listen("room") as texts:
            assert await relay.confirmed("room")
            relay.tell("anything")
            relay.publish("room", "still here")
            assert await anext(texts) == "still here"
            await until(lambda: len(caplog.records) == 2)
        assert not relay.lost
    finally:
        await relay.close()
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


async def test_broadcasters_listener_that_fails_is_logged_and_starts_again(
    relay_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(relay_url, "a") as [node], listening(node, "room") as listener:
        await until(lambda: node.gaps == ["room"])
        backend: Any = node.relay._backend
        original = backend.next_published

        async def fail() -> None:
            await original()
            monkeypatch.setattr(backend, "next_published", original)
            raise LookupError("a mistake of ours")

        monkeypatch.setattr(backend, "next_published", fail)
        # The first is still taken by the call under way, the second by the one that fails.
        node.relay.publish("room", "one")
        node.relay.publish("room", "two")
        await until(lambda: node.gaps == ["room", "room"])
        node.relay.publish("room", "three")
        await until(lambda: listener.heard == ["one", "three"])
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "The relay's listener failed and starts again"
    ]


async def test_memory_is_never_lost() -> None:
    async with nodes("memory://", "a") as [node]:
        assert not node.relay.lost
        assert node.relay.lost_since is None
        assert node.relay.reason == ""
        assert node.relay.round_trip is None
        assert node.relay.reconnects == 0


async def test_memory_keeps_a_bounded_number_of_announcements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat.live.relay.OUTBOX_COMMANDS", 2)
    async with nodes("memory://", "a") as [node], listening(node, "room") as listener:
        for text in ("one", "two", "three"):
            node.relay.publish("room", text)
        await until(lambda: listener.heard == ["one", "two"])
        assert node.relay.dropped == 1


@pytest.mark.parametrize(
    "url",
    [
        "kafka://user:secret@host",
        "redis://user:secret@host:port",
        "redis://:secret@[host",
        "redis://:secret\u2100@host",
        "redis://:secret@host?no_such_option=1",
        "redis://:secret@host?db=x",
        "rediss://:secret@host?ssl_cert_reqs=sometimes",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="relay's URL") as refusal:
        Node(url, "a")
    assert "secret" not in str(refusal.value)
    assert refusal.value.__context__ is None or refusal.value.__suppress_context__
