"""Which request, and which attempt of it, an event is of: what one call used never ends another's charge."""

import asyncio
import gc
from types import SimpleNamespace

import pytest
from support.calls import DEPLOYMENT, MESSAGES, Logging, attempt, books, done, reserve, spent
from support.fake_operator import limit, policy

OTHER = {**DEPLOYMENT, "model_info": {"id": "d2"}}


@pytest.fixture
def calls():
    return Logging("same"), Logging("same")


def begun(tb, agent, calls):
    """Two requests whose client chose one call id."""
    for call, amount in zip(calls, (1000, 5000)):
        asyncio.run(attempt(tb, agent, "same", amount, litellm_logging_obj=call))


def test_a_final_failure_ends_only_its_own_attempts(tb, agent, calls):
    begun(tb, agent, calls)
    before = spent(agent)
    data = {"litellm_call_id": "same", "litellm_logging_obj": calls[0]}
    refused = RuntimeError("quota")
    refused.status_code = 429
    asyncio.run(tb.Hooks(agent).async_post_call_failure_hook(data, refused, None))
    assert before["tokens"] - spent(agent)["tokens"] == 1000 + 19
    (left,) = agent.attempts["same"]
    assert left.call() is calls[1]
    asyncio.run(tb.Hooks(agent).async_post_call_failure_hook(data, refused, None))
    assert agent.attempts["same"] == [left], "the other goes on"


def test_the_events_of_a_call_are_told_by_its_details(tb, agent, calls):
    begun(tb, agent, calls)
    (first, second) = agent.attempts["same"]
    details = calls[0].model_call_details
    details["standard_logging_object"] = {"total_tokens": 7, "model_id": "d1"}
    asyncio.run(tb.Hooks(agent).async_log_success_event(details, None, None, None))
    assert (first.ended, second.ended) == (True, False)
    details["exception"], details["litellm_params"] = RuntimeError("500"), {"model_info": {"id": "d1"}}
    asyncio.run(tb.Hooks(agent).async_log_failure_event(details, None, None, None))
    assert not second.ended


def refused(tb, agent, call):
    with pytest.raises(tb.Refused):
        asyncio.run(attempt(tb, agent, "same", 1000, litellm_logging_obj=call))


def test_refusals_of_requests_with_one_id_are_each_demand(tb, agent, give):
    """A client that sends its session's id as x-litellm-call-id."""
    give(books(agent)["tokens"], 500)
    denied, need = books(agent)["tokens"].denied, 1000 + 19
    calls = [Logging("same"), Logging("same")]
    for call in (*calls, *calls):
        refused(tb, agent, call)
    assert denied.total == 2 * need
    give(books(agent)["tokens"], 1500)
    asyncio.run(attempt(tb, agent, "same", 1000, litellm_logging_obj=calls.pop()))
    assert denied.total == need, "the other one still waits"
    done(tb, agent, "same", 10)


def test_a_request_after_another_is_another_though_python_gives_its_object_the_same_place(tb, agent, give):
    give(books(agent)["tokens"], 500)
    for _ in range(5):
        refused(tb, agent, Logging("same"))
    assert books(agent)["tokens"].denied.total == 5 * (1000 + 19)
    gc.collect()
    assert not agent.calls.by_object


def test_a_copy_of_the_details_settles_the_call_id(tb, agent, calls):
    """LiteLLM copies them where what was said must not be logged."""
    begun(tb, agent, calls[:1])
    done(tb, agent, "same", 7)
    assert not agent.attempts
    assert spent(agent)["tokens"] == 7


def test_each_request_is_charged_for_what_its_own_client_sent(tb, agent, calls):
    async def both():
        hooks = tb.Hooks(agent)
        sent = [{"litellm_call_id": "same", "litellm_logging_obj": call, "model": "gpt"} for call in calls]
        for data, size in zip(sent, (3000, 30)):
            await hooks.async_pre_call_hook(None, None, {**data, "input": "x" * size}, "aembedding")
        return [agent.called(data).body[1]["input"] for data in sent]

    assert [len(text) for text in asyncio.run(both())] == [3000, 30]
    assert not agent.calls.bodies


def test_a_call_id_in_steady_use_keeps_only_its_open_attempts(tb, agent):
    for _ in range(5):
        asyncio.run(attempt(tb, agent, "same", 100))
        asyncio.run(attempt(tb, agent, "same", 100))
        done(tb, agent, "same", 10)
        done(tb, agent, "same", 10)
        asyncio.run(attempt(tb, agent, "same", 100))
    assert len(agent.attempts["same"]) == 5


