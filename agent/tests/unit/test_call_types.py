"""Calls in which no model works: they are neither charged nor refused, and settle nothing."""

import asyncio
import enum

import pytest
from support.calls import DEPLOYMENT, Logging, attempt, done, reserve, spent

FETCHES = [
    *("aget_responses", "acancel_responses", "adelete_responses", "alist_input_items", "acreate_file"),
    *("afile_content", "avideo_status", "avideo_content", "aretrieve_batch"),
    *("acreate_batch", "acancel_batch", "acreate_fine_tuning_job", "avector_store_search"),
    *("aretrieve_container", "pass_through_endpoint"),
]


@pytest.mark.parametrize("call_type", FETCHES)
def test_a_call_that_fetches_is_charged_nothing_and_settles_nothing(tb, agent, call_type):
    """GET /v1/responses/{id}: the deployment is in the id, so the filter is not asked; the router has a
    task of its own."""

    async def fetched():
        hooks, call = tb.Hooks(agent), Logging("a")
        data = {"litellm_call_id": "a", "litellm_logging_obj": call, "response_id": "r", "model": None}
        await hooks.async_pre_call_hook(None, None, data, call_type)

        async def routed():
            await hooks.async_pre_call_check(DEPLOYMENT, None)
            await hooks.async_pre_call_deployment_hook(data, None)
            hooks.log_pre_api_call("gpt", [], data)
            usage = {"total_tokens": 5000, "model_id": "d1"}
            details = {**data, "call_type": call_type, "standard_logging_object": usage}
            await hooks.async_log_success_event(details, None, None, None)

        await asyncio.create_task(routed())

    asyncio.run(attempt(tb, agent, "a", 1000))  # a client may have chosen the same id
    before = spent(agent)
    asyncio.run(fetched())
    assert spent(agent) == before
    assert len(agent.attempts["a"]) == 1
    assert not agent.calls.bodies
    assert not agent.faults
    done(tb, agent, "a", 70)
    assert spent(agent) == {"tokens": 70, "requests": 1}


@pytest.mark.parametrize("call_type", FETCHES)
def test_a_full_limit_refuses_no_call_that_fetches(tb, agent, give, call_type):
    """Where it names a model (batches, files, fine tuning) the filter is asked, in each of its attempts."""
    for book in agent.adapter.books_of(None):
        give(book, 0)

    async def asked():
        hooks, call = tb.Hooks(agent), Logging("a")
        data = {"litellm_call_id": "a", "litellm_logging_obj": call, "model": "gpt"}
        await hooks.async_pre_call_hook(None, None, data, call_type)
        for _ in range(2):
            deployments = [DEPLOYMENT]
            left = await hooks.async_filter_deployments("gpt", deployments, [], dict(data))
            assert left is deployments
            await hooks.async_pre_call_check(DEPLOYMENT, None)
            # Router._acreate_file: a task for each deployment.
            await asyncio.create_task(hooks.async_pre_call_check(DEPLOYMENT, None))

    asyncio.run(asked())
    assert spent(agent) == {"tokens": 0, "requests": 0}
    assert all(book.denied.total == 0 for book in agent.adapter.books_of(None))


def test_a_full_limit_refuses_no_upload_of_a_file(tb, agent, give):
    """POST /v1/files: LiteLLM makes neither an id nor an object of the call before the router is asked."""
    for book in agent.adapter.books_of(None):
        give(book, 0)

    async def uploaded():
        hooks, deployments = tb.Hooks(agent), [DEPLOYMENT]
        await hooks.async_pre_call_hook(None, None, {"metadata": {}}, "acreate_file")
        kwargs = {"metadata": {}, "purpose": "batch"}
        for _ in range(2):
            assert await hooks.async_filter_deployments("gpt", deployments, [], kwargs) is deployments
            await asyncio.create_task(hooks.async_pre_call_check(DEPLOYMENT, None))

    asyncio.run(uploaded())
    assert all(book.denied.total == 0 for book in agent.adapter.books_of(None))


