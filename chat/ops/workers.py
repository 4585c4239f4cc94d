"""Several worker processes under a small parent.

The parent forks, waits and passes signals on; it has no event loop and no thread, so a worker can
be forked at any time, first or as a replacement, and runs the very code that the parent loaded. A
worker ends when its parent does, however that ends. What a worker does is `server.py`'s concern.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable

from chat.ops import metrics

# A worker's work: calls `ready` or `failed`, watches the pipe for its parent's end; an exit code.
Work = Callable[[Callable[[], None], Callable[[str], None], int], int]

# Seconds before a dead worker is replaced: doubled with each death in a row, with jitter so that
# workers that died of one cause do not come back as one crowd.
PAUSE_MIN, PAUSE_MAX = 0.5, 30.0
STEADY = 60.0  # seconds of life after which a death is not one in a row any more
KILL_LIMIT = 30.0  # seconds from the signal to SIGKILL; above server.STOP_LIMIT
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
READY = b"+"

logger = logging.getLogger(__name__)


def supervise(
    work: Work, count: int, announce: Callable[[], None], say: Callable[[str], None]
) -> int:
    """Keep `count` workers until a signal; the exit code. `announce` is called when all listen."""
    metrics.share(count)
    parent = Parent(work, count, announce, say)
    try:
        return parent.run()
    finally:
        parent.close()


class Worker:
    """One child, as its parent sees it."""

    def __init__(self, pid: int, slot: int) -> None:
        self.pid = pid
        # Which of the `count` places it fills.
        self.slot = slot
        self.born = time.monotonic()
        self.ready = False
        # What it wrote into its pipe: READY, or a sentence before it ends.
        self.said = b""


class Parent:
    """Starts workers, replaces those that die, and ends with the last."""

    def __init__(
        self, work: Work, count: int, announce: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self.work = work
        self.announce = announce
        self.say = say
        # Workers alive, by the end of their pipe that the parent reads.
        self.workers: dict[int, Worker] = {}
        # When a place is to be filled (monotonic time), and how often in a row its worker died.
        self.due: dict[int, float] = dict.fromkeys(range(count), 0.0)
        self.deaths = [0] * count
        self.count = count
        # All workers have listened once. Until then a death is a failed start, and ends it all.
        self.announced = False
        self.code = 0
        # Set by a signal, seen by the loop; `kill_at` once the workers have been told.
        self.signalled = False
        self.kill_at: float | None = None
        # Nobody writes into this one: its end tells the workers that the parent is gone.
        self.orphaned, self.alive = os.pipe()
        # A signal writes a byte here, and so ends the wait.
        self.woken, self.waker = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self.waker, False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.woken, selectors.EVENT_READ)
        self.old_handlers = [
            (number, signal.signal(number, self._signal)) for number in STOP_SIGNALS
        ]
        self.old_waker = signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)

    def run(self) -> int:
        while True:
            if self.signalled and self.kill_at is None:
                self._stop(0)
            if self.kill_at is not None and not self.workers:
                return self.code
            now = time.monotonic()
            if self.kill_at is not None:
                if now >= self.kill_at:
                    self._kill()
                wait = self.kill_at - now
            else:
                for slot in [slot for slot, at in self.due.items() if at <= now]:
                    del self.due[slot]
                    self._start(slot)
                wait = min(self.due.values(), default=now + PAUSE_MAX) - now
            for key, _ in self.selector.select(max(wait, 0)):
                self._read(key.fd)

    def close(self) -> None:
        """Give back the signals and close the pipes; a worker still there sees that and ends."""
        for number, handler in self.old_handlers:
            # Told once, we are on our way out: a repeated signal must not change the exit code.
            signal.signal(number, signal.SIG_IGN if self.signalled else handler)
        signal.set_wakeup_fd(self.old_waker)
        self.selector.close()
        for pipe in (self.orphaned, self.alive, self.woken, self.waker, *self.workers):
            os.close(pipe)

    def _signal(self, number: int, frame: object) -> None:
        self.signalled = True

    def _start(self, slot: int) -> None:
        pipe, voice = os.pipe()
        # Blocked until the worker's loop has taken them over, or one that comes between is lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        pid = os.fork()
        if pid == 0:
            os.close(pipe)
            self._be_worker(slot, voice)
        os.close(voice)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self.workers[pipe] = Worker(pid, slot)
        self.selector.register(pipe, selectors.EVENT_READ)

    def _be_worker(self, slot: int, voice: int) -> None:
        # In the child. Never returns: the frames above belong to the parent.
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            self.selector.close()
            # Above all `alive`: the child must not keep itself from seeing its parent's end.
            for pipe in (self.alive, self.woken, self.waker, *self.workers):
                os.close(pipe)

            def ready() -> None:
                os.write(voice, READY)

            def failed(sentence: str) -> None:
                os.write(voice, sentence.encode()[: 2**12])

            metrics.join(slot)
            code = self.work(ready, failed, self.orphaned)
        except BaseException:
            traceback.print_exc()
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _read(self, pipe: int) -> None:
        data = os.read(pipe, 2**12)
        if pipe == self.woken:
            return
        worker = self.workers[pipe]
        if not data:
            self._bury(pipe, worker)
            return
        worker.said += data
        if worker.said.startswith(READY) and not worker.ready:
            worker.ready = True
            ready = sum(other.ready for other in self.workers.values())
            if ready == self.count and not self.announced and self.kill_at is None:
                self.announced = True
                self.announce()

    def _bury(self, pipe: int, worker: Worker) -> None:
        self.selector.unregister(pipe)
        os.close(pipe)
        del self.workers[pipe]
        _, status = os.waitpid(worker.pid, 0)
        metrics.leave(worker.slot)
        code = os.waitstatus_to_exitcode(status)  # negative: the signal that ended it
        sentence = worker.said.removeprefix(READY).decode(errors="replace")
        if self.kill_at is not None:
            if code != 0 and self.code == 0:
                self.code = 1
            return
        if not self.announced:
            self.say(sentence or f"A worker ended with code {code} before it listened.")
            self._stop(code if code > 0 else 1)
            return
        if time.monotonic() - worker.born >= STEADY:
            self.deaths[worker.slot] = 0
        pause = min(PAUSE_MIN * 2 ** min(self.deaths[worker.slot], 10), PAUSE_MAX)
        pause *= random.uniform(0.75, 1.25)
        self.deaths[worker.slot] += 1
        self.due[worker.slot] = time.monotonic() + pause
        why = f": {sentence}" if sentence else ""
        logger.error(
            "Worker %d ended with code %d%s; another starts in %.1f s", worker.pid, code, why, pause
        )

    def _stop(self, code: int) -> None:
        self.code = code
        self.kill_at = time.monotonic() + KILL_LIMIT
        self.due.clear()
        for worker in self.workers.values():
            os.kill(worker.pid, signal.SIGTERM)

    def _kill(self) -> None:
        for worker in self.workers.values():
            logger.error("Worker %d did not stop; it is killed", worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        self.code = self.code or 1
        self.kill_at = time.monotonic() + KILL_LIMIT
