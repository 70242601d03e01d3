"""LiteLLM's own health checks go past the router: they are counted, and nothing else. A client can name its
request like one."""

import asyncio

from support.calls import attempt, spent

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
