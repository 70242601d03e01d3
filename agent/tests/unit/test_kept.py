"""What the agent keeps of calls: nothing of LiteLLM's own, and nothing for ever."""

import asyncio
import contextvars
import gc

import pytest
from support.calls import DEPLOYMENT, MESSAGES, Logging, attempt, spent


async def timed_out(tb, agent, way, call, data):
    """A request whose provider does not let it connect in time. LiteLLM keeps the error with the call."""
    hooks = tb.Hooks(agent)
    await hooks.async_pre_call_hook(None, None, data, "acompletion")
    if way == "filter":
        await hooks.async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, {**data})
    if way != "refused before it is routed":
        await hooks.async_pre_call_check(DEPLOYMENT, None)
    try:
        async with asyncio.timeout(0):
            await asyncio.sleep(5)
    except TimeoutError as error:  # a frame of its traceback is asyncio.Timeout's, which has the task
        call.model_call_details["exception"] = RuntimeError("APITimeoutError")
        call.model_call_details["exception"].__cause__ = error
    return contextvars.copy_context()


def request_of(call, **more):
    data = {"litellm_call_id": "a", "litellm_logging_obj": call, "messages": MESSAGES, "max_tokens": 100}
    return {**data, **more}


@pytest.mark.parametrize("way", ["filter", "by the id of a deployment", "refused before it is routed"])
@pytest.mark.parametrize("governed", [True, False])
def test_a_connection_that_times_out_keeps_no_task(tb, agent, monkeypatch, way, governed):
    if not governed:
        monkeypatch.setattr(agent.adapter, "books_of", lambda deployment: [])
    gc.collect()
    before = len(tb._request.by_task), len(tb._called.by_task)
    model = "d1" if way.startswith("by") else "gpt"
    call = Logging("a")
    asyncio.run(timed_out(tb, agent, way, call, request_of(call, model=model)))
    del call
    gc.collect()
    assert (len(tb._request.by_task), len(tb._called.by_task)) == before
    agent.sweep(agent.clock.boot())
    assert not agent.attempts
    assert not agent.calls.by_object


def test_what_begins_in_a_request_and_goes_on_keeps_nothing_of_it(tb, agent):
    """A task has a copy of the context in which it was made."""
    call = Logging("a")
    context = asyncio.run(timed_out(tb, agent, "by its id", call, request_of(call, model="d1")))
    assert context[tb._unfiltered]().body[1]["max_tokens"] == 100
    call.model_call_details.clear()
    del call
    assert context[tb._unfiltered]() is None


def test_only_what_counts_of_a_request_is_kept_from_the_door_on(tb, agent):
    call = Logging("a")
    agent.at_the_door(request_of(call, user="me", metadata={}), "acompletion")
    (came,) = agent.calls.bodies.values()
    assert came.body[1] == {"messages": MESSAGES, "max_tokens": 100}


def test_an_id_that_comes_again_is_not_the_same_call(tb, agent):
    """Of an object that came to the door, and was gone before the router was asked."""
    gone, other = Logging("a"), Logging("b")
    agent.at_the_door(request_of(gone), "acompletion")
    agent.calls.bodies = {id(other): agent.calls.bodies.pop(id(gone))}
    del gone
    assert agent.called({"litellm_call_id": "b", "litellm_logging_obj": other}).body is None
    agent.clock.now += 31
    agent.sweep(agent.clock.now)
    assert not agent.calls.bodies


def test_a_long_task_keeps_only_the_requests_that_are_open(tb, agent):
    """Of each the filter is asked, and no check follows."""

    async def goes_on():
        for number in range(50):
            call = Logging(str(number))
            kwargs = {"litellm_call_id": str(number), "litellm_logging_obj": call}
            await tb.Hooks(agent).async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)
        request, chain = tb._request.request(), []
        while request is not None:
            chain.append(request)
            request = request.parent
        return chain

    assert len(asyncio.run(goes_on())) <= 2


def test_a_call_inside_a_call_leaves_the_outer_one_its_own_check(tb, agent):
    async def outer():
        hooks, call = tb.Hooks(agent), Logging("outer")
        kwargs = {"litellm_call_id": "outer", "litellm_logging_obj": call, "max_tokens": 1000}
        await hooks.async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)
        await attempt(tb, agent, "inner", 10, litellm_logging_obj=Logging("inner"))
        await hooks.async_pre_call_check(DEPLOYMENT, None)
        return call, sorted(agent.attempts)

    _, open_ = asyncio.run(outer())
    assert open_ == ["inner", "outer"]
    assert spent(agent) == {"tokens": 1000 + 19 + 10 + 19, "requests": 2}


def test_the_models_that_are_known_to_be_stamped_are_so_many_at_most(tb, agent, give):
    for book in agent.adapter.books_of(None):
        book.budget = 10**9
        give(book, 10**8)
    for number in range(tb.MOST_STAMPS + 5):  # of a wildcard, a client names them
        wild = {**DEPLOYMENT, "litellm_params": {"model": f"openai/made-up-{number}"}}
        asyncio.run(attempt(tb, agent, str(number), 10, [wild]))
    assert len(agent.stamps_known) == 5


@pytest.mark.parametrize("ends", ["by LiteLLM's word", "without a word"])
def test_what_was_refused_between_the_door_and_the_router_is_not_kept(tb, agent, ends):
    """By LiteLLM's own limits of keys, or a guardrail: with bodies of 1 MB it is much."""

    async def refused(data):
        hooks = tb.Hooks(agent)
        await hooks.async_pre_call_hook(None, None, data, "acompletion")
        assert len(agent.calls.bodies) == 1
        if ends == "by LiteLLM's word":
            del data["litellm_logging_obj"]
            await hooks.async_post_call_failure_hook(data, RuntimeError("over the limit of its key"), None)
            assert not agent.calls.bodies

    call = Logging("a")
    asyncio.run(refused(request_of(call, model="gpt")))
    del call
    gc.collect()
    assert not agent.calls.bodies
    assert not agent.calls.by_object


def test_of_a_call_that_passes_the_router_by_nothing_is_kept(tb, agent):
    call = Logging("a")
    data = request_of(call, model="gpt")
    asyncio.run(tb.Hooks(agent).async_pre_call_hook(None, None, data, "pass_through_endpoint"))
    assert not agent.calls.bodies
    assert call
