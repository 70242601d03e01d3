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
