"""Redis is lost under load, a process is added meanwhile, Redis comes back: SafeShare and Open (design
section 5, rules 6, 7 and 9). Two models of the same processes, each with a TokenBudget of its own, so one
outage shows both. Redis is gone for 180 s and comes back empty, and the fleet is followed until the ledger
lends again. LiteLLM itself has no Redis here: how it does without its own is not the agent's.

Takes 8 minutes, so `make test-matrix` runs it. A process that loses Redis, or starts without, is in
test_faults.py too.
"""

import os
import time
from collections import Counter

import pytest
import redis
from conftest import Rig, until
from support.fake_operator import limit, policy
from support.load import Traffic
from support.planner import Planner
from support.provider import worst_minute
from support.proxy import config, deployment

pytestmark = pytest.mark.skipif(
    "TOKENBUDGET_MATRIX" not in os.environ, reason="takes minutes: make test-matrix"
)

LEASE = 30
HOLD = 65
OUTAGE = 180
MOST = 4  # maxReplicas
BUDGET = 60000
SAFE = BUDGET // MOST
OWN = 24000  # of the model whose policy is Open: LiteLLM's own limit, and the budget
LARGEST = 1000  # max_tokens of a request
RATES = {
    "safe": 4,
    "open": 1.5,
}  # requests a second for each process: together nine and six times the budgets
NEW = "p3"

