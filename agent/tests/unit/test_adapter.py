"""What the adapter knows of LiteLLM's router, without LiteLLM."""

import sys
from types import SimpleNamespace

import pytest


def entry(name):
    return {"model_name": "gpt", "litellm_params": {"model": "openai/gpt"}, "model_info": {"id": name}}


@pytest.fixture
def router(tb, agent, monkeypatch):
    """A router with one deployment, and the agent's adapter on it."""
    manager = SimpleNamespace(add_litellm_callback=lambda handler: None)
    litellm = sys.modules["litellm"]
    monkeypatch.setattr(litellm, "callbacks", [], raising=False)
    monkeypatch.setattr(litellm, "logging_callback_manager", manager, raising=False)
    made = SimpleNamespace(model_list=[entry("first")])
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", SimpleNamespace(llm_router=made))
    agent.adapter = tb.Adapter(agent, tb.Hooks(agent))
    agent.adapter.refresh()
    return made


def test_an_entry_that_comes_and_goes_between_two_refreshes_is_forgotten(agent, router):
    adapter = agent.adapter
    router.model_list.append(entry("second"))
    assert adapter.books_of(router.model_list[1]), "governed from its first request"
    assert adapter.skips_filter("second"), "its id is a name"
    assert adapter.skips_filter(None), "LiteLLM reads it out of another id"
    assert not adapter.skips_filter("gpt")
    router.has_model_id = {"new"}.__contains__
    assert adapter.skips_filter("new"), "it came since the last look"
    assert not adapter.skips_filter("gpt")
    router.model_list.pop()
    adapter.refresh()
    assert not adapter.skips_filter("second")
    assert list(adapter.matched) == list(adapter.seen) == list(adapter.identities) == ["first"]


def test_what_an_explicit_limit_names_is_declared_to_its_own_tokenbudget_only(tb, agent, router):
    """Its limits may go; those of another TokenBudget beat what could be derived."""
    router.model_list[0]["litellm_params"]["tpm"] = 700
    derives = tb.Governor({"uid": "uid-2", "limits": []}, agent.clock.boot())
    agent.governors["uid-2"] = derives
    agent.adapter.refresh()
    (row,) = agent.adapter.declared(agent.governors["uid-1"])
    assert row["tokensPerMinute"] == 700
    assert agent.adapter.declared(derives) == []
    del agent.governors["uid-1"]
    agent.adapter.refresh()
    assert agent.adapter.declared(derives) == [row]


@pytest.mark.parametrize("odd", ["10k", [], float("inf"), float("nan"), {}])
def test_a_limit_that_is_no_number_is_none_and_holds_up_nobody_else(tb, agent, router, odd):
    router.model_list[0]["model_info"]["tpm"] = odd
    router.model_list.append(entry("second") | {"tpm": "700"})
    agent.adapter.refresh()
    rows = [row for row, _ in agent.adapter.declared_rows]
    assert [(row["id"], row["tokensPerMinute"]) for row in rows] == [("second", 700)]


def test_a_model_that_embeds_answers_nothing_whatever_its_max_tokens_are(agent, router, monkeypatch):
    costs = {
        "embedder": {"mode": "embedding", "max_tokens": 8191},
        "chat": {"mode": "chat", "max_tokens": 4096},
    }
    monkeypatch.setattr(sys.modules["litellm"], "model_cost", costs, raising=False)
    most = agent.adapter.max_output
    assert (most({}, "openai/embedder"), most({}, "openai/chat")) == (0, 4096)
    assert most({"model_info": {"mode": "embedding", "max_output_tokens": 5}}, "openai/mine") == 0
    assert most({"model_info": {"max_output_tokens": 5}}, "openai/chat") == 5


@pytest.fixture
def matched(tb, router, monkeypatch):
    """The ids of what is matched, each time."""
    found, match = [], tb.Limits.match

    def counted(limits, deployment, identity):
        found.append(deployment["model_info"]["id"])
        return match(limits, deployment, identity)

    monkeypatch.setattr(tb.Limits, "match", counted)
    return found


