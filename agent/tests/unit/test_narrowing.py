"""Which deployments the filter may drop, where LiteLLM goes on choosing by more than who has room."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from support.calls import MESSAGES

TAGGING = "litellm.router_strategy.tag_based_routing"


def entry(name, tags=(), **more):
    params = {"model": "openai/" + name, "tags": list(tags), **more}
    return {"model_name": "gpt", "litellm_params": params, "model_info": {"id": name}}


async def get_deployments_for_tag(
    llm_router_instance, model, healthy_deployments, request_kwargs, metadata_variable_name
):
    """As LiteLLM's: those with the tag, else the default ones, else an error."""
    llm_router_instance.asked.append("tags")
    metadata = request_kwargs.get(metadata_variable_name) or {}
    metadata["tag_routing"] = "noted"
    for tag in (*metadata.get("tags", ()), "default"):
        found = [d for d in healthy_deployments if tag in d["litellm_params"]["tags"]]
        if found:
            return found
    raise ValueError("no deployments with that tag")


class Router:
    """What the agent asks LiteLLM's for."""

    routing_strategy, routing_plugins = "simple-shuffle", ()

    def __init__(self, tags=False, checks=False, models=()):
        self.enable_tag_filtering, self.enable_pre_call_checks = tags, checks
        self.model_list, self.asked = list(models), []

    def _pre_call_checks(self, model, healthy_deployments, messages=None, request_kwargs=None):
        """As 1.82.6, which leaves the lowest order only."""
        self.asked.append("checks")
        lowest = min(d["litellm_params"].get("order", 0) for d in healthy_deployments)
        found = [d for d in healthy_deployments if d["litellm_params"].get("order", 0) == lowest]
        return [d for d in found if d["litellm_params"].get("window", 100) > len(messages[0]["content"])]


@pytest.fixture
def left(tb, agent, give, monkeypatch):
    """Which ones the filter leaves LiteLLM, where these are full, and the others have no limit."""
    tagging = SimpleNamespace(get_deployments_for_tag=get_deployments_for_tag)
    monkeypatch.setitem(sys.modules, TAGGING, tagging)
    books = agent.adapter.books_of(None)
    for book in books:
        give(book, 0)

    def choose(router, models, full, **kwargs):
        full_books = lambda deployment: books if deployment["model_info"]["id"] in full else []  # noqa: E731
        monkeypatch.setattr(agent.adapter, "books_of", full_books)
        agent.adapter.narrowing.refresh(router, models)
        data = {"litellm_call_id": "a", "max_tokens": 10, **kwargs}
        found = asyncio.run(tb.Hooks(agent).async_filter_deployments("gpt", models, MESSAGES, data))
        assert not agent.problems()
        return [deployment["model_info"]["id"] for deployment in found]

    return choose


TIERS = [entry("paid", ["paid"]), entry("also", ["paid"]), entry("free", ["default"])]


def test_of_a_tag_those_with_room_are_left(left):
    paid = {"metadata": {"tags": ["paid"]}}
    assert left(Router(tags=True), TIERS, {"paid"}, **paid) == ["also"]
    assert paid == {"metadata": {"tags": ["paid"]}}, "LiteLLM writes there what it chose"


@pytest.mark.parametrize("name", ["metadata", "litellm_metadata"])
def test_without_room_for_a_tag_it_is_our_refusal(tb, left, name):
    with pytest.raises(tb.Refused) as refused:
        left(Router(tags=True), TIERS, {"paid", "also"}, **{name: {"tags": ["paid"]}})
    assert int(refused.value.headers["Retry-After"]) >= 1


def test_a_key_or_a_group_may_have_tags_on_its_own(tb, left):
    paid = {"metadata": {"tags": ["paid"]}}
    with pytest.raises(tb.Refused):
        left(Router(), TIERS, {"paid", "also"}, enable_tag_filtering=True, **paid)
    of_group = [{**entry("paid", ["paid"]), "model_info": {"id": "paid", "enable_tag_filtering": True}}]
    with pytest.raises(tb.Refused):
        left(Router(), [*of_group, TIERS[2]], {"paid"}, **paid)


def test_what_is_too_small_is_no_place_to_go(tb, left):
    models = [entry("large"), entry("small", window=5)]
    with pytest.raises(tb.Refused):
        left(Router(checks=True), models, {"large"})


def test_the_next_order_takes_over(left):
    models = [entry("first", order=1), entry("second", order=2), entry("small", order=1, window=5)]
    assert left(Router(checks=True), models, {"first"}) == ["second"]


def test_what_fits_nowhere_is_litellms_to_say(left):
    models = [entry("one", ["a"]), entry("two", ["b"])]
    assert left(Router(tags=True), models, {"one"}, metadata={"tags": ["c"]}) == ["one", "two"]
    models = [entry("one", window=5), entry("two", window=5)]
    assert left(Router(checks=True), models, {"one", "two"}) == ["one", "two"]


def test_what_it_has_tried_is_no_place_to_go(tb, left):
    models = [entry("first", order=1), entry("second", order=2), entry("third", order=2)]
    assert left(Router(), models, {"second"}, _target_order=2) == ["third"]
    with pytest.raises(tb.Refused):
        left(Router(), models, {"second", "third"}, _target_order=2)
    with pytest.raises(tb.Refused):
        left(Router(), models, {"second"}, _excluded_deployment_ids=["first", "third"])
    with pytest.raises(tb.Refused):
        left(Router(), models, {"second"}, _retry_skipped_deployment_ids=["first", "third"])
    ids = [d["model_info"]["id"] for d in models]
    assert left(Router(), models, {"second"}, _retry_skipped_deployment_ids=ids) == ["first", "third"]


def test_a_plugin_is_asked(tb, left):
    router = Router()
    router.routing_plugins = ["one"]
    router._filter_by_routing_plugin_candidates = lambda healthy_deployments, request_kwargs: [
        d for d in healthy_deployments if d["model_info"]["id"] == "paid"
    ]
    with pytest.raises(tb.Refused):
        left(router, TIERS, {"paid"})


def test_nothing_is_asked_while_all_have_room_or_the_router_looks_at_nothing(left):
    for router, no_room in ((Router(tags=True, checks=True), ()), (Router(), {"paid"})):
        assert len(left(router, TIERS, no_room, metadata={"tags": ["paid"]})) == 3 - len(no_room)
        assert router.asked == []


@pytest.mark.parametrize("way", ["gone", "asked otherwise", "no such setting"])
def test_where_litellm_cannot_be_asked_it_chooses_and_the_check_decides(tb, agent, left, monkeypatch, way):
    router = Router(tags=True)
    if way == "gone":
        monkeypatch.setitem(sys.modules, TAGGING, SimpleNamespace())
    elif way == "asked otherwise":
        monkeypatch.setattr(sys.modules[TAGGING], "get_deployments_for_tag", lambda router, request: [])
    else:
        del router.enable_tag_filtering
    assert left(router, TIERS, {"paid"}) == ["paid", "also", "free"]
    assert agent.adapter.narrowing.lacking.endswith("a full deployment is refused, not passed over")

    async def picked():
        data = {"litellm_call_id": "b", "max_tokens": 10}
        await tb.Hooks(agent).async_filter_deployments("gpt", TIERS, MESSAGES, data)
        await tb.Hooks(agent).async_pre_call_check(TIERS[0], None)

    with pytest.raises(tb.Refused):
        asyncio.run(picked())
    assert agent.adapter.narrowing.refresh(Router(), TIERS) is None
