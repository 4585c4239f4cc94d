"""The supervised Redis backend against a real Redis that is killed, frozen, stopped and lied to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from chat.live import outbox
from tests.relays import LIMIT, Node, listening, nodes, until
from tests.servers import RedisServer
from tests.tls import tls_proxy

# Seconds that closing may take, whatever Redis does.
CLOSE_LIMIT = 3.0


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Redis]:
    connection = Redis.from_url(url)
    try:
        async with asyncio.timeout(LIMIT):
            yield connection
    finally:
        await connection.aclose()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


async def test_two_processes_hear_each_other(redis_url: str) -> None:
    async with (
        nodes(redis_url, "a", "b") as [a, b],
        listening(a, "room") as at_a,
        listening(b, "room") as at_b,
    ):
        a.relay.publish("room", "from a")
        await until(lambda: at_a.heard == at_b.heard == ["from a"])
        b.relay.publish("room", "from b")
        await until(lambda: at_a.heard == at_b.heard == ["from a", "from b"])


async def test_a_control_text_reaches_every_process(redis_url: str) -> None:
    async with nodes(redis_url, "a", "b", "c") as all_nodes:
        all_nodes[0].relay.tell("revoked 7")
        await until(lambda: all(node.controls == ["revoked 7"] for node in all_nodes))


async def test_two_deployments_on_one_redis_never_hear_each_other(redis_url: str) -> None:
    async with (
        nodes(redis_url, "a", prefix="one") as [a],
        nodes(redis_url, "b", prefix="two") as [b],
        listening(a, "room") as at_a,
        listening(b, "room") as at_b,
    ):
        a.relay.publish("room", "one")
        a.relay.tell("one")
        b.relay.publish("room", "two")
        b.relay.tell("two")
        await until(lambda: bool(at_a.heard and at_b.heard and a.controls and b.controls))
        await a.relay.flush()
        await b.relay.flush()
        assert (at_a.heard, a.controls) == (["one"], ["one"])
        assert (at_b.heard, b.controls) == (["two"], ["two"])


async def test_a_healthy_redis_is_never_called_lost(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with nodes(redis_url, "a") as [node]:
        assert not node.relay.lost
        assert node.relay.lost_since is None
        assert node.relay.reason == ""
        round_trip = node.relay.round_trip
        assert round_trip is not None
        assert 0 < round_trip < LIMIT
        # The heart goes on beating.
        await until(lambda: node.relay.round_trip != round_trip)
        assert node.relay.published == node.relay.reconnects == 0
    assert lines(caplog) == []


async def test_a_killed_subscription_is_reported_as_a_gap_and_heard_again(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with nodes(own_redis.url, "a") as [node], listening(node, "room") as listener:
        await until(lambda: node.gaps == ["room"])
        async with client(own_redis.url) as redis:
            assert await redis.client_kill_filter(_type="pubsub") == 1
        await until(lambda: node.gaps == ["room", "room"] and not node.relay.lost)
        node.relay.publish("room", "after")
        await until(lambda: listener.heard == ["after"])
        assert node.relay.reconnects == 1
    lost, restored = lines(caplog)
    assert lost == "WARNING Relay lost: the connection was cut"
    assert restored.startswith("INFO Relay restored after ")
    assert restored.endswith(" s")


async def test_a_killed_publishing_connection_is_noticed_too(own_redis: RedisServer) -> None:
    async with nodes(own_redis.url, "a") as [node], listening(node, "room") as listener:
        async with client(own_redis.url) as redis:
            await redis.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: node.relay.reconnects == 1)
        node.relay.publish("room", "after")
        await until(lambda: listener.heard == ["after"])


async def test_a_stopped_redis_is_lost_once_and_all_channels_return_with_it(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    channels = {f"room.{number}" for number in range(50)}
    async with (
        nodes(own_redis.url, "a") as [node],
        listening(node, "room") as listener,
        AsyncExitStack() as listeners,
    ):
        for channel in channels:
            await listeners.enter_async_context(node.relay.listen(channel))
        await until(lambda: {"room", *channels} == set(node.gaps))
        before = time.time()
        own_redis.stop()
        await until(lambda: node.relay.lost)
        assert node.relay.lost_since is not None
        assert before - 1 < node.relay.lost_since < time.time() + 1
        assert node.relay.round_trip is None
        # What comes while it is lost is dropped, not kept: the log has it.
        await until(lambda: node.relay.reason == "connection refused")
        node.relay.publish("room", "during")
        assert node.relay.dropped == 1
        async with node.relay.listen("new"):
            node.gaps.clear()
            own_redis.start()
            await until(lambda: {"room", "new", *channels} == set(node.gaps))
        await until(lambda: not node.relay.lost)
        node.relay.publish("room", "after")
        await until(lambda: listener.heard == ["after"])
        assert node.relay.reconnects == 1
    assert [line.split(":")[0].split(" after")[0] for line in lines(caplog)] == [
        "WARNING Relay lost",
        "INFO Relay restored",
    ]


async def test_a_frozen_redis_is_noticed_and_blocks_nobody(own_redis: RedisServer) -> None:
    async with nodes(own_redis.url, "a") as [node], listening(node, "room") as listener:
        own_redis.freeze()
        node.relay.publish("room", "into the void")
        await until(lambda: node.relay.lost)
        assert node.relay.reason == "no answer in time"
        assert node.relay.dropped == 1
        node.gaps.clear()
        own_redis.thaw()
        await until(lambda: "room" in node.gaps and not node.relay.lost)
        node.relay.publish("room", "after")
        await until(lambda: listener.heard[-1:] == ["after"])


async def test_a_heartbeat_that_does_not_come_back_means_lost(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(own_redis.url, "a") as [node]:
        # Both connections answer, but what is said on the one does not come out of the other.
        monkeypatch.setattr(node.relay._backend, "_control", b"somewhere else")
        await until(lambda: node.relay.lost)
        assert node.relay.reason == "no heartbeat for 2 s"


async def test_it_starts_without_redis_and_finds_it_later(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own_redis.stop()
    async with nodes(own_redis.url, "a") as [node], listening(node, "room") as listener:
        assert node.relay.lost
        assert node.relay.lost_since is not None
        assert not await node.relay.confirmed("room")
        own_redis.start()
        await until(lambda: node.gaps == ["room"] and not node.relay.lost)
        node.relay.publish("room", "here")
        await until(lambda: listener.heard == ["here"])
    assert [line.split(" after")[0] for line in lines(caplog)] == [
        "WARNING Relay lost: connection refused",
        "INFO Relay restored",
    ]


async def test_it_starts_while_redis_is_frozen(own_redis: RedisServer) -> None:
    own_redis.freeze()
    async with nodes(own_redis.url, "a") as [node]:
        assert node.relay.lost
        own_redis.thaw()
        await until(lambda: not node.relay.lost)


async def test_a_wrong_password_is_said_without_the_password(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with client(own_redis.url) as redis:
        await redis.config_set("requirepass", "the right one")
    url = own_redis.url.replace("redis://", "redis://:letmein@")
    async with nodes(url, "a") as [node]:
        assert node.relay.lost
        assert node.relay.reason == "the password or user was refused"
    async with nodes(own_redis.url, "b") as [node]:
        assert node.relay.reason == "the password or user was refused"
    right = own_redis.url.replace("redis://", "redis://:the%20right%20one@")
    async with nodes(right, "c") as [node]:
        assert not node.relay.lost
    assert not any(word in caplog.text for word in ("letmein", "right", "127.0.0.1"))


async def test_a_user_without_permission_to_publish_is_a_lost_relay(
    own_redis: RedisServer,
) -> None:
    async with client(own_redis.url) as redis:
        await redis.execute_command("ACL", "SETUSER", "deaf", "on", "nopass", "+@all", "-publish")
        await redis.execute_command("ACL", "SETUSER", "deaf", "allchannels", "allkeys")
    async with nodes(own_redis.url.replace("redis://", "redis://deaf:x@"), "a") as [node]:
        await until(lambda: node.relay.reason == "the user lacks a permission")
        assert node.relay.lost


async def test_waiting_for_a_confirmation_ends_when_the_relay_is_lost(
    own_redis: RedisServer,
) -> None:
    async with nodes(own_redis.url, "a") as [node]:
        own_redis.freeze()
        async with asyncio.timeout(LIMIT), node.relay.listen("room"):
            assert not await node.relay.confirmed("room")
        assert node.relay.lost


async def test_waiting_for_a_confirmation_ends_when_the_listener_leaves(
    own_redis: RedisServer,
) -> None:
    async with nodes(own_redis.url, "a") as [node]:
        own_redis.freeze()
        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            async with node.relay.listen("room"):
                waiting = group.create_task(node.relay.confirmed("room"))
                await asyncio.sleep(0)
            assert not await waiting
            assert not node.relay.lost


async def test_closing_is_bounded_with_a_frozen_redis(own_redis: RedisServer) -> None:
    node = Node(own_redis.url, "a")
    await node.relay.open()
    async with listening(node, "room"):
        own_redis.freeze()
        for _ in range(100):
            node.relay.publish("room", "x" * 100_000)
        async with asyncio.timeout(CLOSE_LIMIT):
            await node.relay.close()
    assert node.relay.dropped == 100
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "relay" in task.get_name()]


async def test_a_start_that_is_given_up_leaves_nothing_behind(own_redis: RedisServer) -> None:
    own_redis.freeze()
    opening = asyncio.create_task(Node(own_redis.url, "a").relay.open())
    await until(lambda: "relay supervisor" in {task.get_name() for task in asyncio.all_tasks()})
    opening.cancel()
    async with asyncio.timeout(CLOSE_LIMIT):
        await asyncio.wait([opening])
    assert not [task for task in asyncio.all_tasks() if "relay" in task.get_name()]


async def test_closing_while_reconnecting_is_bounded(own_redis: RedisServer) -> None:
    own_redis.freeze()
    node = Node(own_redis.url, "a")
    async with asyncio.timeout(LIMIT):
        await node.relay.open()
    async with asyncio.timeout(CLOSE_LIMIT):
        await node.relay.close()


async def test_flush_waits_until_redis_has_all(redis_url: str) -> None:
    async with nodes(redis_url, "a") as [node]:
        for _ in range(3_000):
            node.relay.publish("room", "x" * 200)
        assert node.relay.published == 0
        async with asyncio.timeout(LIMIT):
            await node.relay.flush()
        assert node.relay.published == 3_000


async def test_what_redis_cannot_take_fast_enough_is_dropped_and_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_COMMANDS", 10)
    async with nodes(redis_url, "a") as [node]:
        for _ in range(25):
            node.relay.publish("room", "x")
        await node.relay.flush()
        assert (node.relay.published, node.relay.dropped) == (10, 15)


async def test_a_text_that_cannot_be_encoded_is_dropped_and_counted(redis_url: str) -> None:
    async with nodes(redis_url, "a") as [node], listening(node, "room") as listener:
        node.relay.publish("room", "\ud800")
        node.relay.publish("room", "after")
        await until(lambda: listener.heard == ["after"])
        assert node.relay.dropped == 1


async def test_what_strangers_publish_on_our_channels_harms_nothing(redis_url: str) -> None:
    async with (
        nodes(redis_url, "a") as [node],
        listening(node, "room") as listener,
        client(redis_url) as redis,
    ):
        await until(lambda: node.gaps == ["room"])
        await redis.publish("test/room", b"x \xff\xfe")
        await until(lambda: node.gaps == ["room", "room"])
        for text in (b"", b"else", b"beat a", b"beat a x", b"beat b 7", b"tell \xff"):
            await redis.publish("test!control", text)
        node.relay.tell("known")
        node.relay.publish("room", "after")
        await until(lambda: listener.heard == ["after"] and node.controls == ["known"])
        assert not node.relay.lost


async def test_a_mistake_of_ours_is_logged_and_survived(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    async with nodes(own_redis.url, "a") as [node], listening(node, "room") as listener:

        def fail(channel: str, payload: bytes) -> None:
            raise LookupError("a mistake of ours")

        with monkeypatch.context() as patch:
            patch.setattr(node.relay._backend, "heard", fail)
            node.relay.publish("room", "poison")
            await until(lambda: node.relay.reconnects == 1)
        node.relay.publish("room", "after")
        await until(lambda: listener.heard == ["after"])
    assert lines(caplog)[:2] == [
        "ERROR The relay failed unexpectedly",
        "WARNING Relay lost: unexpected LookupError",
    ]


async def test_a_url_cannot_switch_the_supervision_off(redis_url: str) -> None:
    url = f"{redis_url}?socket_timeout=0.01&protocol=3&health_check_interval=1&max_connections=1"
    async with nodes(url, "a") as [node], listening(node, "room") as listener:
        await until(lambda: node.relay.round_trip is not None)
        first = node.relay.round_trip
        await until(lambda: node.relay.round_trip != first)
        node.relay.publish("room", "hola")
        await until(lambda: listener.heard == ["hola"])
        assert node.relay.reconnects == 0


@pytest.mark.parametrize("trust", ["?ssl_cert_reqs=none", "?ssl_ca_certs={authority}"])
async def test_rediss_works_with_an_authority_and_without_any_check(
    own_redis: RedisServer, tmp_path: Path, trust: str
) -> None:
    async with tls_proxy(own_redis.port, tmp_path) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}" + trust.format(authority=proxy.authority)
        async with nodes(url, "a", "b") as [a, b], listening(a, "room") as listener:
            b.relay.publish("room", "over TLS")
            await until(lambda: listener.heard == ["over TLS"])
            own_redis.restart()
            await until(lambda: a.relay.reconnects == b.relay.reconnects == 1)
            b.relay.publish("room", "again")
            await until(lambda: listener.heard == ["over TLS", "again"])


async def test_rediss_refuses_a_certificate_of_an_unknown_authority(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        tls_proxy(own_redis.port, tmp_path) as proxy,
        nodes(f"rediss://127.0.0.1:{proxy.port}", "a") as [node],
    ):
        assert node.relay.lost
        assert node.relay.reason == "the TLS certificate was not accepted"
