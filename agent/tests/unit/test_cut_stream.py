"""A provider that refuses in the middle of its answer has counted what it was sent and what it said."""

import asyncio

import pytest
from support.calls import Logging, attempt, failed, spent


class RateLimitError(Exception):
    status_code = 429


async def by_event(tb, agent, call):
    details = {"exception": RateLimitError(), "litellm_params": {"model_info": {"id": "d1"}}}
    call.model_call_details.update(details)
    await tb.Hooks(agent).async_log_failure_event(call.model_call_details, None, None, None)


async def by_hook(tb, agent, call):
    data = {"litellm_call_id": "a", "litellm_logging_obj": call}
    await tb.Hooks(agent).async_post_call_failure_deployment_hook(data, RateLimitError(), None)


async def at_last(tb, agent, call):
    data = {"litellm_call_id": "a", "litellm_logging_obj": call}
    await tb.Hooks(agent).async_post_call_failure_hook(data, RateLimitError(), None)


@pytest.mark.parametrize("told", [by_event, by_hook, at_last])
@pytest.mark.parametrize("began", ["completion_start_time", "combined_usage_object", None])
def test_a_429_gives_back_only_what_was_not_answered(tb, agent, told, began):
    call = Logging("a")
    asyncio.run(attempt(tb, agent, "a", 1000, litellm_logging_obj=call))
    call.model_call_details.update({"completion_start_time": None} | ({began: object()} if began else {}))
    asyncio.run(told(tb, agent, call))
    assert not agent.attempts
    assert not agent.faults
    assert spent(agent) == {"tokens": 1000 + 19 if began else 0, "requests": 1}


@pytest.mark.parametrize("first", [100, 20_000])
def test_a_stream_after_one_that_broke_keeps_what_was_reserved(tb, agent, monkeypatch, first):
    """LiteLLM keeps the usage of the first one in its object of the call, and tells it of the second."""
    call = Logging("a")
    asyncio.run(attempt(tb, agent, "a", 1000, litellm_logging_obj=call))
    told = {"model_id": "d1", "total_tokens": first, "prompt_tokens": first, "completion_tokens": 0}
    was_reported = tb.Adapter.was_reported
    monkeypatch.setattr(agent.adapter, "was_reported", lambda kwargs: was_reported(agent.adapter, kwargs))
    call.model_call_details.update({"combined_usage_object": object(), "standard_logging_object": told})
    asyncio.run(tb.Hooks(agent).async_log_success_event(call.model_call_details, None, None, None))
    assert not agent.attempts
    assert spent(agent) == {"tokens": 1000 + 19, "requests": 1}
    assert not agent.estimates.learned


def test_without_litellms_object_the_429_counts(tb, agent):
    asyncio.run(attempt(tb, agent, "a", 1000))
    failed(tb, agent, "a", RateLimitError())
    assert spent(agent) == {"tokens": 0, "requests": 1}


@pytest.mark.parametrize(("own", "kept"), [(100, 1019), (5000, 5000)])
def test_litellms_own_count_raises_a_charge_and_does_not_lower_it(tb, agent, monkeypatch, own, kept):
    """A client that left: LiteLLM counts what had come by a tokenizer of its own."""
    asyncio.run(attempt(tb, agent, "a", 1000))
    monkeypatch.setattr(agent.adapter, "was_reported", lambda kwargs: False)
    told = {"model_id": "d1", "total_tokens": own, "prompt_tokens": own, "completion_tokens": 0}
    event = {"litellm_call_id": "a", "standard_logging_object": told}
    asyncio.run(tb.Hooks(agent).async_log_success_event(event, None, None, None))
    assert spent(agent) == {"tokens": kept, "requests": 1}
    assert not agent.estimates.learned
