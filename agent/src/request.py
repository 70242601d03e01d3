"""A request, its attempts, and whose task is running."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .book import Book
from .constants import IMAGE_TOKENS, LIFTED, MESSAGE_TOKENS
from .estimates import (
    ASKED,
    CONFIGS,
    CONTENT,
    OUTPUTS,
    TIMES,
    UNSAID,
    WORDS,
    all_own,
    amount_of,
    body_of,
    goes_past_refusals,
    has_no_output,
    is_governed,
    size_of,
)
from .ring import Charge
from .shapes import Body, Data, Deployment, Needs
from .told import same_call


class Called:
    """A request as LiteLLM knows it, in all its attempts. The client may choose the call id
    (x-litellm-call-id), the same for two requests: LiteLLM's own object of the call tells them apart."""

    __slots__ = ("call_id", "call", "body", "made_up", "waited", "__weakref__")
    call_id: str
    call: weakref.ref[Any] | None
    body: Body | None  # what the client sent, if it came through the proxy's door
    made_up: bool  # LiteLLM has no id for it yet
    waited: tuple[frozenset[str], float, int] | None  # in vain: for these deployments, until then, its place

    def __init__(
        self,
        call_id: str,
        call: weakref.ref[Any] | None = None,
        body: Body | None = None,
        made_up: bool = False,
    ) -> None:
        self.call_id, self.call, self.body, self.made_up = call_id, call, body, made_up
        self.waited = None

    def is_of(self, call: object) -> bool:
        """Whether this is LiteLLM's own object of it: what is found by an object's id is looked at first."""
        return (None if self.call is None else self.call()) is call

    def is_governed(self) -> bool:
        return self.body is None or is_governed(self.body[2])

    def is_open(self) -> bool:
        """Whether LiteLLM still has the call."""
        return self.call is not None and self.call() is not None


class Request:
    """What the estimates need to know of one request."""

    __slots__ = (
        "call_id",
        "called",
        "chars",
        "images",
        "messages",
        "output",
        "n",
        "no_output",
        "plain",
        "unworded",
        "deadline",
        "place",
        "attempt",
        "parent",
        "needs",
    )
    call_id: str
    called: Called
    chars: int
    images: int
    messages: int
    output: int | None
    n: int
    no_output: bool
    plain: bool  # its prompt is the text that was sent, and no more
    unworded: bool  # no text says what it takes: images, sounds, what no hook sees
    deadline: float | None
    place: int  # among those that wait; as long as there is a deadline
    attempt: Attempt | None
    parent: Request | None
    needs: dict[str, Needs]  # by the ids of the deployments that it may go to

    def __init__(self, called: Called, data: Data, messages: object) -> None:
        self.call_id, self.called = called.call_id, called
        _, sent, call_type = called.body or (None, {}, "")
        given = sent.copy()
        if goes_past_refusals(data):
            given.update(body_of(data))
        for name in ASKED:  # what the router was given, else what the client sent
            if name in data and data[name] is not None:
                given[name] = data[name]
        self.no_output = has_no_output(call_type)
        # For images and sounds LiteLLM chooses a deployment by a message of its own, which is nobody's.
        content = None if self.no_output and "messages" not in given else messages
        for name in CONTENT:
            content = content if content is not None else given.get(name)
        self.chars, self.images = size_of(content)
        self.messages = len(content) if isinstance(content, list) else 1
        self.output, self.n = None, 1
        self.plain = not self.no_output or "embedding" in call_type  # else there are images, sounds, pages
        prompts = prompts_in(content)
        stated: Iterable[tuple[str, Any]] = given.items()
        for name in CONFIGS:
            if name in given and isinstance(given[name], dict):
                stated = itertools.chain(stated, given[name].items())
        for name, value in stated:
            if name in OUTPUTS:
                self.output = max(self.output or 0, amount_of(value)) or None
            elif name in TIMES:
                self.n = max(self.n, amount_of(value))
            elif name in WORDS and value:
                chars, images = size_of(value)
                self.chars, self.images = self.chars + chars, self.images + images
                if name == "tools" and not all_own(value):
                    self.plain = False
        for body in (sent, data):
            if not UNSAID.isdisjoint(body) and any(map(body.get, UNSAID)):
                self.plain = False
        if isinstance(given.get("prompt"), dict):  # a stored one
            self.plain = False
        self.plain = self.plain and not self.images and self.chars < LIFTED
        self.unworded = content is None or (self.no_output and not self.plain)
        self.n = min(self.n * prompts, LIFTED)
        self.deadline = self.attempt = self.parent = None
        self.needs = {}

    def nested_in(self, outer: Request | None) -> None:
        """A call inside a call (LiteLLM's compaction). Nothing is to come of those around it that LiteLLM has
        dropped: a task that goes on and on would keep them all."""
        inner = self
        while outer is not None:
            if outer.called.is_open():
                inner.parent = outer
                inner = outer
            outer = outer.parent
        inner.parent = None

    def waited_before(self, last: Called | None) -> None:
        """LiteLLM retries a refusal if the request, its key or a retry policy says so (from 1.102 on). It has
        waited as long as it may."""
        if last is None or last.waited is None or last.call_id != self.call_id:
            return
        ids, deadline, place = last.waited
        if last.is_of(self.called.call and self.called.call()) and ids.issuperset(self.needs):
            self.deadline, self.place = deadline, place

    @property
    def overhead(self) -> int:
        return 3 + MESSAGE_TOKENS * self.messages + IMAGE_TOKENS * self.images


