"""Calls of LiteLLM that are more than one try at one provider, or less: sent twice, shared, never sent."""

import asyncio

import pytest
from support.calls import DEPLOYMENT, MESSAGES, Logging, attempt, books, done, reserve, spent
from support.fake_operator import limit, policy

OTHER = {**DEPLOYMENT, "model_info": {"id": "d2"}}


def error(name="APIError", status=None):
    made = type(name, (Exception,), {})("failed")
    if status is not None:
        made.status_code = status
    return made


def test_litellm_tells_of_calls_that_ask_for_no_log(tb):
    """Logging.should_run_callback; the real thing: test_leak.py."""
    assert "_PROXY_" in tb.Hooks.__name__


def test_a_final_failure_is_told_without_litellms_object(tb, agent):
    """ProxyLogging.post_call_failure_hook takes it out of what came to the door."""

    async def fails():
        hooks, call = tb.Hooks(agent), Logging("a")
        data = {"litellm_call_id": "a", "max_tokens": 1000, "litellm_logging_obj": call}
        await hooks.async_pre_call_hook(None, None, data, "acompletion")
        await attempt(tb, agent, "a", 1000, litellm_logging_obj=call)
        assert len(agent.attempts) == 1
        del data["litellm_logging_obj"]
        await hooks.async_post_call_failure_hook(data, error(status=429), None)
        assert not agent.attempts
        await hooks.async_post_call_failure_hook({**data}, error(status=429), None)
        return call

    call = asyncio.run(fails())
    assert spent(agent) == {"tokens": 0, "requests": 1}
    assert agent.calls.by_data
    del call
    assert not agent.calls.by_data, "what came to the door goes with the call"
    assert not agent.calls.by_object


def test_a_final_failure_leaves_what_still_runs_alone(tb, agent):
    async def both():
        call, sent = Logging("a"), asyncio.Event()

        async def runs():
            await attempt(tb, agent, "a", 1000, litellm_logging_obj=call)
            await sent.wait()

        task = asyncio.ensure_future(runs())
        while not agent.attempts:  # noqa: ASYNC110
            await asyncio.sleep(0)
        data = {"litellm_call_id": "a", "litellm_logging_obj": call}
        await tb.Hooks(agent).async_post_call_failure_hook(data, error(status=429), None)
        assert agent.attempts
        sent.set()
        await task
        await tb.Hooks(agent).async_post_call_failure_hook(data, error(status=429), None)
        assert not agent.attempts

    asyncio.run(both())


def test_a_failure_event_that_names_no_deployment_ends_the_attempt(tb, agent):
    """/v1/responses and /v1/messages of LiteLLM 1.82."""
    asyncio.run(attempt(tb, agent, "a", 1000))
    details = {"litellm_call_id": "a", "exception": error(status=429), "litellm_params": {}}
    asyncio.run(tb.Hooks(agent).async_log_failure_event(details, None, None, None))
    assert not agent.attempts
    assert spent(agent)["tokens"] == 0


def test_the_failure_of_one_of_two_that_share_a_call_is_its_own(tb, agent):
    """`"model": "a,b"`: Router.abatch_completion. LiteLLM's arguments name the deployment that was last."""

    async def together():
        call = Logging("a")
        details = call.model_call_details
        ready = asyncio.Event()

        async def fails():
            await attempt(tb, agent, "a", 1000, litellm_logging_obj=call)
            await ready.wait()
            refused = error(status=429)
            await tb.Hooks(agent).async_post_call_failure_deployment_hook(
                {"litellm_call_id": "a", "litellm_logging_obj": call}, refused, None
            )
            details["exception"] = refused
            await tb.Hooks(agent).async_log_failure_event(details, None, None, None)

        async def answers():
            await attempt(tb, agent, "a", 5000, (OTHER,), litellm_logging_obj=call)
            details["litellm_params"] = {"model_info": {"id": "d2"}}
            ready.set()

        await asyncio.gather(fails(), answers())
        (left,) = agent.attempts["a"]
        return call, left

    call, left = asyncio.run(together())
    assert left.deployment == "d2"
    assert spent(agent)["tokens"] == 5000 + 19
    assert call


