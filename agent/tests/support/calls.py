"""Calls as LiteLLM makes them: the hooks in its order, without LiteLLM."""

import asyncio

DEPLOYMENT = {"model_name": "gpt", "litellm_params": {"model": "openai/gpt"}, "model_info": {"id": "d1"}}
MESSAGES = [{"role": "user", "content": "x" * 30}]


def books(agent):
    return {b.unit: b for b in agent.adapter.books_of(None)}


def spent(agent):
    return {unit: book.ring.spent for unit, book in books(agent).items()}


class Logging:
    """LiteLLM's own object of a call."""

    def __init__(self, call_id):
        self.model_call_details = {"litellm_call_id": call_id}


async def reserve(hooks, kwargs, deployments=(DEPLOYMENT,)):
    """Filter and check; what the filter returned."""
    left = await hooks.async_filter_deployments("gpt", list(deployments), MESSAGES, kwargs)
    await hooks.async_pre_call_check(left[0], None)
    return left


async def attempt(tb, agent, call_id, max_tokens, deployments=(DEPLOYMENT,), **more):
    """Filter, check, deployment hook, stamp; what the filter returned."""
    hooks = tb.Hooks(agent)
    kwargs = {"litellm_call_id": call_id, "max_tokens": max_tokens, **more}
    left = await reserve(hooks, kwargs, deployments)
    await hooks.async_pre_call_deployment_hook(kwargs, "acompletion")
    hooks.log_pre_api_call("gpt", MESSAGES, kwargs)
    return left


def done(tb, agent, call_id, total, **more):
    asyncio.run(
        tb.Hooks(agent).async_log_success_event(
            {
                "litellm_call_id": call_id,
                "standard_logging_object": {"total_tokens": total, "model_id": "d1"},
                **more,
            },
            None,
            None,
            None,
        )
    )


def failed(tb, agent, call_id, error, **more):
    data = {"litellm_call_id": call_id, **more}
    asyncio.run(tb.Hooks(agent).async_post_call_failure_deployment_hook(data, error, None))
