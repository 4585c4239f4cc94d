"""The program as it was before the newest step of the tables: `python -m tests.previous serve …`.

The code of today, but for what that step brought: it migrates no further than the step before, and
asks for nothing that is only there since. With each new step this page begins anew.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from chat.__main__ import main
from chat.log import database, heads, redactions
from chat.log.migrations import upgrade

PREVIOUS = "0002"


async def _no_further(url: str) -> None:
    await upgrade(url, PREVIOUS)


async def _none(*_: Any) -> list[int]:
    return []


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    patch.setattr(database, "upgrade", _no_further)
    patch.setattr(redactions, "of_room", _none)
    first, _, rest = heads._PARTS.partition(" UNION ALL SELECT 3")
    patch.setattr(heads, "_PARTS", first + " UNION ALL" + rest.partition("UNION ALL")[2])
    sys.exit(main())
