"""Pass-through routes to a model of the router (allm_passthrough_route): what is raised where a deployment is
chosen LiteLLM takes for "there is none", and sends the call on without one."""

import asyncio
import json

import pytest
from support.calls import DEPLOYMENT, spent

CONVERSE = {
    "messages": [{"role": "user", "content": [{"text": "x" * 3000}]}],
    "inferenceConfig": {"maxTokens": 4000},
}
ANTHROPIC = {"messages": [{"role": "user", "content": "x" * 3000}], "max_tokens": 4000}
ROUTE = {"method": "POST", "endpoint": "/model/gpt/converse", "model": "gpt"}


@pytest.mark.parametrize("wait", [0, 50])
def test_the_check_refuses_them_where_litellm_hears_it(tb, agent, give, wait):
    for book in agent.adapter.books_of(None):
        give(book, 0)
        book.governor.policy["maxWaitMs"] = wait
    hooks, call = tb.Hooks(agent), {**ROUTE, "litellm_call_id": "a", "data": CONVERSE}

    async def routed():
        (left,) = await hooks.async_filter_deployments("gpt", [DEPLOYMENT], None, call)
        assert left["tpm"] == tb.LIFTED, "no strategy of LiteLLM's finds it full, either"
        with pytest.raises(tb.Refused) as refused:
            await hooks.async_pre_call_check(left, None)
        return refused.value

    assert asyncio.run(routed()).status_code == 429
    assert spent(agent) == {"tokens": 0, "requests": 0}
    assert not agent.faults


def test_others_are_refused_where_a_deployment_is_chosen(tb, agent, give):
    for book in agent.adapter.books_of(None):
        give(book, 0)
    with pytest.raises(tb.Refused):
        asyncio.run(tb.Hooks(agent).async_filter_deployments("gpt", [DEPLOYMENT], [], {"model": "gpt"}))


@pytest.mark.parametrize(
    "body",
    [
        {"data": CONVERSE},
        {"json": ANTHROPIC},
        {"data": json.dumps(CONVERSE)},
        {"data": json.dumps(ANTHROPIC).encode()},
    ],
)
def test_what_they_send_is_reserved_for(tb, agent, body):
    asyncio.run(reserve_of(tb, agent, body))
    assert 5000 <= spent(agent)["tokens"] < 5100


@pytest.mark.parametrize(
    "body", ["[" * 30_000, b"\xff" * 30_000, "[1]" + " " * 29_997, '{"a": "' + "x" * 29_993]
)
def test_a_body_that_cannot_be_read_counts_by_its_length(tb, agent, body):
    asyncio.run(reserve_of(tb, agent, {"data": body}))
    assert 11_000 <= spent(agent)["tokens"] < 11_100
    assert not agent.faults


async def reserve_of(tb, agent, body):
    hooks = tb.Hooks(agent)
    left = await hooks.async_filter_deployments(
        "gpt", [DEPLOYMENT], None, {**ROUTE, "litellm_call_id": "a", **body}
    )
    await hooks.async_pre_call_check(left[0], None)