@pytest.mark.parametrize("status", [400, 429])
def test_a_guardrails_error_says_nothing_of_a_call_that_left(tb, agent, status):
    asyncio.run(attempt(tb, agent, "a", 1000))
    of_the_proxy = error("HTTPException", status)
    details = {"litellm_call_id": "a", "exception": of_the_proxy}
    asyncio.run(tb.Hooks(agent).async_log_failure_event(details, None, None, None))
    asyncio.run(tb.Hooks(agent).async_post_call_failure_hook({"litellm_call_id": "a"}, of_the_proxy, None))
    assert agent.attempts
    done(tb, agent, "a", 70)
    assert spent(agent)["tokens"] == 70


def test_a_call_that_is_sent_again_after_its_answer_is_charged_again(tb, agent):
    """LiteLLM's MCP tools: mcp/chat_completions_handler.py."""

    async def twice():
        call = Logging("a")
        await attempt(tb, agent, "a", 1000, litellm_logging_obj=call)
        details = call.model_call_details
        details["standard_logging_object"] = {"total_tokens": 70, "model_id": "d1"}
        hooks = tb.Hooks(agent)
        hooks.log_pre_api_call("gpt", MESSAGES, details)
        assert spent(agent)["requests"] == 1, "the client library's own retry"
        await hooks.async_log_success_event(details, None, None, None)
        assert spent(agent) == {"tokens": 70, "requests": 1}
        hooks.log_pre_api_call("gpt", MESSAGES, details)
        return call

    call = asyncio.run(twice())
    assert spent(agent) == {"tokens": 140, "requests": 2}
    assert agent.attempts
    del call
    agent.sweep(agent.clock.boot())
    assert not agent.attempts
    assert not agent.calls.answered
    assert spent(agent) == {"tokens": 140, "requests": 2}


def test_an_event_of_no_call_that_leaves_stamps_nothing(tb, agent):
    async def refused_by_the_proxy():
        hooks = tb.Hooks(agent)
        kwargs = {"litellm_call_id": "a", "max_tokens": 100}
        await reserve(hooks, kwargs)
        hooks.log_pre_api_call("gpt", MESSAGES, {**kwargs, "litellm_no_upstream_llm_call": True})

    asyncio.run(refused_by_the_proxy())
    assert not agent.attempts["a"][0].stamped


def test_one_models_stamps_say_nothing_of_another(tb, agent):
    """A custom provider passes no log_pre_api_call."""
    asyncio.run(attempt(tb, agent, "a", 1000))
    done(tb, agent, "a", 10)
    custom = {**DEPLOYMENT, "litellm_params": {"model": "custom/gpt"}}

    async def unstamped():
        hooks = tb.Hooks(agent)
        kwargs = {"litellm_call_id": "b", "max_tokens": 1000}
        await reserve(hooks, kwargs, [custom])
        await hooks.async_pre_call_deployment_hook(kwargs, "acompletion")
        await hooks.async_post_call_failure_deployment_hook(kwargs, error(status=500), None)

    asyncio.run(unstamped())
    assert spent(agent) == {"tokens": 10 + 1000 + 19, "requests": 2}


def test_calls_that_may_wait_for_a_connection_stay_in_the_window_until_they_end(tb, agent, clock):
    agent.connections = 2
    for call_id in "abc":
        asyncio.run(attempt(tb, agent, call_id, 100))
    clock.now += 70
    for book in books(agent).values():
        book.advance(clock.boot(), clock.wall())
    assert spent(agent)["requests"] == 1, "those that had a connection for sure have left the window"
    done(tb, agent, "c", 50)
    assert spent(agent) == {"tokens": 50, "requests": 1}
    clock.now += 61.5
    for book in books(agent).values():
        book.advance(clock.boot(), clock.wall())
    assert spent(agent) == {"tokens": 0, "requests": 0}


@pytest.mark.parametrize(
    ("prompt", "times"),
    [(["one", "two", "three"], 3), ([[1, 2], [3, 4]], 2), ([1, 2, 3], 1), ("one", 1), (["one"], 1)],
)
def test_each_prompt_of_a_list_is_answered(tb, prompt, times):
    """Router.atext_completion hands them on as the content of one message."""
    for messages, data in (([{"role": "user", "content": prompt}], {}), (None, {"prompt": prompt})):
        request = tb.Request(tb.Called("a"), {"max_tokens": 500, "n": 2, **data}, messages)
        assert (request.n, request.output) == (2 * times, 500)


