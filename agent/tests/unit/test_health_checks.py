"""LiteLLM's own health checks go past the router: they are counted, and nothing else. A client can name its
request like one."""

import asyncio

import pytest
from support.calls import Logging, attempt, spent

TAGGED = {"litellm_params": {"litellm_metadata": {"tags": ["litellm-internal-health-check"]}}}
TOLD = {"model_id": "d1", "total_tokens": 30, "prompt_tokens": 10, "completion_tokens": 20}


def sent_and_answered(tb, agent, call_id):
    hooks, call = tb.Hooks(agent), {**TAGGED, "litellm_call_id": call_id, "standard_logging_object": TOLD}
    hooks.log_pre_api_call("gpt", [], call)
    asyncio.run(hooks.async_log_success_event(call, None, None, None))
    return agent.outside.figures(agent.clock.boot())


def test_a_health_check_is_counted_as_traffic_outside(tb, agent):
    assert sent_and_answered(tb, agent, "h") == [{"kind": "other", "requests": 1, "tokens": 30}]
    assert spent(agent) == {"tokens": 0, "requests": 0}


def test_a_request_that_is_named_like_one_is_charged_and_settled(tb, agent):
    asyncio.run(attempt(tb, agent, "a", 1000))
    assert sent_and_answered(tb, agent, "a") == []
    assert spent(agent) == {"tokens": 30, "requests": 1}


def test_a_call_that_leaves_again_is_charged_however_it_is_named(tb, agent):
    """LiteLLM's MCP tools send an answered call once more, under the same admission."""
    call, hooks = Logging("a"), tb.Hooks(agent)
    asyncio.run(attempt(tb, agent, "a", 1000, litellm_logging_obj=call))
    call.model_call_details.update({**TAGGED, "standard_logging_object": TOLD})
    asyncio.run(hooks.async_log_success_event(call.model_call_details, None, None, None))
    hooks.log_pre_api_call("gpt", [], call.model_call_details)
    assert spent(agent) == {"tokens": 60, "requests": 2}
    assert not agent.outside.figures(agent.clock.boot())


@pytest.mark.parametrize("metadata", [{"tags": 5}, {"tags": None}, {}, [], "tags", None])
def test_odd_tags_are_no_fault(tb, agent, metadata):
    tb.Hooks(agent).log_pre_api_call("gpt", [], {"litellm_params": {"metadata": metadata}})
    assert not agent.faults
    assert not agent.outside.figures(agent.clock.boot())
