"""The tree of errors: codes and statuses as the contract has them, and a docstring that is true."""

from __future__ import annotations

import re

from chat import errors
from chat.errors import ChatError, RateLimited, Refused, SettingsError, Unavailable, WireError

# The contract, sections 3.1 and 4.
STATUSES = {
    "bad_json": 400,
    "bad_frame": 400,
    "unknown_type": 400,
    "text_too_long": 400,
    "text_empty": 400,
    "missing_receiver": 400,
    "unknown_receiver": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "id_conflict": 409,
    "rate_limited": 429,
    "unavailable": 503,
}


def all_errors() -> dict[str, type[ChatError]]:
    return {
        name: one
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, ChatError)
    }


def test_each_code_of_the_contract_has_one_error_with_its_status() -> None:
    wire = [one for one in all_errors().values() if issubclass(one, WireError)]
    wire.remove(WireError)
    assert {one.code: one.status for one in wire} == STATUSES
    assert len(wire) == len(STATUSES)


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.sub(r"`[^`]*`", "", errors.__doc__)
    assert all(re.search(rf"\b{name}\b", drawn) for name in all_errors())


def test_an_error_is_its_sentence() -> None:
    error = RateLimited("Slow down.", retry_after=0.8)
    assert (str(error), error.detail, error.retry_after) == ("Slow down.", "Slow down.", 0.8)
    assert str(SettingsError("CHAT_X is wrong.")) == "CHAT_X is wrong."
    assert WireError("No.").retry_after is None


def test_unavailable_always_says_when_to_try_again() -> None:
    error = Unavailable()
    assert error.retry_after == errors.UNAVAILABLE_RETRY_AFTER > 0
    assert "same id" in error.detail
    assert Unavailable("Later.", retry_after=3).retry_after == 3


def test_a_refusal_carries_its_close_code() -> None:
    refused = Refused(4403, "Not here.")
    assert (refused.code, str(refused)) == (4403, "Not here.")