def test_a_full_limit_refuses_no_counting_of_tokens(tb, agent, give):
    """LiteLLM's /v1/messages/count_tokens asks for a deployment without a request."""
    for book in agent.adapter.books_of(None):
        give(book, 0)
    deployments = [DEPLOYMENT]
    left = asyncio.run(tb.Hooks(agent).async_filter_deployments("gpt", deployments, None, {}))
    assert left is deployments
    assert all(book.denied.total == 0 for book in agent.adapter.books_of(None))


def test_a_model_that_works_for_a_call_that_fetches_is_charged(tb, agent):
    """A search in a vector store, whose question the router embeds."""

    async def searched():
        hooks, call = tb.Hooks(agent), Logging("a")
        data = {"litellm_call_id": "a", "litellm_logging_obj": call, "model": "gpt"}
        await hooks.async_pre_call_hook(None, None, data, "avector_store_search")
        await reserve(hooks, {"metadata": {}, "max_tokens": 100})

    asyncio.run(searched())
    assert 100 < spent(agent)["tokens"] < 130


def test_litellms_names_of_call_types_are_known(tb):
    class CallTypes(str, enum.Enum):
        acompletion = "acompletion"
        aget_responses = "aget_responses"

    assert tb.is_governed(CallTypes.acompletion)
    assert not tb.is_governed(CallTypes.aget_responses)
    assert all(
        map(
            tb.is_governed,
            ("_arealtime", "anthropic_messages", "aembedding", "moderation", "None", "", "anew_one"),
        )
    )


def test_a_call_whose_model_is_in_another_id_is_matched_by_its_own(tb, agent):
    """POST /v1/videos/{id}/remix."""

    async def remixed():
        hooks, call = tb.Hooks(agent), Logging("a")
        data = {"litellm_call_id": "a", "litellm_logging_obj": call, "prompt": "x" * 30, "max_tokens": 500}
        await hooks.async_pre_call_hook(None, None, data, "avideo_remix")
        await asyncio.create_task(hooks.async_pre_call_check(DEPLOYMENT, None))
        return call

    call = asyncio.run(remixed())
    assert 500 < spent(agent)["tokens"] < 530
    done(tb, agent, "a", 70, litellm_logging_obj=call)
    assert spent(agent) == {"tokens": 70, "requests": 1}
    assert not agent.attempts


def test_what_came_without_a_model_is_estimated_where_the_filter_is_asked_after_all(tb, agent):
    """A fallback to a group of deployments."""

    async def fallback():
        hooks, call = tb.Hooks(agent), Logging("a")
        data = {"litellm_call_id": "a", "litellm_logging_obj": call, "input": "x" * 3000}
        await hooks.async_pre_call_hook(None, None, data, "aembedding")
        router = {"litellm_call_id": "a", "litellm_logging_obj": call}
        await hooks.async_filter_deployments("gpt", [DEPLOYMENT], None, router)
        await hooks.async_pre_call_check(DEPLOYMENT, None)
        return call

    assert asyncio.run(fallback())
    assert spent(agent)["tokens"] == 3 + 4 + 1000


def test_a_fallback_of_a_refused_request_is_charged_what_the_client_sent(tb, agent, give):
    """The router's hooks do not see an embedding's input."""

    async def fallback():
        hooks, call = tb.Hooks(agent), Logging("a")
        router = {"litellm_call_id": "a", "litellm_logging_obj": call}
        await hooks.async_pre_call_hook(
            None, None, {**router, "model": "gpt", "input": "a text " * 900}, "aembedding"
        )
        for book in agent.adapter.books_of(None):
            give(book, 0)
        with pytest.raises(tb.Refused):
            await hooks.async_filter_deployments("gpt", [DEPLOYMENT], None, router)
        for book in agent.adapter.books_of(None):
            give(book, book.budget)
        await hooks.async_filter_deployments("other", [DEPLOYMENT], None, router)
        await hooks.async_pre_call_check(DEPLOYMENT, None)
        return call

    assert asyncio.run(fallback())
    assert spent(agent)["tokens"] == 3 + 4 + 2100
