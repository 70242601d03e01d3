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


def ids(deployments):
    return [deployment["model_info"]["id"] for deployment in deployments]


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
        orders = [d["litellm_params"]["order"] for d in healthy_deployments if "order" in d["litellm_params"]]
        lowest = min(orders, default=None)
        found = [d for d in healthy_deployments if d["litellm_params"].get("order") == lowest]
        return [d for d in found if d["litellm_params"].get("window", 100) > len(messages[0]["content"])]


@pytest.fixture
def left(tb, agent, give, monkeypatch):
    """Which ones the filter leaves LiteLLM, where these are full, and the others have no limit."""
    tagging = SimpleNamespace(get_deployments_for_tag=get_deployments_for_tag)
    monkeypatch.setitem(sys.modules, TAGGING, tagging)
    books = agent.adapter.books_of(None)
    for book in books:
        give(book, 0)

    def choose(router, models, full, found=None, **kwargs):
        full_books = lambda deployment: books if deployment["model_info"]["id"] in full else []  # noqa: E731
        monkeypatch.setattr(agent.adapter, "books_of", full_books)
        agent.adapter.narrowing.refresh(router, models)
        data = {"litellm_call_id": "a", "max_tokens": 10, **kwargs}
        found = [] if found is None else found
        found += asyncio.run(tb.Hooks(agent).async_filter_deployments("gpt", models, MESSAGES, data))
        assert not agent.problems()
        return ids(found)

    return choose


TIERS = [entry("paid", ["paid"]), entry("also", ["paid"]), entry("free", ["default"])]


def test_of_a_tag_those_with_room_are_left(left):
    paid = {"metadata": {"tags": ["paid"]}}
    assert left(Router(tags=True), TIERS, {"paid"}, **paid) == ["also", "free"]
    assert left(Router(tags=True), TIERS, {"paid", "free"}, **paid) == ["also", "free"], "it leaves those out"
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
    assert left(Router(checks=True), models, {"first"}) == ["second", "small"]


def test_what_litellm_leaves_out_itself_has_no_order_to_go_by(tb, agent, give, left):
    """In 1.82.6 the lowest order comes before the tags."""
    models = [entry("first", ["paid"], order=1), entry("second", ["paid"], order=2), entry("free", order=1)]
    router, paid, found = Router(tags=True, checks=True), {"metadata": {"tags": ["paid"]}}, []
    assert left(router, models, {"first"}, found=found, **paid) == ["second", "free"]
    checked = router._pre_call_checks("gpt", found, MESSAGES)
    tagged = asyncio.run(get_deployments_for_tag(router, "gpt", checked, paid, "metadata"))
    assert ids(tagged) == ["second"]


def test_what_litellm_leaves_out_itself_is_admitted_if_it_takes_it(tb, agent, left):
    assert left(Router(tags=True), TIERS, {"paid", "free"}, metadata={"tags": ["paid"]}) == ["also", "free"]

    async def picked(which):
        data = {"litellm_call_id": "b", "max_tokens": 10, "metadata": {"tags": ["paid"]}}
        found = await tb.Hooks(agent).async_filter_deployments("gpt", TIERS, MESSAGES, data)
        assert ids(found) == ["also", "free"]
        await tb.Hooks(agent).async_pre_call_check(found[which], None)

    asyncio.run(picked(0))
    with pytest.raises(tb.Refused):
        asyncio.run(picked(1))


def test_what_fits_nowhere_is_litellms_to_say(left):
    models = [entry("one", ["a"]), entry("two", ["b"])]
    assert left(Router(tags=True), models, {"one"}, metadata={"tags": ["c"]}) == ["one", "two"]
    models = [entry("one", window=5), entry("two", window=5)]
    assert left(Router(checks=True), models, {"one", "two"}) == ["one", "two"]


def test_what_it_has_tried_is_no_place_to_go(tb, left):
    models = [entry("first", order=1), entry("second", order=2), entry("third", order=2)]
    assert left(Router(), models, {"second"}, _target_order=2) == ["first", "third"]
    with pytest.raises(tb.Refused):
        left(Router(), models, {"second", "third"}, _target_order=2)
    with pytest.raises(tb.Refused):
        left(Router(), models, {"second"}, _excluded_deployment_ids=["first", "third"])
    with pytest.raises(tb.Refused):
        left(Router(), models, {"second"}, _retry_skipped_deployment_ids=["first", "third"])
    skipped = ids(models)
    assert left(Router(), models, {"second"}, _retry_skipped_deployment_ids=skipped) == ["first", "third"]


@pytest.mark.parametrize("version", ["1.92", "1.102"])
def test_where_no_deployment_has_the_order_that_is_next(tb, agent, left, monkeypatch, version):
    """1.92 takes all of them, later ones none, and say so."""
    if version == "1.102":

        def of_order(healthy_deployments, target_order=None):
            return [d for d in healthy_deployments if d["litellm_params"].get("order") == target_order]

        utils = SimpleNamespace(get_order_filtered_deployments=of_order)
        monkeypatch.setitem(sys.modules, "litellm.utils", utils)
    models = [entry("first", order=1), entry("second", order=2)]
    left_over = ["first", "second"] if version == "1.102" else ["second"]
    assert left(Router(), models, {"first"}, _target_order=3) == left_over


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


@pytest.mark.parametrize("lacks", ["", "input", "input_token_count"])
def test_what_counts_the_tokens_is_looked_at_too(tb, lacks):
    class Counting(Router):
        """As from 1.102 on."""

        def _pre_call_checks(
            self,
            model,
            healthy_deployments,
            messages=None,
            input=None,
            request_kwargs=None,
            input_token_count=None,
            skip_inline_token_count=False,
        ):
            return healthy_deployments

        async def _acount_pre_call_check_tokens(
            self, model, healthy_deployments, messages, input, request_kwargs
        ):
            return 1

    async def without_input(model, healthy_deployments, messages, request_kwargs):
        return 1

    router = Counting(checks=True)
    if lacks == "input":
        router._acount_pre_call_check_tokens = without_input
    elif lacks:
        router._pre_call_checks = lambda model, healthy_deployments, messages, request_kwargs, input: []
    problem = tb.Narrowing().refresh(router, TIERS) or ""
    named = {"": "", "input": "_acount_pre_call_check_tokens", "input_token_count": "_pre_call_checks"}
    assert problem.split(" ")[0] == named[lacks]


def test_what_litellms_functions_raise_is_reported_if_they_are_not_as_known(agent, left, monkeypatch):
    async def otherwise(**_):
        raise KeyError("budget")

    router, paid, narrowing = Router(tags=True), {"metadata": {"tags": ["paid"]}}, agent.adapter.narrowing
    with monkeypatch.context() as patched:
        patched.setattr(narrowing, "tagged", lambda *_: otherwise())
        assert left(router, TIERS, {"paid"}, **paid) == ["paid", "also", "free"]
        assert "KeyError: 'budget'" in narrowing.refresh(router, TIERS)
    assert left(router, TIERS, {"paid"}, **paid) == ["also", "free"]
    assert narrowing.refresh(router, TIERS) is None, "it is asked again"


def test_what_a_client_sends_in_place_of_metadata_is_no_fault_of_litellms(agent, left):
    left(Router(tags=True), TIERS, {"paid"}, metadata=None)
    assert agent.adapter.narrowing.failed is None


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
