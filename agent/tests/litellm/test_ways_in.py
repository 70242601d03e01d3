"""The ways in which LiteLLM is run and changed: users' hooks and callbacks, a router that is changed while it
runs, workers that are recycled."""

import copy
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import Rig, control, until
from support.fake_operator import limit, policy
from support.provider import worst_minute
from support.proxy import config, deployment

USERHOOK = Path(__file__).with_name("userhook.py")
BUDGET = 9000
RECYCLED = 20  # requests after which a worker ends


class Ways(Rig):
    """Every proxy has the user's module in it."""

    def start(self, conf, policies, hooks, **more):
        env = {"LITELLM_WORKER_STARTUP_HOOKS": hooks}
        proxy = super().start(conf, policies, env=env, **more)
        shutil.copy(USERHOOK, proxy.directory / "userhook.py")
        return proxy


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Ways(tmp_path_factory.mktemp("ways"))
    yield made
    made.stop()


def models(base):
    return [
        deployment(base, tpm=40000),
        deployment(base, "pair", model="openai/pair-a", tpm=None, id="pair-a", shunned=True),
        deployment(base, "pair", model="openai/pair-b", tpm=None, id="pair-b"),
        deployment(base, "derived", tpm=2000),
        deployment(base, "free", tpm=777),
    ]


def rules(base, uid):
    derived = {"derived": f"derived|openai/derived|{base}|0", "models": []}
    return policy(
        [
            limit(budget=40000, safe=40000),
            limit(name="pair", budget=1000, safe=1000, litellmModel="openai/pair-b"),
            limit(name="fresh", budget=1000, safe=1000, modelName="fresh"),
            limit(name="stays", budget=20000, safe=20000, id="stays-1"),
            {**limit(name="derived", budget=2000, safe=2000), **derived},
        ],
        uid=uid,
        beatMs=300,
        deriving=True,
    )


@pytest.fixture(scope="module")
def started(rig):
    """All of them together: booting is most of the time."""
    base = rig.provider.base
    pols = [rules(base, "uid-list"), rules(base, "uid-none")]
    pols.append(rules(base, "uid-broken"))
    pols.append(policy([limit(name="duo", budget=BUDGET, safe=3000)], uid="uid-duo", beatMs=300))
    for pol in pols:
        rig.operator.publish(pol)
    listed = config(models(base))
    listed["litellm_settings"] = {"callbacks": ["userhook.own"]}
    made = {
        "list": rig.start(listed, [pols[0]], "tokenbudget_agent:start,userhook:go,control:start"),
        "none": rig.start(
            config(models(base)), [pols[1]], "userhook:register,tokenbudget_agent:start,control:start"
        ),
        "recycled": rig.start(
            config([deployment(base, "duo", tpm=BUDGET)]),
            [pols[3]],
            "tokenbudget_agent:start",
            workers=2,
            arguments=["--max_requests_before_restart", str(RECYCLED)],
            healthcheck=12,  # uvicorn waits so long for a worker that ends while it is asked for its health
        ),
        "broken": rig.start(config(models(base)), [pols[2]], "tokenbudget_agent:start,userhook:breaks"),
        "alone": rig.start(config(models(base)), [], "userhook:breaks"),
    }
    for name in ("list", "none"):
        made[name].wait()
    return made


@pytest.fixture
def proxy(started):
    return started["list"]


def report(rig, uid="uid-list"):
    rows = rig.operator.reports(uid).values()
    return next((r for r in rows if r["state"] != "Starting"), None)


def declared(rig, model):
    found = [d for d in report(rig)["declared"] if d["modelName"] == model]
    return (found[0]["identity"], found[0]["tokensPerMinute"]) if found else None


# -- hooks and callbacks


@pytest.mark.parametrize("name", ["list", "none"])
def test_a_users_own_hook_and_callback_work_beside_the_agent_in_either_order(rig, started, name):
    """The user's filter leaves one deployment, the agent holds that one to its limit."""
    proxy = started[name]
    assert (proxy.directory / "went").exists()
    start = len(rig.provider.arrivals())
    statuses = [proxy.chat(600, "pair")[0] for _ in range(2)]
    assert [a["model"] for a in rig.provider.arrivals()[start:]] == ["pair-b"]
    assert statuses == [200, 429]
    until(lambda: "success pair" in (proxy.directory / "own.log").read_text())
    found = control(proxy, "callbacks")
    assert found.count("tokenbudget_agent") == 1
    assert found.count("userhook") == 1
    assert report(rig, f"uid-{name}")["problems"] == []
    assert "tokenbudget: fault" not in proxy.text()


def test_a_users_hook_that_raises_ends_litellm_as_it_does_without_the_agent(rig, started):
    def ended(proxy):
        return until(lambda: proxy.process.poll() is not None and (proxy.process.returncode,), 60)

    assert ended(started["broken"]) == ended(started["alone"])
    assert "the user's hook is broken" in started["broken"].text()
    assert "tokenbudget: fault" not in started["broken"].text()
    rows = rig.operator.members("uid-broken").values()
    assert all(r["ended"] and not r["record"] for r in rows), "what it was lent is back at once"


# -- the router's own calls, as a reload of the database makes them


def test_a_new_model_is_governed_from_its_first_request(rig, proxy):
    fresh = deployment(rig.provider.base, "fresh", tpm=None, id="fresh-1")
    assert control(proxy, "upsert", deployment=fresh) is True
    assert [proxy.chat(600, "fresh")[0] for _ in range(2)] == [200, 429]
    until(lambda: control(proxy, "limits")["fresh-1"][0] == 1000, 2)


