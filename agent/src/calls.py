"""What is known of LiteLLM's calls for as long as LiteLLM has them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

from .constants import BODY_BOUND
from .request import Attempt, Called, _request, call_key
from .shapes import Data

NUMBERS = itertools.count()


class Known(weakref.ref[Any]):
    """LiteLLM's own object of a call, as long as LiteLLM has it, and what is to be known of the call."""

    __slots__ = ("key", "number", "data", "answered", "called")
    key: int  # the object's id, which another one may get after it
    number: int  # and one that none gets again
    data: int | None  # the id of what came to the proxy's door
    answered: Attempt | None
    called: Called | None

    def __new__(cls, call: object, forget: Callable[[Any], None]) -> Known:
        return super().__new__(cls, call, forget)

    def __init__(self, call: object, forget: Callable[[Any], None]) -> None:
        self.key, self.number = id(call), next(NUMBERS)
        self.data, self.answered, self.called = None, None, None


class Calls:
    """The calls that LiteLLM has. An id may come again: what is found under one is looked at first."""

    def __init__(self) -> None:
        self.by_object: dict[int, Known] = {}
        self.by_data: dict[int, Known] = {}
        self.answered: dict[str, Known] = {}  # by call id
        self.bodies: dict[object, Called] = {}  # what came to the door, until it comes to the router

    def of(self, call: object) -> Known | None:
        """None for an object that cannot be known weakly."""
        found = self.by_object.get(id(call))
        if found is None or found() is not call:
            try:
                found = self.by_object[id(call)] = Known(call, self.forget)
            except TypeError:
                return None
        return found

    def key(self, of: Called | Attempt) -> object:
        """The same in all that is tried of one request, and of no other, even if a client gives all its
        requests one id (x-litellm-call-id)."""
        call = of.call and of.call()
        known = None if call is None else self.of(call)
        return of.call_id, known and known.number

    def came(self, call: object, data: Data) -> Known | None:
        """This came to the proxy's door for it."""
        known = self.of(call)
        if known is not None:
            known.data = id(data)
            self.by_data[known.data] = known
        return known

    def take(self, data: Data) -> Called | None:
        """What came to the door for this call; it is not kept any longer."""
        key = call_key(data)
        came = self.bodies.get(key)
        if came is None or not came.is_of(data.get("litellm_logging_obj")):
            return None
        self.bodies.pop(key, None)
        return came

    def sweep(self, now: float) -> None:
        for key, came in self.bodies.copy().items():  # Python's collector may forget() at any allocation
            if came.body is not None and now - came.body[0] > BODY_BOUND:
                self.bodies.pop(key, None)

    def with_call(self, data: Data) -> Data:
        """What came to the proxy's door, with LiteLLM's own object of the call, which it takes out before the
        hook of a final failure (ProxyLogging.post_call_failure_hook)."""
        if data.get("litellm_logging_obj") is not None:
            return data
        known = self.by_data.get(id(data))
        return {**data, "litellm_logging_obj": known and known()}

    def keep(self, call: object, called: Called) -> Callable[[], Called | None]:
        """Leads to this as long as LiteLLM has the call."""
        known = None if call is None else self.of(call)
        if known is None:
            return lambda: called
        known.called = called
        return weakref.ref(called)

    def answer(self, call: object, attempt: Attempt) -> None:
        """What this attempt came to is known."""
        known = self.of(call)
        if known is not None:
            known.answered = attempt
            self.answered[attempt.call_id] = known

    def forget(self, known: Known) -> None:
        """LiteLLM has dropped the call."""
        kept: tuple[tuple[dict[Any, Known], object], ...] = (
            (self.by_object, known.key),
            (self.by_data, known.data),
            (self.answered, known.answered and known.answered.call_id),
        )
        for calls, key in kept:
            if calls.get(key) is known:
                del calls[key]
        came = self.bodies.get(known.key)
        if came is not None and came.call is known:  # it was refused before it came to the router
            self.bodies.pop(known.key, None)
        known.answered = known.called = None  # which know it


def adopt(attempts: dict[str | None, list[Attempt]], call_id: str | None) -> Attempt | None:
    """LiteLLM made the id of its call after the check: under it goes what the check of this task reserved."""
    request = _request.request()
    own = None if request is None else request.attempt
    if request is None or own is None or own.hooked or own.ended:
        return None
    if not call_id or not request.called.made_up:
        return None
    still = [attempt for attempt in attempts.pop(own.call_id, ()) if attempt is not own]
    if still:
        attempts[own.call_id] = still
    own.call_id = call_id
    attempts.setdefault(call_id, []).append(own)
    return own
