"""The product, with its tasks counted from outside: `python -m tests.faults.counted serve …`.

On SIGUSR1 a worker says in its log how many tasks it has. Only the soak runs this.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

from chat.__main__ import main


def count(number: int, frame: object) -> None:
    """Say it past all buffers: the signal may have come in the middle of a line."""
    tasks: set[object] = set()
    with suppress(RuntimeError):  # no loop runs yet, or any more
        tasks = set(asyncio.all_tasks())
    os.write(1, f"\n{len(tasks)} tasks\n".encode())


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, count)
    sys.exit(main(sys.argv[1:]))