def test_what_a_message_is_made_of_is_no_list_of_prompts(tb):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert tb.Request(tb.Called("a"), {}, [{"role": "user", "content": parts}]).n == 1


def test_nothing_comes_while_the_ledger_is_away(tb, agent, clock, give):
    book = books(agent)["tokens"]
    give(book, 0, share=15000, pool=0)
    assert book.retry_after(500, clock.boot(), clock.wall()) == 1, "first in line"
    give(book, 0, share=15000, pool=0, state="learning")
    assert book.retry_after(500, clock.boot(), clock.wall()) == 60
    give(book, 0, share=15000, pool=0)
    clock.now += 40
    assert book.retry_after(500, clock.boot(), clock.wall()) == 60


def test_a_process_that_was_never_answered_says_when_it_is_on_its_own(tb, clock):
    book = tb.Book("gpt", "tokens", 60000, 15000, 30.0, clock.boot())
    clock.now += 75
    assert book.retry_after(500, clock.boot(), clock.wall()) == 20


def test_what_waits_goes_on_when_its_tokenbudget_is_detached(tb, agent):
    (governor,) = agent.governors.values()
    governor.max_wait = 30.0
    ledger = tb.Ledger(agent)

    async def waits():
        kwargs = {"litellm_call_id": "a", "max_tokens": 40_000}
        filtering = asyncio.ensure_future(
            tb.Hooks(agent).async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)
        )
        while not agent.waiting.waiters:  # noqa: ASYNC110
            await asyncio.sleep(0)
        ledger.new_policy(governor, {"mode": "Detached", "version": "detached"})
        return await asyncio.wait_for(filtering, 5)

    assert asyncio.run(waits()) == [DEPLOYMENT]


def test_a_policy_that_cannot_be_read_changes_nothing(tb, agent):
    (governor,) = agent.governors.values()
    before = (governor.policy, governor.limits, governor.mode, governor.books)
    broken = policy([limit(), {"name": "other", "tokens": {"safe": 1}}], mode="Observe")
    with pytest.raises(KeyError):
        governor.update(broken, 0.0)
    assert (governor.policy, governor.limits, governor.mode, governor.books) == before


def test_a_call_with_the_clients_own_key_is_settled(tb, agent):
    """Router._handle_clientside_credential makes a deployment of its own of it."""
    asyncio.run(attempt(tb, agent, "a", 1000))
    info = {"id": "x", "original_model_id": "d1"}
    details = {"standard_logging_object": {"total_tokens": 70, "model_id": "x"}}
    done(tb, agent, "a", 70, litellm_params={"metadata": {"model_info": info}}, **details)
    assert not agent.attempts
    assert spent(agent)["tokens"] == 70


@pytest.mark.parametrize("where", ["filter", "check", "deployment hook"])
def test_a_mode_that_changes_while_a_call_is_refused_lets_nothing_pass_uncharged(tb, agent, clock, where):
    """A policy comes in the ledger's thread."""
    (governor,) = agent.governors.values()

    def full(*args):
        governor.mode = "Observe"
        return False

    async def ask():
        hooks, kwargs = tb.Hooks(agent), {"litellm_call_id": "a", "max_tokens": 1000}
        if where != "filter":
            await hooks.async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)
        if where == "deployment hook":
            await hooks.async_pre_call_check(DEPLOYMENT, None)
            clock.now += 10
        agent.fits = full
        if where == "filter":
            await hooks.async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)
        elif where == "check":
            await hooks.async_pre_call_check(DEPLOYMENT, None)
        else:
            task = asyncio.ensure_future(hooks.async_pre_call_deployment_hook(kwargs, "acompletion"))
            await asyncio.sleep(0.01)
            clock.now += 10
            await task

    with pytest.raises(tb.Refused):
        asyncio.run(ask())
    assert not agent.faults
    assert spent(agent) == {"tokens": 0, "requests": 0}