POLICIES = {
    name: policy(
        [limit(name, budget, budget // MOST, modelName=name)],
        uid=f"uid-{name}",
        tokenBudget=f"llm/{name}",
        leaseMs=1000 * LEASE,
        onLedgerLoss=on_loss,
    )
    for name, budget, on_loss in (("safe", BUDGET, "SafeShare"), ("open", OWN, "Open"))
}


class Losing(Rig):
    """A rig with the operator's real scripts, whose Redis can be lost."""

    def __init__(self, directory):
        self.planners = []
        super().__init__(directory)
        self.planners = [Planner(self.redis.client(), pol, MOST) for pol in POLICIES.values()]

    def tick(self):
        while not self.stopped.wait(1):
            for planner in self.planners:
                try:
                    planner.tick(len(self.proxies))
                except redis.RedisError:
                    pass

    def add(self):
        models = [
            deployment(self.provider.base, name, tpm=tpm) for name, tpm in (("safe", BUDGET), ("open", OWN))
        ]
        return self.start(config(models, num_retries=0, disable_cooldowns=True), list(POLICIES.values()))

    def rows(self, name):
        """What the ledger has of each process."""
        return {m.split(".")[0][4:]: f for m, f in self.operator.members(f"uid-{name}", name).items()}

    def reports(self, name):
        return {r["pod"]: r for r in self.operator.reports(f"uid-{name}").values()}


class Outage:
    """What happened, and when: Redis was lost, every lease was over, the new process began, Redis came back,
    every process had its answer."""

    def __init__(self, rig):
        self.rig = rig
        proxies = [rig.add() for _ in range(3)]
        for proxy in proxies:
            proxy.wait()
        until(lambda: all(len(rig.rows(name)) == 3 for name in POLICIES), 20)
        rig.provider.set(latency=0.2)
        self.traffic = Traffic()
        try:
            self.play(proxies)
        finally:
            self.traffic.stop()
        self.arrivals, self.answers = rig.provider.arrivals(), self.traffic.answers
        self.ended = time.time()

    def play(self, proxies):
        begun = time.time()
        for proxy in proxies:
            self.load(proxy)
        until(lambda: sum(row["spent"] for row in self.rig.rows("safe").values()) > 0.9 * BUDGET, 60)
        self.reach(begun + 75)  # the last 60 s begin when the first have spent the whole budget
        self.rig.redis.stop()
        self.lost = time.time()
        self.over = self.lost + LEASE + 1
        self.reach(self.lost + 40)
        proxy = self.rig.add()
        proxies.append(proxy)
        self.load(proxy.wait())
        self.reach(self.lost + OUTAGE)
        self.back = time.time()
        self.rig.redis.start()
        until(self.answered, 30)
        self.found = time.time()
        self.reports = {name: self.rig.reports(name) for name in POLICIES}
        self.started = self.reports["safe"][NEW]["startedMs"] / 1000
        until(lambda: not any(planner.learning for planner in self.rig.planners), LEASE + HOLD + 20)
        self.reach(time.time() + 75)

    def reach(self, at):
        """The load goes on until then."""
        time.sleep(max(0, at - time.time()))

    def load(self, proxy):
        for model, rate in RATES.items():
            self.traffic.join(proxy, model, rate, (200, LARGEST))

    def answered(self):
        """Every process has called the ledger for both, and has said what it went through; the ledger
        learns."""
        for name in POLICIES:
            rows, reports = self.rig.rows(name), self.rig.reports(name)
            if len(rows) < MOST or len(reports) < MOST or not all(r["problems"] for r in reports.values()):
                return False
        if not all(planner.learning for planner in self.rig.planners):  # rule 9
            return False
        return all("the ledger answers again" in proxy.text() for proxy in self.rig.proxies)

    def between(self, model, start, end, process=None):
        return [
            a
            for a in self.arrivals
            if a["model"] == model and start <= a["at"] < end and process in (None, a["tag"])
        ]


def say(text):
    print(text)  # noqa: T201


@pytest.fixture(scope="module")
def outage(tmp_path_factory):
    rig = Losing(tmp_path_factory.mktemp("loss"))
    try:
        yield Outage(rig)
    finally:
        rig.stop()


def test_every_answer_is_200_or_429(outage):
    counts = Counter((model, status) for _, _, model, status, _ in outage.answers)
    say(f"Redis was away for {outage.back - outage.lost:.0f} s; {dict(counts)}")
    assert {status for _, status in counts} == {200, 429}
    for proxy in outage.rig.proxies:
        assert "tokenbudget_agent.py" not in proxy.text(), "no traceback of the agent's"
        assert "the ledger does not answer" in proxy.text()


# ---------------------------------------------------------------- SafeShare


def test_safe_share_never_lets_more_than_the_budget_through(outage):
    """Any 60 s: while Redis is there, across its loss, without it, and when it has come back."""
    worst = worst_minute(outage.between("safe", 0, outage.ended))
    say(f"SafeShare: worst 60 s {worst} of {BUDGET} tokens")
    assert 0.9 * BUDGET < worst <= BUDGET


def test_without_the_ledger_each_process_uses_its_safe_share(outage):
    for process in ("p0", "p1", "p2"):
        used = worst_minute(outage.between("safe", outage.over, outage.back, process))
        say(f"SafeShare: {process} at most {used} of {SAFE} tokens in 60 s without the ledger")
        assert 0.9 * SAFE < used <= SAFE


def test_a_process_that_never_heard_the_ledger_admits_nothing_until_all_have_lost_it(outage):
    """Rule 7: for the lease and 65 s after its start, and then its safe share; it says who refused."""
    free = outage.started + LEASE + HOLD
    mine = [
        (at, status, h) for at, name, model, status, h in outage.answers if (name, model) == (NEW, "safe")
    ]
    early = [(status, "x-tokenbudget-limit" in headers) for at, status, headers in mine if at < free]
    first = min(a["at"] for a in outage.between("safe", 0, outage.ended, NEW))
    used = worst_minute(outage.between("safe", 0, outage.back, NEW))
    say(f"SafeShare: the new process refused {len(early)} requests for {first - outage.started:.1f} s")
    say(f"SafeShare: then it used {used} of {SAFE} tokens")
    assert len(early) > 30
    assert set(early) == {(429, True)}
    assert free <= first < outage.back
    assert 0.85 * SAFE < used <= SAFE


def test_safe_share_is_said(outage):
    said = "lease of llm/safe is over: this process admits only up to its offline amount"
    for report in outage.reports["safe"].values():
        assert (report["state"], said in report["problems"]) == ("Degraded", True), report
    for proxy in outage.rig.proxies:
        assert said.replace(":", ";") in proxy.text()


def test_use_in_the_steady_minutes_of_each_phase(outage):
    """Before the loss, without the ledger and the new process, while the ledger learns, after. Tokens come
    back in bursts a little more than 60 s apart, so one given minute may miss the edge of one: the fullest
    60 s of the last 75 count."""
    free = outage.started + LEASE + HOLD
    phases = {  # the end of each, and what is to be used at least
        "before": (outage.lost, 0.95 * BUDGET),
        "without the ledger": (free, 0.9 * 3 * SAFE),
        "while it learns": (outage.found + LEASE + HOLD - 5, 0.9 * BUDGET),
        "after": (outage.ended - 2, 0.95 * BUDGET),
    }
    used = {name: worst_minute(outage.between("safe", end - 75, end)) for name, (end, _) in phases.items()}
    say(f"SafeShare: tokens in 60 s {used}")
    assert {name: used[name] >= least for name, (_, least) in phases.items()} == dict.fromkeys(phases, True)


# ---------------------------------------------------------------- Open


def test_open_leaves_litellms_own_limit_in_every_process(outage):
    """LiteLLM counts by calendar minute, when an answer has come: a few requests are on their way."""
    minutes, together = Counter(), Counter()
    for a in outage.between("open", outage.over, outage.back):
        minutes[a["tag"], a["at"] // 60] += a["tokens"]
        together[a["at"] // 60] += a["tokens"]
    say(f"Open: tokens a minute {sorted(together.values())}, of one process {max(minutes.values())} of {OWN}")
    assert max(minutes.values()) <= OWN + 4 * LARGEST
    assert max(together.values()) >= 0.9 * 3 * OWN, "every process for itself"
    assert any(tag == NEW for tag, _ in minutes), "the new one, too"


def test_open_is_said(outage):
    said = "lease of llm/open is over: onLedgerLoss is Open: LiteLLM's own limit, in every process"
    for report in outage.reports["open"].values():
        assert (report["state"], said in report["problems"]) == ("Degraded", True), report
    for proxy in outage.rig.proxies:
        assert said.replace("over:", "over;") in proxy.text()


def test_open_is_governed_again_when_the_ledger_is_back(outage):
    refusals = Counter(
        (name, "x-tokenbudget-limit" in headers)
        for at, name, model, status, headers in outage.answers
        if model == "open" and status == 429 and at > outage.found + 1
    )
    worst = worst_minute(outage.between("open", outage.found, outage.ended))
    say(f"Open: worst 60 s after the ledger's return {worst} of {OWN} tokens; refusals {dict(refusals)}")
    assert set(refusals) == {(proxy.name, True) for proxy in outage.rig.proxies}
    assert 0.9 * OWN < worst <= OWN