def test_the_usage_of_another_deployment_settles_nothing(tb, agent):
    """A fallback to a deployment that no TokenBudget governs."""
    asyncio.run(attempt(tb, agent, "a", 1000))
    before = spent(agent)
    done(tb, agent, "a", 5, standard_logging_object={"total_tokens": 5, "model_id": "elsewhere"})
    assert spent(agent) == before
    done(tb, agent, "a", 5, standard_logging_object={"total_tokens": 5})
    assert spent(agent)["tokens"] == 5, "of no deployment that is known"


def test_what_never_left_ends_when_an_ungoverned_deployment_is_next(tb, agent, monkeypatch):
    async def fallback():
        hooks = tb.Hooks(agent)
        kwargs = {"litellm_call_id": "a", "max_tokens": 1000}
        await reserve(hooks, kwargs)
        monkeypatch.setattr(agent.adapter, "books_of", lambda deployment: [])
        await hooks.async_filter_deployments("other", [OTHER], MESSAGES, kwargs)

    held = books(agent)
    asyncio.run(fallback())
    assert not agent.attempts
    assert [book.ring.spent for book in held.values()] == [0, 0]


@pytest.mark.parametrize("governed", [True, False])
def test_a_fallback_that_names_a_deployment_is_an_attempt_of_its_request(tb, agent, monkeypatch, governed):
    """LiteLLM does not ask the filter then."""
    everywhere = agent.adapter.books_of

    def only_d2(deployment):
        return everywhere(deployment) if deployment is OTHER else []

    held = everywhere(DEPLOYMENT)[0]

    async def fallback():
        hooks = tb.Hooks(agent)
        kwargs = {"litellm_call_id": "a", "max_tokens": 1000, "messages": MESSAGES}
        await hooks.async_pre_call_hook(None, None, kwargs, "acompletion")
        if not governed:
            monkeypatch.setattr(agent.adapter, "books_of", only_d2)
        await reserve(hooks, kwargs)
        if governed:
            await hooks.async_post_call_failure_deployment_hook(kwargs, ConnectionRefusedError(), None)
        await hooks.async_pre_call_check(OTHER, None)

    asyncio.run(fallback())
    assert 1000 < held.ring.spent < 1100, "by what the client sent"
    done(tb, agent, "a", 70, standard_logging_object={"total_tokens": 70, "model_id": "d2"})
    assert held.ring.spent == 70
    assert not agent.attempts


def test_what_clients_of_ungoverned_models_sent_is_not_kept(tb, agent, monkeypatch):
    monkeypatch.setattr(agent.adapter, "books_of", lambda deployment: [])

    async def ask():
        hooks = tb.Hooks(agent)
        kwargs = {"litellm_call_id": "a", "model": "gpt", "messages": MESSAGES}
        await hooks.async_pre_call_hook(None, None, kwargs, "acompletion")
        assert len(agent.calls.bodies) == 1
        await hooks.async_filter_deployments("gpt", [DEPLOYMENT], MESSAGES, kwargs)

    asyncio.run(ask())
    assert not agent.calls.bodies


def litellm_error(name, cause=None, context=None):
    """An error of LiteLLM's own, around what it was made of."""
    error = type(name, (Exception,), {"__module__": "litellm.exceptions"})("failed")
    error.__context__ = context
    if cause:
        error.__cause__ = cause  # which hides the context, even if it is None
    return error


def chain(*names):
    """Errors by name, each the cause of the one before."""
    found = None
    for name in reversed(names):
        error = type(name, (Exception,), {"__module__": "httpx"})()
        error.__cause__, found = found, error
    return found


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (litellm_error("APIError", chain("ConnectError")), True),
        (litellm_error("APIError", chain("ConnectError", "ClientConnectorError", "OSError")), True),
        (litellm_error("APIError", context=chain("ConnectTimeout")), True),
        # A connection from the pool that broke when the request was on it.
        (litellm_error("APIError", chain("ConnectError", "ClientOSError")), False),
        (litellm_error("APIError", chain("ConnectError", "CancelledError")), False),
        (litellm_error("APIError", chain("ReadError")), False),
        # The attempt before could not connect; this one was answered with 500.
        (litellm_error("ServerError", context=litellm_error("APIError", chain("ConnectError"))), False),
        # The same, where LiteLLM raises the provider's own error (/v1/messages before 1.102).
        (chain("AnthropicError", "HTTPStatusError", "AnthropicError", "ConnectError"), False),
    ],
)
def test_never_connected(tb, error, expected):
    assert tb.never_connected(error) is expected


