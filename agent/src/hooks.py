"""What LiteLLM calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from .agent import Agent
from .book import within_reason
from .calls import adopt
from .constants import LATE_WAIT, LIFTED, MOST_STAMPS, STALE_CHECK
from .estimates import goes_past_refusals, is_governed
from .narrowing import unordered
from .refusal import Refused, RefusedLate
from .request import UNREAD, Called, Request, _called, _request, _unfiltered, model_id, weakly
from .shapes import Data, Deployment, Needs
from .start import restart_after_fork
from .told import (
    is_health_check,
    is_of_an_earlier_attempt,
    original_id,
    stream_began,
    tokens_of_passed,
)

try:
    from litellm.integrations.custom_logger import CustomLogger
except Exception:  # as where redis is imported
    CustomLogger = object

PASSED_THROUGH = "pass_through_endpoint"
BATCHES = ("acreate_batch", "create_batch")
# Marks the call of log_pre_api_call that LiteLLM makes for errors of the proxy's own (from 1.92 on).
NOT_SENT = "litellm_no_upstream_llm_call"
# What Router.deployment_callback_on_success leaves out.
NOT_COUNTED = ("_aresponses_websocket", "_arealtime")


class Hooks(CustomLogger):  # type: ignore[misc]
    """What LiteLLM calls, in this order for each attempt; a fault falls through to LiteLLM's own
    behaviour."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: Data, call_type: Any, **_: Any
    ) -> None:
        """At the proxy's door: the only hook that sees an embedding's input before the router."""
        try:
            self.came(data, str(getattr(call_type, "value", call_type)))
        except Exception as error:
            self.agent.fault("pre-call hook", error)

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Deployment],
        messages: Any,
        request_kwargs: Data | None = None,
        parent_otel_span: Any = None,
        **_: Any,
    ) -> list[Deployment]:
        try:
            return await self.filter(model, healthy_deployments, messages, request_kwargs or {})
        except Refused:
            raise
        except Exception as error:
            _request.set(UNREAD)
            self.agent.fault("filter", error)
            return healthy_deployments

    async def async_pre_call_check(
        self, deployment: Deployment, parent_otel_span: Any = None, **_: Any
    ) -> None:
        try:
            await self.check(deployment)
        except Refused:
            raise
        except Exception as error:
            self.agent.fault("check", error)

    async def async_pre_call_deployment_hook(self, kwargs: Data, call_type: Any, **_: Any) -> None:
        try:
            await self.before_call(kwargs, str(getattr(call_type, "value", call_type)))
        except Refused:
            raise
        except Exception as error:
            self.agent.fault("deployment hook", error)

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Data, **_: Any) -> None:
        """The last hook before the call leaves; LiteLLM swallows exceptions here, some providers call it in a
        thread."""
        try:
            if kwargs.get("call_type") == PASSED_THROUGH:
                return self.agent.went_past("passthrough", requests=1)
            if kwargs.get(NOT_SENT):
                return None
            attempt = self.agent.open_attempt(kwargs)
            if attempt is not None:
                self.agent.stamp(attempt, self.agent.clock.boot())
                known = self.agent.stamps_known
                if attempt.kind and attempt.kind not in known:
                    if len(known) >= MOST_STAMPS:
                        known.clear()
                    known.add(attempt.kind)
            elif not self.agent.sent_again(kwargs) and is_health_check(kwargs):
                self.agent.went_past("other", requests=1)
        except Exception as error:
            self.agent.stamps_known.clear()  # what has no stamp may have left all the same
            self.agent.fault("stamp", error)
        return None

    async def async_log_success_event(
        self, kwargs: Data, response_obj: Any, start_time: Any, end_time: Any, **_: Any
    ) -> None:
        try:
            self.success(kwargs, response_obj)
        except Exception as error:
            self.agent.fault("success event", error)

    async def async_log_failure_event(
        self, kwargs: Data, response_obj: Any, start_time: Any, end_time: Any, **_: Any
    ) -> None:
        try:
            info = (kwargs.get("litellm_params") or {}).get("model_info") or {}
            found = info.get("id")
            attempt = self.agent.open_attempt(kwargs, None if found is None else str(found))
            error = kwargs.get("exception")
            if attempt is not None and error is not None and not isinstance(error, Refused):
                self.agent.failed(attempt, error, stream_began(kwargs))
        except Exception as error:
            self.agent.fault("failure event", error)

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: Any,
        fallback_depth: int | None = None,
        **_: Any,
    ) -> None:
        """Once for each failed attempt (newer LiteLLM versions)."""
        try:
            attempt = self.agent.open_attempt(request_data)
            if attempt is not None:
                self.agent.failed(attempt, exception, stream_began(request_data))
        except Exception as error:
            self.agent.fault("failure hook", error)

    async def async_post_call_failure_hook(
        self,
        request_data: Data,
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
        **_: Any,
    ) -> None:
        """The request has finally failed: nothing of it stays reserved. An attempt whose task still runs is
        left alone: LiteLLM before 1.92 does not cancel the call when a guardrail beside it fails."""
        try:
            data = self.agent.calls.with_call(request_data)
            self.agent.calls.take(data)
            still = [a for a in self.agent.open_attempts(data) if not a.runs()]
            for attempt in still:  # what it failed with is what became of the last attempt
                last = attempt is still[-1] and not isinstance(original_exception, Refused)
                what = original_exception if last else None
                self.agent.failed(attempt, what, stream_began(data))
        except Exception as error:
            self.agent.fault("final failure hook", error)

    # -- what they do

    def came(self, data: Data, call_type: str) -> None:
        """The check may be the next that is asked, in another task."""
        agent, call = self.agent, data.get("litellm_logging_obj")
        if is_governed(call_type):
            agent.at_the_door(data, call_type)
            if not agent.adapter.skips_filter(data.get("model")):
                return
            called = agent.called(data)
        else:
            called = Called(data.get("litellm_call_id") or "", weakly(call), (0.0, {}, call_type))
        _unfiltered.set(agent.calls.keep(call, called))

    async def filter(
        self, model: str, deployments: list[Deployment], messages: Any, kwargs: Data
    ) -> list[Deployment]:
        agent = self.agent
        if not agent.governors or not isinstance(deployments, list) or not deployments:
            return deployments
        if not kwargs:  # of no request: LiteLLM wants to count tokens with what a deployment has for it
            return deployments
        if agent.pid != os.getpid():
            restart_after_fork()
        previous = _request.request()
        called = agent.called(kwargs, previous.called if previous else _unfiltered.get()() or _called.get())
        if not called.is_governed():
            _called.set(called)
            _request.set(UNREAD)
            return deployments
        again = previous is not None and previous.call_id == called.call_id
        tried = previous.attempt if previous else None
        if again and tried is not None:  # this is the next attempt of the same request
            if not tried.stamped and agent.never_left(tried):
                agent.end(tried, never_sent=True)
        governed = [(d, agent.adapter.books_of(d)) for d in deployments]
        if not any(books for _, books in governed):
            _called.set(called)
            return deployments
        request = Request(called, kwargs, messages)
        if not kwargs.get("litellm_call_id"):  # LiteLLM hands these on, and makes an id only later
            kwargs["litellm_call_id"] = called.call_id
        if previous is not None and not again and tried is None:
            request.nested_in(previous)
        every = asked = [(d, agent.needs(request, d, books)) for d, books in governed]
        request.needs = {model_id(d): needs for d, needs in every}
        request.waited_before(_called.get())
        narrowed = False
        while True:
            boot, wall = agent.clock.boot(), agent.clock.wall()
            agent.tick(boot)
            with agent.lock:
                fitting = [(d, needs) for d, needs in asked if agent.admits(request, needs, boot, wall)]
            if len(fitting) < len(asked) and not narrowed:  # a tier is not left for want of room
                narrowed = True
                left = await agent.adapter.narrowing.eligible(model, called, deployments, messages, kwargs)
                if left is None:
                    fitting = asked
                elif left is not deployments:
                    eligible = set(map(model_id, left))
                    asked = [(d, needs) for d, needs in asked if model_id(d) in eligible]
                    continue
            if fitting:
                break
            held = [agent.held(needs, boot, wall) for _, needs in asked]
            wanting = [n for n in held if all(amount <= book.budget for book, amount in n)]
            if not wanting or not await agent.waiting.for_room(wanting, request):
                if goes_past_refusals(kwargs):  # the check refuses it
                    fitting = asked
                    break
                raise self.refused(request, held)
        if len(fitting) < len(every):
            may, kept = ({id(d) for d, _ in some} for some in (asked, fitting))
            # Another one takes this request; the ledger may still have room for those that were dropped.
            agent.waiting.ask([needs for d, needs in asked if id(d) not in kept])
            # What LiteLLM leaves out itself it may look at (`allow_fail_open`), but not take for the lowest
            # `order` (1.82.6).
            fitting = [
                (d if id(d) in may else unordered(d), needs)
                for d, needs in every
                if id(d) in kept or id(d) not in may
            ]
        _request.set(request)
        if agent.failing("check"):  # nothing is reserved: LiteLLM enforces the share
            return [d for d, _ in fitting]
        return [self.lifted(d, needs, boot, wall) for d, needs in fitting]

    def refused(self, request: Request, held: list[Needs], kind: type[Refused] = Refused) -> Refused:
        if request.deadline is not None:
            request.called.waited = (frozenset(request.needs), request.deadline, request.place)
        _called.set(request.called)  # with what the client sent: a fallback may follow
        return self.agent.refusal(request.called, held, kind)

    def lifted(self, deployment: Deployment, needs: Needs, boot: float, wall: float) -> Deployment:
        """A copy for this request only, whose own limit LiteLLM will not reach. LiteLLM counts by calendar
        minute and when a call ends, so with long calls, or after the grant moved, it would refuse what the
        ring admits."""
        copy = None
        for book, _ in needs:
            if book.governor.acting(boot, wall) == "enforce":
                copy = copy or dict(deployment)
                copy["tpm" if book.unit == "tokens" else "rpm"] = LIFTED
        return copy or deployment

    async def check(self, deployment: Deployment) -> None:
        """Reserves on the deployment that was picked."""
        agent = self.agent
        request = _request.get()
        if not agent.governors or not isinstance(deployment, dict) or request is UNREAD:
            return
        key = model_id(deployment)
        while request is not None and (request.attempt is not None or key not in request.needs):
            request = request.parent
        if request is None:  # the filter was skipped: the client named the deployment, or another strategy
            books = agent.adapter.books_of(deployment)
            if not books:
                return
            previous = _request.request()
            called = _unfiltered.get()() or (previous.called if previous else _called.get())
            if called is not None and not called.is_governed():
                return
            request = Request(called or agent.called({}), {}, None)
            request.needs = {key: agent.needs(request, deployment, books)}
            _request.set(request)
        needs = request.needs[key]
        if not needs:
            return
        while agent.reserve(request, deployment, needs) is None:
            held = agent.held(needs, agent.clock.boot(), agent.clock.wall())
            never = any(amount > book.budget for book, amount in held)
            if never or not await agent.waiting.for_room([held], request):
                raise self.refused(request, [held], RefusedLate)

    async def before_call(self, kwargs: Data, call_type: str) -> None:
        """Admits again what was reserved too long ago: the process may have been frozen in between."""
        agent = self.agent
        attempt = agent.open_attempt(kwargs)
        if attempt is None:
            with agent.lock:
                attempt = adopt(agent.attempts, kwargs.get("litellm_call_id"))
        if attempt is None or attempt.stamped:
            return
        if not attempt.hooked and not is_governed(call_type):
            return agent.end(attempt, never_sent=True)
        attempt.hooked, attempt.kind = True, (call_type, attempt.model)
        attempt.call = weakly(kwargs.get("litellm_logging_obj")) or attempt.call
        boot, wall = agent.clock.boot(), agent.clock.wall()
        if boot - attempt.reserved <= STALE_CHECK or not attempt.charges:
            return
        needs = [(book, charge.amount) for book, charge in attempt.charges]
        until = boot + LATE_WAIT
        while True:
            with agent.lock:
                if agent.fits([(book, 0) for book, _ in needs], boot, wall):  # its own charge is in `spent`
                    return
            if boot >= until:
                held = agent.held(needs, boot, wall)
                agent.end(attempt, never_sent=True)
                raise agent.refusal(attempt, [held], RefusedLate)
            agent.draw()
            await asyncio.sleep(0.1)
            boot, wall = agent.clock.boot(), agent.clock.wall()
            agent.tick(boot)

    def success(self, kwargs: Data, response: Any) -> None:
        agent = self.agent
        logged = kwargs.get("standard_logging_object") or {}
        call_type = kwargs.get("call_type")
        if call_type == PASSED_THROUGH:
            return agent.went_past("passthrough", tokens=tokens_of_passed(kwargs, logged))
        if call_type in BATCHES:
            agent.went_past("batch", requests=1)
        deployment = logged.get("model_id") or (
            (kwargs.get("litellm_params") or {}).get("model_info") or {}
        ).get("id")
        books = agent.adapter.matched.get(str(deployment))
        if books and call_type not in NOT_COUNTED:
            agent.count(books, within_reason(logged.get("total_tokens") or 0))
        if not is_governed(call_type or ""):
            return None  # what it used is told of a call that was settled before
        # A fallback's usage is not that of another deployment's attempt.
        attempt = agent.open_attempt(kwargs, str(deployment) if deployment else None, copied=True)
        if attempt is None:
            attempt = agent.open_attempt(kwargs, original_id(kwargs), copied=True)
        if attempt is None:
            if is_health_check(kwargs):
                agent.went_past("other", tokens=within_reason(logged.get("total_tokens") or 0))
            return None
        if kwargs.get("cache_hit") is True:
            return agent.end(attempt, never_sent=True)  # answered from LiteLLM's cache
        total = 0 if is_of_an_earlier_attempt(kwargs) else within_reason(logged.get("total_tokens") or 0)
        reported = total > 0 and agent.adapter.was_reported(kwargs)
        if reported:
            agent.end(attempt, total=total)
        else:  # LiteLLM's own count of what was streamed: the charge stays as it was reserved, or grows
            agent.end(attempt, least=total)
        agent.answer(attempt)
        if reported:
            prompt, output = logged.get("prompt_tokens") or 0, logged.get("completion_tokens") or 0
            agent.estimates.learn(attempt, prompt, output)


# LiteLLM tells a callback whose class is named so of every call, others not of those whose client asks for
# `no-log` (Logging.should_run_callback); their usage has to be counted, too.
Hooks.__name__ = "_PROXY_TokenBudgetHooks"