class Attempt:
    """One try of one request on one deployment: its charges, and how far it came."""

    __slots__ = (
        "call_id",
        "deployment",
        "model",
        "chars",
        "overhead",
        "n",
        "unworded",
        "charges",
        "reserved",
        "hooked",
        "stamped",
        "ended",
        "overdue",
        "kind",
        "call",
        "task",
    )
    call_id: str
    deployment: str
    model: str
    chars: int
    overhead: int
    n: int
    unworded: bool
    charges: list[tuple[Book, Charge]]
    reserved: float
    hooked: bool
    stamped: bool
    ended: bool
    overdue: bool  # nobody came for it: it is taken as sent, and holds no connection
    kind: tuple[str, str] | None  # call type and model
    call: weakref.ref[Any] | None  # LiteLLM's own object of this call: when it is gone, no event will come
    task: weakref.ref[Any] | None  # that reserved it

    def __init__(
        self, request: Request, deployment: str, model: str, charges: list[tuple[Book, Charge]], now: float
    ) -> None:
        self.call_id, self.deployment, self.model = request.call_id, deployment, model
        # Not the request itself: the two would hold each other until Python's collector runs.
        self.chars, self.overhead, self.n = request.chars, request.overhead, request.n
        self.unworded = request.unworded
        if not request.plain:
            self.chars = 0  # what it uses tells nothing of how many tokens a character is
        self.charges, self.reserved = charges, now
        self.hooked = self.stamped = self.ended = self.overdue = False
        self.kind, self.call = None, request.called.call
        self.task = weakly(this_task())

    def is_of(self, data: Mapping[str, Any]) -> bool:
        """Whether these arguments of a hook, with the same call id, are of the same call."""
        call = self.call and self.call()
        return call is None or same_call(call, data)

    def runs(self) -> bool:
        """Whether another task than this one is still about it."""
        task = None if self.task is None else self.task()
        return task is not None and task is not this_task() and not task.done()

    def forgotten(self) -> bool:
        """Whether LiteLLM has dropped the call without a word: a client that left."""
        return self.call is not None and self.call() is None


class PerTask:
    """What belongs to the asyncio task that runs. Nothing in it may lead to an object of LiteLLM's: the error
    of a call may hold the task (asyncio.timeout), which then would never go. Not a ContextVar: CPython before
    3.12 can crash when one more of those is set (in hamt_node_bitmap_assoc; seen on 3.11.7 under load)."""

    def __init__(self) -> None:
        self.by_task: weakref.WeakKeyDictionary[asyncio.Task[Any], Any] = weakref.WeakKeyDictionary()

    def get(self) -> Any:
        task = this_task()
        return None if task is None else self.by_task.get(task)

    def request(self) -> Request | None:
        found = self.get()
        return found if isinstance(found, Request) else None

    def set(self, value: object) -> None:
        task = this_task()
        if task is not None:
            self.by_task[task] = value


_request = PerTask()  # the Request, set by the filter
_called = PerTask()  # the Called of a request that the filter left alone: a fallback may skip the filter
# In its place when the filter failed, or when no model works in this call: it goes LiteLLM's own way, past
# the check, too.
UNREAD = object()
# Set at the proxy's door only where LiteLLM will skip the filter. Weakly (Calls.keep): tasks that begin in a
# request have its context for as long as they run.
_unfiltered: contextvars.ContextVar[Callable[[], Called | None]] = contextvars.ContextVar(
    "tokenbudget_unfiltered", default=lambda: None
)


def model_id(deployment: Deployment) -> str:
    return str((deployment.get("model_info") or {}).get("id"))


def call_key(data: Mapping[str, Any]) -> object:
    """LiteLLM's own object of the call, or its id where there is none."""
    call = data.get("litellm_logging_obj")
    return data.get("litellm_call_id") if call is None else id(call)


def this_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in no event loop
        return None


def prompts_in(content: object) -> int:
    """How many prompts a text completion has, each of which is answered: a list of texts, or of lists of
    token ids, which the router gets as the content of one message (Router.atext_completion)."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("content")
    several = isinstance(content, list) and bool(content) and isinstance(content[0], (str, list))
    return len(content) if isinstance(content, list) and several else 1


def weakly(value: object) -> weakref.ref[Any] | None:
    try:
        return None if value is None else weakref.ref(value)
    except TypeError:  # of a type that can't
        return None