def test_a_suppressed_context_says_nothing(tb):
    error = litellm_error("APIError", context=chain("ConnectError"))
    error.__suppress_context__ = True
    assert not tb.never_connected(error)


def test_prompt_tokens_that_are_of_no_text_sent_teach_nothing(tb, agent):
    asyncio.run(attempt(tb, agent, "a", 10))
    usage = {"total_tokens": 90_010, "prompt_tokens": 90_000, "completion_tokens": 10, "model_id": "d1"}
    done(tb, agent, "a", 0, standard_logging_object=usage)
    learned = agent.estimates.learned["openai/gpt"]
    assert (learned.ratio, learned.output_high) == (1 / 3, 10)


def test_names_that_clients_make_up_are_not_kept(tb, agent):
    for number in range(5):
        wild = {**DEPLOYMENT, "litellm_params": {"model": f"openai/made-up-{number}"}}
        asyncio.run(attempt(tb, agent, str(number), 10, [wild]))
    assert not agent.estimates.learned


def observing(tb, agent, clock, give, **limits):
    """A second TokenBudget on the same deployment, with no room, that only looks."""
    pol = policy([limit(**limits)], uid="uid-2", name="llm/looks/gpt", mode="Observe", maxWaitMs=5000)
    looks = agent.governors["uid-2"] = tb.Governor(pol, clock.boot())
    for book in looks.books.values():
        give(book, 0)
    return looks


def test_who_observes_decides_nothing_of_a_refusal(tb, agent, clock, give):
    """Neither how long a request waits, nor what its client is told."""
    observing(tb, agent, clock, give, tokens=1000)
    give(books_of(agent, "uid-1")["tokens"], 10)
    with pytest.raises(tb.Refused) as refused:
        asyncio.run(asyncio.wait_for(attempt(tb, agent, "a", 2000), 1))
    assert "llm/test:" in refused.value.message
    assert "never" not in refused.value.message
    assert refused.value.headers["x-tokenbudget-limit"].startswith("llm/test/")


def books_of(agent, uid):
    return {book.unit: book for book in agent.governors[uid].books.values()}


@pytest.mark.parametrize("data", [{"n": 10**400}, {"max_tokens": 10**400}, {"max_tokens": 5, "n": 10**13}])
def test_no_number_of_a_client_is_too_large_to_refuse(tb, agent, data):
    with pytest.raises(tb.Refused, match="never be admitted"):
        asyncio.run(attempt(tb, agent, "a", data.pop("max_tokens", 5), **data))
    assert not agent.faults


@pytest.mark.parametrize("total", [10**30, -5])
def test_no_number_of_a_provider_is_too_large_to_count(tb, agent, total):
    asyncio.run(attempt(tb, agent, "a", 10))
    usage = {"total_tokens": total, "prompt_tokens": total, "completion_tokens": total, "model_id": "d1"}
    done(tb, agent, "a", 0, standard_logging_object=usage)
    assert 0 <= spent(agent)["tokens"] <= tb.MOST_AMOUNT
    assert agent.estimates.learned["openai/gpt"].outputs.high() <= tb.MOST_AMOUNT if total > 0 else True
    assert not agent.faults


def test_the_longest_unheard_tokenbudget_asks_first(tb, agent, monkeypatch):
    """All on its node wait when one has failed; it must not be the first again."""
    asked = []
    ledger = tb.Ledger(agent)

    def fails(governor):
        asked.append(governor.uid)
        raise tb.redis.ConnectionError("refused")

    agent.governors["uid-2"] = tb.Governor(policy([limit()], uid="uid-2"), agent.clock.boot())
    monkeypatch.setattr(ledger, "reach", fails)
    monkeypatch.setattr(ledger, "read_policies", lambda: None)
    monkeypatch.setattr(ledger, "event", SimpleNamespace(clear=lambda: None, wait=lambda seconds: None))
    for _ in range(4):
        agent.clock.now += 1
        ledger.turn()
    assert asked == ["uid-1", "uid-2"] * 2
