"""What the agent's hooks take for one request, in µs, against LiteLLM's own Router object: admission (door,
filter, check, deployment hook, stamp) and settlement (success event). Runs in LiteLLM's venv; prints JSON.

usage: python hooks.py AGENT_DIRECTORY ITERATIONS
"""

import asyncio
import itertools
import json
import sys
import time
import types

sys.path.insert(0, sys.argv[1])
import litellm

import tokenbudget_agent as tb

SIZES = {"100 B": 100, "10 kB": 10_000, "100 kB": 100_000}


def agent():
    """An agent that holds a grant of everything, and a router with two deployments."""
    router = litellm.Router(
        model_list=[
            {
                "model_name": "gpt",
                "litellm_params": {
                    "model": "openai/gpt",
                    "api_base": "http://127.0.0.1:1/v1",
                    "api_key": "x",
                },
                "model_info": {"id": name},
            }
            for name in ("one", "two")
        ]
    )
    server = types.ModuleType("litellm.proxy.proxy_server")
    server.llm_router, server.proxy_shutdown_event = router, None
    sys.modules["litellm.proxy.proxy_server"] = server
    made = tb.Agent(environ={"TOKENBUDGET_POD_UID": "bench"})
    hooks = tb.Hooks(made)
    made.adapter = tb.Adapter(made, hooks)
    budget = {"budget": 10**12, "safe": 10**9}
    policy = {
        "uid": "u",
        "limits": [{"name": "gpt", "models": [{"modelName": "gpt"}], "tokens": budget, "requests": budget}],
    }
    made.governors["u"] = tb.Governor(policy, made.clock.boot())
    made.adapter.refresh()
    for book in made.governors["u"].books.values():
        sent = book.prepare(True, 0, 0, made.clock.boot(), made.clock.wall())
        book.apply(sent, ["ok", 10**11, 10**11, 10**11, 10**12, 10**9])
    made.governors["u"].renewed()
    return made, hooks, router


class Call:
    """LiteLLM's own object of a call."""

    def __init__(self, call_id):
        self.model_call_details = {"litellm_call_id": call_id}


async def one(hooks, router, number, text):
    """The hooks of one request as LiteLLM calls them; seconds of admission and settlement."""
    call = f"call-{number}"
    messages = [{"role": "user", "content": text}]
    of = Call(call)
    asked = {"litellm_call_id": call, "litellm_logging_obj": of, "max_tokens": 100}
    data, kwargs, details = {"model": "gpt", "messages": messages, **asked}, {**asked}, of.model_call_details
    start = time.perf_counter()
    await hooks.async_pre_call_hook(None, None, data, "acompletion")
    found = await hooks.async_filter_deployments("gpt", router.model_list, messages, kwargs)
    await hooks.async_pre_call_check(found[0], None)
    await hooks.async_pre_call_deployment_hook(kwargs, "acompletion")
    hooks.log_pre_api_call("gpt", messages, details)
    admitted = time.perf_counter()
    logged = {
        "model_id": found[0]["model_info"]["id"],
        "total_tokens": 110,
        "prompt_tokens": 10,
        "completion_tokens": 100,
    }
    details["standard_logging_object"] = logged
    between = time.perf_counter()
    await hooks.async_log_success_event(details, None, None, None)
    return admitted - start + time.perf_counter() - between


async def plain(rounds):
    """A loop that does nothing: what takes longer than usual of it is the machine's doing."""
    start, x = time.perf_counter(), 0
    for i in range(rounds):
        x += i
    return time.perf_counter() - start


async def timed(makes, count):
    """Seconds that each of them took, sorted. A task of its own for each, as each request of a proxy is."""
    return sorted([await asyncio.ensure_future(makes()) for _ in range(count)])


def middle_and_high(took):
    """p50 and p99, in µs."""
    return [round(1e6 * took[int(len(took) * part)], 1) for part in (0.5, 0.99)]


async def machine(middle, count):
    """p50 and p99 of plain Python that takes `middle` µs."""
    rounds = 1000
    for _ in range(5):
        rounds = int(rounds * middle / middle_and_high(await timed(lambda n=rounds: plain(n), 500))[0])
    return middle_and_high(await timed(lambda: plain(rounds), count))


async def main():
    made, hooks, router = agent()
    watching = asyncio.ensure_future(
        tb.watch(made)
    )  # without it every admission sees a loop that stands still
    out, numbers, count = {}, itertools.count(), int(sys.argv[2])
    for name, size in SIZES.items():
        prompt = ("text " * size)[:size]
        took = await timed(lambda text=prompt: one(hooks, router, next(numbers), text), count)
        out[f"hooks alone, prompt of {name}"] = [middle, _] = middle_and_high(took)
    out["a loop of plain Python that takes as long"] = await machine(middle, count)
    watching.cancel()
    assert not made.attempts
    print(json.dumps(out))


asyncio.run(main())
