"""The agent without LiteLLM: a stand-in for its one base class, and a clock that only tests move."""

import sys
import types

import pytest
from support import rendering
from support.fake_operator import limit, policy


class CustomLogger:
    """What the agent inherits from; the real one is tested in tests/litellm."""


def stand_in():
    """litellm.integrations.custom_logger, and nothing more."""
    names = ("litellm", "litellm.integrations", "litellm.integrations.custom_logger")
    for name in names:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules[names[2]].CustomLogger = CustomLogger


@pytest.fixture(scope="session")
def tb(tmp_path_factory):
    """The rendered agent module."""
    stand_in()
    return rendering.load(rendering.write(tmp_path_factory.mktemp("agent")))


class FakeClock:
    """Two clocks that move together unless a test says otherwise."""

    def __init__(self, now=1000.0):
        self.now, self.step = now, 0.0

    def boot(self):
        return self.now

    def wall(self):
        return self.now + self.step


@pytest.fixture
def clock():
    return FakeClock()


class FakeAdapter:
    """Every deployment spends from every book."""

    router, dirty, declared_rows = object(), False, []
    matched, named = {}, {}

    def __init__(self, agent):
        self.agent = agent

    def books_of(self, deployment):
        return [b for g in self.agent.governors.values() for b in g.books.values()]

    def problems(self):
        return []

    def problem(self, name, text):
        pass

    def counts_alone(self):
        return False

    def declared(self, governor):
        return self.declared_rows

    def changed(self):
        pass

    def skips_filter(self, model):
        return not model or model == "d1"

    def max_output(self, deployment, model):
        return None

    def was_reported(self, kwargs):
        return True


@pytest.fixture
def agent(tb, clock):
    """An agent with one TokenBudget of 60000 tokens and 600 requests, whose ledger has granted half of it."""
    made = tb.Agent(clock=clock, environ={"TOKENBUDGET_POD_UID": "pod-1"})
    made.adapter = FakeAdapter(made)
    made.adapter.narrowing = tb.Narrowing()
    pol = policy([limit(requests=600)], maxWaitMs=0)
    made.governors[pol["uid"]] = tb.Governor(pol, clock.boot())
    for book in made.adapter.books_of(None):
        give(tb, book, clock, book.budget // 2)
    return made


def give(tb, book, clock, grant, state="ok", share=None, pool=None):
    """The ledger's answer to a beat sent now."""
    sent = book.prepare(True, 0, 0, clock.boot(), clock.wall())
    pool = book.budget - grant if pool is None else pool
    share = grant if share is None else share
    counted = book.apply(sent, [state, grant, share, pool, book.budget, book.safe])
    if hasattr(book, "governor"):
        book.governor.renewed()
    return counted


@pytest.fixture(name="give")
def give_fixture(tb, clock):
    return lambda book, grant, **more: give(tb, book, clock, grant, **more)
