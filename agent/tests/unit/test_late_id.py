"""Calls of the router's own, of which LiteLLM makes the id only after the check: mirrored requests,
embeddings of semantic caches, pass-through routes that name a model of the router's."""

import asyncio

import pytest
from support.calls import DEPLOYMENT, MESSAGES, Logging, attempt, books, done, reserve, spent


async def leaves(hooks, kwargs, call_type="acompletion"):
    await hooks.async_pre_call_deployment_hook(kwargs, call_type)
    hooks.log_pre_api_call("gpt", MESSAGES, kwargs)


@pytest.mark.parametrize("handed_on", [True, False])
def test_a_call_without_an_id_is_matched_by_the_one_that_its_filter_gave_it(tb, agent, handed_on):
    """Or by LiteLLM's, where the router's arguments were copied before."""

    async def mirrored():
        hooks, kwargs, call = tb.Hooks(agent), {"max_tokens": 1000}, Logging("b")
        await reserve(hooks, kwargs)
        assert 1000 < spent(agent)["tokens"] < 1030
        call_id = kwargs["litellm_call_id"] if handed_on else "b"
        await leaves(hooks, {"litellm_call_id": call_id, "litellm_logging_obj": call})
        return call_id

    done(tb, agent, asyncio.run(mirrored()), 70)
    assert spent(agent) == {"tokens": 70, "requests": 1}
    assert not agent.attempts


def test_what_only_the_check_saw_is_filed_under_the_id_that_comes_later(tb, agent):
    """The filter is not asked under another strategy, or where a deployment is named."""

    async def checked():
        hooks, call = tb.Hooks(agent), Logging("b")
        await hooks.async_pre_call_check(DEPLOYMENT, None)
        assert spent(agent)["requests"] == 1
        await leaves(hooks, {"litellm_call_id": "b", "litellm_logging_obj": call}, "aembedding")
        (left,) = agent.attempts["b"]
        assert (left.call(), left.kind) == (call, ("aembedding", "openai/gpt"))
        return call

    assert asyncio.run(checked())
    done(tb, agent, "b", 70)
    assert spent(agent) == {"tokens": 70, "requests": 1}
    assert not agent.attempts


def test_a_call_with_an_id_of_its_own_does_not_take_anothers_attempt(tb, agent):
    async def nested():
        hooks = tb.Hooks(agent)
        await reserve(hooks, {"litellm_call_id": "a", "max_tokens": 1000})
        await leaves(hooks, {"litellm_call_id": "b"})
        assert list(agent.attempts) == ["a"]
        assert not agent.attempts["a"][0].hooked

    asyncio.run(nested())


def test_what_turns_out_to_be_no_work_of_a_model_is_given_back(tb, agent):
    """Managed files of LiteLLM: the router is asked without the door having said what for."""

    async def uploaded():
        hooks = tb.Hooks(agent)
        await hooks.async_pre_call_check(DEPLOYMENT, None)
        await leaves(hooks, {"litellm_call_id": "b"}, "acreate_file")

    asyncio.run(uploaded())
    assert spent(agent) == {"tokens": 0, "requests": 0}
    assert not agent.attempts


@pytest.mark.parametrize("asked", ["filter", "check"])
def test_attempts_whose_end_never_comes_leave_the_window_however_many_they_are(tb, agent, clock, asked):
    """And take no connection from those that do."""
    agent.connections = 2

    async def lost():
        hooks = tb.Hooks(agent)
        if asked == "filter":
            await reserve(hooks, {"max_tokens": 100})
        else:
            await hooks.async_pre_call_check(DEPLOYMENT, None)

    def pass_time(seconds):
        clock.now += seconds
        for book in books(agent).values():
            book.advance(clock.boot(), clock.wall())

    for _ in range(5):
        asyncio.run(lost())
    pass_time(tb.UNSENT_BOUND + 1)
    agent.sweep(clock.boot())
    asyncio.run(attempt(tb, agent, "a", 100))
    assert spent(agent)["requests"] == 6
    pass_time(62)
    assert spent(agent) == {"tokens": 0, "requests": 0}