def test_a_refresh_matches_only_when_something_has_changed(tb, agent, router, matched, give):
    (book, *_) = agent.adapter.matched["first"]
    for grant in (700, 800):
        give(book, grant)
        agent.adapter.refresh()
        assert router.model_list[0]["tpm"] == grant, "shares are written each time"
    assert not matched
    changes = {
        "another limit": lambda: router.model_list[0]["litellm_params"].update(tpm=700),
        "another name": lambda: router.model_list[0].update(model_name="other"),
        "a new entry": lambda: router.model_list.append(entry("second")),
        "an entry less": router.model_list.pop,
        "a copy with a limit of its own": lambda: router.model_list.append(
            {**router.model_list.pop(), "tpm": 9}
        ),
        "another policy": lambda: agent.governors["uid-1"].update(
            {**agent.governors["uid-1"].policy, "limits": []}, agent.clock.boot()
        ),
        "no policy": agent.governors.clear,
        "said by another thread": agent.adapter.changed,
    }
    for what, change in changes.items():
        change()
        agent.adapter.refresh()
        assert matched == [d["model_info"]["id"] for d in router.model_list], what
        agent.adapter.refresh()
        assert len(matched) == len(router.model_list), what
        matched.clear()


def test_no_share_stands_where_litellm_compares_it_with_the_fleets_usage(
    tb, agent, router, give, monkeypatch
):
    """`callbacks: ["dynamic_rate_limiter_v3"]`: four processes would be held to a quarter of the budget."""
    (book, *_) = agent.adapter.matched["first"]
    deployment = router.model_list[0] = {**entry("first"), "tpm": 60_000}
    give(book, 700)
    agent.adapter.refresh()
    assert deployment["tpm"] == 700
    limiter = type("_PROXY_DynamicRateLimitHandlerV3", (), {})()
    monkeypatch.setattr(sys.modules["litellm"], "callbacks", ["dynamic_rate_limiter_v3", limiter])
    counters = []
    monkeypatch.setattr(agent.adapter.counters, "localize", lambda router: counters.append("own") or {})
    monkeypatch.setattr(agent.adapter.counters, "restore", lambda: counters.append("the fleet's"))
    agent.adapter.refresh()
    assert deployment["tpm"] == 60_000, "as it was configured"
    assert "rpm" not in deployment
    assert counters == ["the fleet's"]
    sys.modules["litellm"].callbacks.remove(limiter)
    agent.adapter.refresh()
    assert deployment["tpm"] == 700
    assert counters == ["the fleet's", "own"]


def test_what_cannot_be_matched_is_tried_again(tb, agent, router, matched):
    router.model_list[0]["model_info"], info = {"id": "first", "tpm": 5}, router.model_list[0]["model_info"]
    agent.adapter.declared_row, found = None, agent.adapter.declared_rows
    for _ in range(2):
        with pytest.raises(TypeError):
            agent.adapter.refresh()
    assert matched == ["first"] * 2
    assert agent.adapter.declared_rows is found
    del agent.adapter.declared_row
    agent.adapter.refresh()
    assert [row["tokensPerMinute"] for row, _ in agent.adapter.declared_rows] == [5]
    assert info == {"id": "first"}


def test_explicit_limits_beat_derived_ones(tb, clock):
    both = {"tokens": {"budget": 9, "safe": 3}}
    limits = [
        {"name": "derived", "derived": "id=d1", **both},
        {"name": "by its name", "models": [{}, {"modelName": "gpt", "id": None}], **both},
        {"name": "no more", "models": [{"modelName": "gpt", "id": "d2"}], **both},
    ]
    one, two = (
        tb.Governor({"uid": uid, "limits": limits[:n]}, clock.boot()) for uid, n in (("a", 3), ("b", 1))
    )
    books, named = tb.Limits([one, two]).match(entry("d1"), "id=d1")
    assert ([book.limit for book in books], named) == (["by its name"], {"a"})
    books, named = tb.Limits([one, two]).match({**entry("d1"), "model_name": "other"}, "id=d1")
    assert ([(book.governor.uid, book.limit) for book in books], named) == (
        [("a", "derived"), ("b", "derived")],
        set(),
    )