def test_an_upsert_of_the_same_model_changes_nothing(rig, proxy):
    """LiteLLM compares litellm_params and model_info: the agent has not written there."""
    same = deployment(rig.provider.base, "stays", tpm=20000, id="stays-1")
    assert control(proxy, "upsert", deployment=same) is True
    until(lambda: control(proxy, "limits")["stays-1"][0] == 20000, 2)
    assert control(proxy, "upsert", deployment=same) is False
    assert control(proxy, "limits")["stays-1"][0] == 20000


def test_a_call_that_is_under_way_when_its_model_changes_is_charged_once(rig, proxy):
    def spent():
        return sum(r["spent"] for r in rig.operator.members("uid-list", "stays").values())

    start, before = len(rig.provider.arrivals()), spent()
    answers = []
    body = {"messages": [{"role": "user", "content": "inject:slow"}]}
    thread = threading.Thread(target=lambda: answers.append(proxy.chat(500, "stays", **body)[0]))
    thread.start()
    until(lambda: len(rig.provider.arrivals()) > start)
    changed = deployment(rig.provider.base, "stays", tpm=20000, id="stays-1")
    changed["litellm_params"]["api_key"] = "y"
    assert control(proxy, "upsert", deployment=changed) is True
    thread.join()
    assert answers == [200]
    assert proxy.chat(300, "stays")[0] == 200
    used = sum(a["tokens"] for a in rig.provider.arrivals()[start:])
    until(lambda: spent() - before == used, 5)


def test_a_deleted_model_is_forgotten_but_not_what_was_spent_on_it(rig, proxy):
    control(proxy, "delete", id="fresh-1")
    until(lambda: all("fresh-1" not in names for names in control(proxy, "known")), 3)
    assert proxy.chat(100, "fresh")[0] in (400, 404)
    fresh = deployment(rig.provider.base, "fresh", tpm=None, id="fresh-2")
    control(proxy, "upsert", deployment=fresh)
    assert proxy.chat(600, "fresh")[0] == 429, "another entry of the same limit"
    control(proxy, "delete", id="fresh-2")


def test_a_derived_limit_outlives_a_new_key_and_a_new_value(rig, proxy):
    """LiteLLM's own id is a hash over the parameters: it changes, the identity does not."""
    identity = f"derived|openai/derived|{rig.provider.base}|0"
    until(lambda: declared(rig, "derived") == (identity, 2000), 5)
    assert proxy.chat(1200, "derived")[0] == 200
    before = set(control(proxy, "limits"))
    changed = copy.deepcopy(models(rig.provider.base))
    changed[3]["litellm_params"].update(tpm=3000, api_key="y")
    control(proxy, "relist", models=changed)
    assert proxy.chat(1200, "derived")[0] == 429, "the same limit, the same window"
    assert set(control(proxy, "limits")) != before
    until(lambda: declared(rig, "derived") == (identity, 3000), 5)
    until(lambda: all(len(names) == len(changed) for names in control(proxy, "known")), 3)
    assert 2000 in [tpm for tpm, _ in control(proxy, "limits").values()], "the budget, not what is declared"
    assert (report(rig)["state"], report(rig)["problems"]) == ("Enforcing", [])


def test_a_models_declared_limit_changes_and_goes_with_it(rig, proxy):
    mine = deployment(rig.provider.base, "mine", tpm=500, id="mine-1")
    control(proxy, "upsert", deployment=mine)
    until(lambda: declared(rig, "mine") == ("id=mine-1", 500), 5)
    mine["litellm_params"]["tpm"] = 600
    assert control(proxy, "upsert", deployment=mine) is True
    until(lambda: declared(rig, "mine") == ("id=mine-1", 600), 5)
    control(proxy, "delete", id="mine-1")
    until(lambda: declared(rig, "mine") is None, 5)


# -- workers that are recycled


def test_recycled_workers_leave_and_the_new_ones_spend_only_what_is_left(rig, started):
    """Each worker ends after some requests; the demand is several budgets."""
    proxy = started["recycled"].wait()
    ended, statuses = threading.Event(), Counter()

    def members():
        return rig.operator.members("uid-duo", "duo")

    def load():
        while not ended.is_set():
            try:
                statuses[proxy.chat(400, "duo")[0]] += 1
            except OSError:
                statuses["away"] += 1  # both are recycled at once
                time.sleep(0.1)

    def plan():
        while not ended.wait(0.5):
            rig.operator.plan("uid-duo", "duo")

    threads = [threading.Thread(target=work) for work in (load, load, plan)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(members()) >= 4, 300)
        old = {m: r for m, r in members().items() if r["ended"]}
        assert len(old) >= 2
        assert all(r["record"] == r["spent"] for r in old.values()), "only the rest came back"
        new = [m for m in members() if m not in old]
        until(lambda: sum(r["spent"] + r["denied"] for m, r in members().items() if m in new) > 2000, 30)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    mine = [a for a in rig.provider.arrivals() if a["model"] == "duo"]
    assert set(statuses) <= {200, 429, "away"}, statuses
    assert statuses[200] > 10
    assert statuses[429] > 0
    assert worst_minute(mine) <= BUDGET
    assert worst_minute(mine) > 0.8 * BUDGET, "the new ones are lent what the old ones had not spent"
    assert "tokenbudget: fault" not in proxy.text()
