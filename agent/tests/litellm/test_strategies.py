"""Every routing strategy: what is charged, who is preferred, how it is refused, by all names of a deployment.

`make test` runs each strategy once; TOKENBUDGET_MATRIX=1 each with and without enforce_model_rate_limits.
"""

import os
import time

import pytest
from conftest import control, until
from support.fake_operator import limit, policy
from support.proxy import config, deployment

STRATEGIES = [
    "simple-shuffle",
    "least-busy",
    "latency-based-routing",
    "cost-based-routing",
    "usage-based-routing-v2",
    "usage-based-routing",
]
LEGACY = "usage-based-routing"  # LiteLLM picks without asking the filter
CELLS = [(name, at % 2 == 0) for at, name in enumerate(STRATEGIES)]
if os.environ.get("TOKENBUDGET_MATRIX"):
    CELLS = [(name, enforced) for name in STRATEGIES for enforced in (True, False)]


def rules():
    return [
        limit(name="gpt", budget=40000, safe=40000),
        limit(name="room", budget=1200, safe=1200, litellmModel="openai/room-a"),
        limit(name="wild", budget=2000, safe=2000, modelName="wild/*"),
        limit(name="small", budget=1000, safe=1000, modelName="small"),
        limit(name="named", budget=1000, safe=1000, id="by-id"),
        limit(name="tight", budget=30000, safe=30000, modelName="both"),
        limit(name="tighter", budget=None, requests=2, modelName="both"),
    ]


@pytest.fixture(scope="module")
def proxies(rig):
    """One proxy for each cell, started together: booting is most of the time."""
    base, started = rig.provider.base, {}
    for strategy, enforced in CELLS:
        uid = f"{strategy}-{int(enforced)}"
        pol = policy(rules(), uid=uid, beatMs=300)
        rig.operator.publish(pol)
        conf = config(
            [
                deployment(base),
                deployment(base, "room", model="openai/room-a", tpm=1200, id="room-a"),
                deployment(base, "room", model="openai/room-b", tpm=None, id="room-b"),
                deployment(base, "wild/*", model="openai/*", tpm=2000),
                deployment(base, "small", tpm=1000),
                deployment(base, "spare", tpm=None),
                deployment(base, "named", tpm=1000, id="by-id"),
                deployment(base, "both", tpm=30000, id=f"both-{uid}"),  # cells share LiteLLM's counters
            ],
            routing_strategy=strategy,
            model_group_alias={"nick": "gpt"},
            fallbacks=[{"small": ["spare"]}],
            **({"optional_pre_call_checks": ["enforce_model_rate_limits"]} if enforced else {}),
            **rig.litellm_redis,
        )
        started[(strategy, enforced)] = rig.start(conf, [pol])
    for proxy in started.values():
        proxy.wait()
    return started


@pytest.fixture(params=CELLS, ids=lambda cell: f"{cell[0]}{'+enforced' if cell[1] else ''}")
def cell(request, rig, proxies):
    strategy, enforced = request.param
    return Cell(rig, proxies[request.param], strategy, f"{strategy}-{int(enforced)}")


class Cell:
    """One proxy, its books and what it sends to the provider."""

    def __init__(self, rig, proxy, strategy, uid):
        self.rig, self.proxy, self.strategy, self.uid = rig, proxy, strategy, uid

    def spent(self, name, unit="tokens"):
        rows = self.rig.operator.members(uid=self.uid, name=name, unit=unit)
        return sum(member["spent"] for member in rows.values())

    def sent(self, start=0):
        return self.rig.provider.arrivals()[start:]

    def settles(self, name, tokens):
        until(lambda: self.spent(name) == tokens, 5)


def test_what_is_charged_is_what_the_provider_counted(cell):
    before, start = cell.spent("gpt"), len(cell.sent())
    for model in ("gpt", "nick", "gpt"):
        assert cell.proxy.chat(50, model)[0] == 200
    assert [a["model"] for a in cell.sent(start)] == ["gpt"] * 3, "nick is an alias"
    cell.settles("gpt", before + sum(a["tokens"] for a in cell.sent(start)))


def test_the_deployment_with_room_gets_the_work(cell):
    start = len(cell.sent())
    statuses = [cell.proxy.chat(500, "room")[0] for _ in range(6)]
    models = [a["model"] for a in cell.sent(start)]
    assert models.count("room-a") <= 2, "never above its budget"
    if cell.strategy == LEGACY:
        assert set(statuses) <= {200, 429}
    else:
        assert statuses == [200] * 6


def test_a_wildcard_is_one_limit(cell):
    assert [cell.proxy.chat(700, f"wild/{name}")[0] for name in ("x", "y", "z")] == [200, 200, 429]


def test_a_deployment_called_by_its_id(cell):
    assert [cell.proxy.chat(600, "by-id")[0] for _ in range(2)] == [200, 429]


def test_a_refusal_falls_back_and_cools_nothing_down(cell):
    start = len(cell.sent())
    assert [cell.proxy.chat(600, "small")[0] for _ in range(3)] == [200] * 3
    assert [a["model"] for a in cell.sent(start)] == ["small", "spare", "spare"]
    assert control(cell.proxy, "cooldowns") == []


def test_of_several_limits_the_one_without_room_refuses(cell):
    statuses = [cell.proxy.chat(10, "both")[0] for _ in range(2)]
    if cell.strategy == LEGACY:  # it also holds the share against its own count of the calendar minute
        assert statuses[0] == 200
        return
    assert statuses == [200, 200]
    start = time.time()
    status, headers, text = cell.proxy.chat(10, "both")
    assert time.time() - start < 1.5
    assert status == 429
    assert "limit tighter (2 requests per minute" in text
    assert {k.lower(): v for k, v in headers.items()}["x-tokenbudget-limit"] == "llm/test/tighter"
    assert cell.spent("tighter", "requests") == 2
    assert cell.spent("tight") > 20


def test_it_is_said_where_the_router_asks_for_no_room(cell):
    def problems():
        reports = cell.rig.operator.reports(uid=cell.uid)
        return [r["problems"] for r in reports.values() if r["state"] != "Starting"]

    (found,) = until(problems)
    if cell.strategy == LEGACY:
        assert [text for text in found if "usage-based-routing" in text], found
    else:
        assert found == []


def test_the_log_is_clean(cell):
    text = cell.proxy.text()
    assert "tokenbudget: fault" not in text
    assert "tokenbudget_agent.Refused" not in text, "no traceback of a refusal"
