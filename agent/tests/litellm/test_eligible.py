"""By tags, regions and context windows LiteLLM chooses between the same ones when something is full."""

import pytest
from conftest import until
from support.fake_operator import limit, policy
from support.proxy import config, deployment

FULL = ["paid", "first", "second", "large", "near", "nearest"]
PASSED = {"claude": "bedrock/anthropic.claude-3-haiku-20240307-v1:0", "vllm": "hosted_vllm/m"}
LONG = [{"role": "user", "content": "one two three four five " * 20}]


def one(base, group, model, info=None, **params):
    made = deployment(base, group, model="openai/" + model, tpm=None, id=model, **(info or {}))
    made["litellm_params"].update(params)
    return made


@pytest.fixture(scope="module")
def proxy(rig):
    """Of each group those in FULL have room for one request; what else may take it differs."""
    limits = [limit(name=m, budget=1000, safe=1000, litellmModel="openai/" + m) for m in FULL]
    limits += [limit(name=name, budget=1000, safe=1000, litellmModel=model) for name, model in PASSED.items()]
    pol = policy(limits)
    rig.operator.publish(pol)
    base = rig.provider.base
    conf = config(
        [
            one(base, "tiers", "paid", tags=["paid"]),
            one(base, "tiers", "free", tags=["default"]),
            one(base, "orders", "first", tags=["paid"], order=1),
            one(base, "orders", "second", tags=["paid"], order=2),
            one(base, "orders", "other", tags=["default"], order=1),
            one(base, "windows", "large", {"max_input_tokens": 1000}),
            one(base, "windows", "small", {"max_input_tokens": 20}),
            one(base, "regions", "near", region_name="eu"),
            one(base, "regions", "far", region_name="us"),
            one(base, "nearby", "nearest", region_name="eu"),
            one(base, "nearby", "next", region_name="eu"),
            one(base, "nearby", "farthest", region_name="us"),
            *(deployment(base, name, model=model, tpm=None) for name, model in PASSED.items()),
        ],
        routing_strategy="simple-shuffle",
        enable_tag_filtering=True,
        enable_pre_call_checks=True,
    )
    started = rig.start(conf, [pol]).wait()
    until(lambda: all(rig.operator.members(name=name) for name in FULL))
    return started


def asked(rig, proxy, model, times, **more):
    """Statuses, and who got them."""
    start = len(rig.provider.arrivals())
    statuses = []
    for _ in range(times):
        status, headers, text = proxy.chat(500, model, **more)
        statuses.append(status)
        if status == 429:
            headers = {name.lower(): value for name, value in headers.items()}
            assert "x-tokenbudget-limit" in headers, text
            assert int(headers["retry-after"]) > 0
    return statuses, [arrival["model"] for arrival in rig.provider.arrivals()[start:]]


def test_a_tag_whose_deployment_is_full_gets_no_other_tier(rig, proxy):
    paid = {"metadata": {"tags": ["paid"]}}
    assert asked(rig, proxy, "tiers", 3, **paid) == ([200, 429, 429], ["paid"])
    assert asked(rig, proxy, "tiers", 2) == ([200, 200], ["free", "free"]), "that tier has room"


def test_the_next_order_of_the_same_tag_takes_over(rig, proxy):
    paid = {"metadata": {"tags": ["paid"]}}
    assert asked(rig, proxy, "orders", 3, **paid) == ([200, 200, 429], ["first", "second"])
    assert asked(rig, proxy, "orders", 1) == ([200], ["other"])


def test_a_prompt_that_only_a_full_one_is_large_enough_for_is_refused_for_now(rig, proxy):
    assert asked(rig, proxy, "windows", 3, messages=LONG) == ([200, 429, 429], ["large"])
    assert asked(rig, proxy, "windows", 2) == ([200, 200], ["small", "small"])
    if proxy.version >= (1, 102):  # before, LiteLLM looks at the size of chats only
        for path in ("responses", "embeddings"):
            body = {"model": "windows", "input": "one two three four five " * 100}
            status, headers, text = proxy.post("/v1/" + path, body)
            assert (status, "x-tokenbudget-limit" in headers) == (429, True), text
    longer = [{"role": "user", "content": "one two three four five " * 400}]
    status, _, text = proxy.chat(500, "windows", messages=longer)
    assert (status, "ContextWindowExceeded" in text) == (400, True), "for none it is ever small enough"


def test_a_region_is_not_left_for_want_of_room(rig, proxy):
    eu = {"allowed_model_region": "eu"}
    assert asked(rig, proxy, "regions", 3, **eu) == ([200, 429, 429], ["near"])
    statuses, models = asked(rig, proxy, "nearby", 6, **eu)
    assert (statuses, "farthest" in models) == ([200] * 6, False), "there the other one of it has room"


def test_a_pass_through_route_to_a_full_model_of_the_router_is_refused(rig, proxy):
    start = len(rig.provider.arrivals())
    messages = [{"role": "user", "content": [{"text": "x"}]}]
    body = {"messages": messages, "inferenceConfig": {"maxTokens": 2000}}
    status, headers, text = proxy.post("/bedrock/model/claude/converse", body)
    assert (status, "x-tokenbudget-limit" in headers, "claude" in text) == (429, True, True), text
    body = {"model": "vllm", "messages": LONG, "max_tokens": 2000}
    status, _, text = proxy.post("/vllm/v1/chat/completions", body)
    assert status == 500, "LiteLLM has no handler for errors of the router there: " + text
    assert len(rig.provider.arrivals()) == start


def test_nothing_is_wrong_with_the_agent(rig, proxy):
    (report,) = rig.operator.reports().values()
    assert report["problems"] == []
    assert "tokenbudget: fault" not in proxy.text()
