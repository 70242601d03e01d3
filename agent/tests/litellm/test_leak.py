"""No reservation is lost or kept for ever, and none is charged wrongly: requests that end in every way.

TOKENBUDGET_REQUESTS=10000 for the long run (`make test` sends 1,500).
"""

import asyncio
import os
import random
import time
import uuid
from collections import Counter, defaultdict

import pytest
from conftest import control, until
from support import load
from support.fake_operator import limit, policy
from support.proxy import config, deployment

REQUESTS = int(os.environ.get("TOKENBUDGET_REQUESTS", "1500"))
AT_ONCE = 20
PLENTY = 10**9
NOWHERE = "http://127.0.0.1:1/v1"
CHAT = "/v1/chat/completions"
ALL = [CHAT, CHAT, CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]
STREAMS = [CHAT, CHAT, "/v1/responses", "/v1/messages"]

# How an attempt ends: the provider told the usage; it may have counted, nobody knows what; it refused it,
# which is a request and no tokens; it never came there.
REPORTED, UNKNOWN, BACK, NEVER = "reported", "unknown", "given back", "never sent"


class Kind:
    """One way for a request to end: how often, what it sends, what the client gets, what becomes of its
    attempts."""

    def __init__(self, weight, attempts, *statuses, paths=(CHAT,), inject="", model="gpt", leaves="", **body):
        self.weight, self.attempts, self.statuses, self.paths = weight, attempts, statuses, paths
        self.inject, self.model, self.leaves, self.body = inject, model, leaves, body


STREAM = {"stream": True, "paths": STREAMS}
KINDS = {
    "answered": Kind(30, [("gpt", REPORTED)], 200, paths=ALL),
    "streamed": Kind(20, [("gpt", REPORTED)], 200, **STREAM),
    "failed": Kind(8, [("gpt", UNKNOWN)], 500, inject="500"),
    "refused": Kind(8, [("gpt", BACK)], 429, inject="429"),
    "unreachable": Kind(6, [("nobody", NEVER)], 500, model="nobody"),
    "left while it streamed": Kind(6, [("gpt", UNKNOWN)], 200, inject="drip", leaves="first", **STREAM),
    "left before it streamed": Kind(3, [("gpt", UNKNOWN)], 0, inject="slow-drip", leaves="early", **STREAM),
    "left before the answer": Kind(3, [("gpt", REPORTED)], 0, inject="slow", leaves="early"),
    "cut by the provider": Kind(3, [("gpt", UNKNOWN)], 200, 500, inject="cut", **STREAM),
    "timed out": Kind(4, [("gpt", UNKNOWN)], 408, 504, inject="slow", timeout=0.5),
    "retried": Kind(6, [("gpt", UNKNOWN), ("gpt", REPORTED)], 200, inject="500-once", num_retries=1),
    "retried in vain": Kind(3, [("gpt", UNKNOWN), ("gpt", UNKNOWN)], 500, inject="500", num_retries=1),
    "fell back": Kind(5, [("flaky", UNKNOWN), ("spare", REPORTED)], 200, inject="500-once", model="flaky"),
    "fell back from a refusal": Kind(
        3, [("flaky", BACK), ("spare", REPORTED)], 200, inject="429-once", model="flaky"
    ),
    "fell back from nowhere": Kind(3, [("away", NEVER), ("spare", REPORTED)], 200, model="away"),
}


class Sent:
    """One request: what kind it is, its call id (which the prompt has in it), what the client got."""

    def __init__(self, kind, rng):
        self.kind, self.call_id = kind, uuid.UUID(int=rng.getrandbits(128)).hex
        self.status = self.text = None
        how = KINDS[kind]
        words = f"tag:{self.call_id} inject:{how.inject or 'nothing'} " + "hello there " * rng.randint(1, 30)
        most, self.path = rng.randint(10, 300), rng.choice(how.paths)
        given = {
            "/v1/completions": {"prompt": words, "max_tokens": most},
            "/v1/embeddings": {"input": words},
            "/v1/responses": {"input": words, "max_output_tokens": most},
        }.get(self.path, {"messages": [{"role": "user", "content": words}], "max_tokens": most})
        self.body = {"model": how.model, **given, **how.body}
        if self.path == CHAT and "stream" in how.body:
            self.body["stream_options"] = {"include_usage": True}

    async def go(self, port):
        headers = f"x-litellm-call-id: {self.call_id}\r\n"
        leaves = KINDS[self.kind].leaves
        if not leaves:
            try:
                self.status, _, self.text, _ = await load.post(port, self.path, self.body, headers)
            except (OSError, IndexError) as error:
                self.status, self.text = 0, f"no answer: {error!r}"
            return
        reader, writer = await load.send(port, self.path, self.body, headers)
        if leaves == "first":  # the first chunk of 50 is there
            head = await reader.readuntil(b"data:")
            self.status = int(head.split()[1])
        else:
            await asyncio.sleep(1)
            self.status = 0
        writer.transport.abort()


async def send_all(port, sent):
    """All of them, so many at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(request):
        async with places:
            await request.go(port)

    await asyncio.gather(*(one(request) for request in sent))


class Run:
    """What was sent, what the agent charged for it, what the provider counted."""

    def __init__(self, rig):
        names = ["gpt", "spare", "flaky", "nobody", "away"]
        pol = policy([limit(name, PLENTY, PLENTY, requests=3 * PLENTY) for name in names])
        rig.operator.publish(pol)
        bases = {"nobody": NOWHERE, "away": NOWHERE}
        conf = config(
            [deployment(bases.get(name, rig.provider.base), name, tpm=PLENTY, rpm=PLENTY) for name in names],
            fallbacks=[{"flaky": ["spare"]}, {"away": ["spare"]}],
            num_retries=0,
            disable_cooldowns=True,
            **rig.litellm_redis,
        )
        self.proxy = rig.start(conf, [pol]).wait()
        control(self.proxy, "watch")
        rng = random.Random(4)
        kinds = rng.choices(list(KINDS), [kind.weight for kind in KINDS.values()], k=REQUESTS)
        self.sent = [Sent(kind, rng) for kind in kinds]
        start = time.time()
        asyncio.run(send_all(self.proxy.port, self.sent))
        self.seconds = time.time() - start
        # Sooner than the bounds after which the agent gives an attempt up by itself (120 s and 900 s).
        try:
            until(self.ended, 60)
        except AssertionError:
            pass  # the first test says what is open
        self.open = control(self.proxy, "open")
        self.attempts, self.arrivals = defaultdict(list), defaultdict(list)
        for row in control(self.proxy, "charged"):
            self.attempts[row["call_id"]].append(row)
        for arrival in rig.provider.arrivals():
            self.arrivals[arrival["tag"]].append(arrival)

    def ended(self):
        found = control(self.proxy, "open")
        return found["attempts"] == found["never ended"] == found["waiting"] == 0

    def rows(self, how):
        """(request, reserved, charged) of the attempts that ended so."""
        for request, row in self.pairs():
            if row["how"] == how:
                yield request, row["reserved"], row["charged"]

    def pairs(self):
        return [(request, row) for request in self.sent for row in self.attempts[request.call_id]]


@pytest.fixture(scope="module")
def run(rig):
    return Run(rig)


def test_nothing_is_open_when_everything_has_ended(run):
    print(f"{REQUESTS} requests in {run.seconds:.0f} s")  # noqa: T201
    stuck = Counter((request.kind, row["model"]) for request, row in run.pairs() if row["how"] == "open")
    assert not stuck, stuck
    assert run.open["attempts"] == run.open["never ended"] == run.open["waiting"] == 0, run.open
    assert all(abs(amount) < 1e-6 for amount in run.open["unsent"].values()), run.open
    assert all(abs(amount) < 1e-6 for amount in run.open["wrong"].values()), run.open


def test_the_clients_got_what_each_kind_of_request_gets(run):
    got = Counter((request.kind, request.status) for request in run.sent)
    wrong = {key: count for key, count in got.items() if key[1] not in KINDS[key[0]].statuses}
    assert not wrong, (wrong, next(r.text for r in run.sent if (r.kind, r.status) in wrong))
    assert {kind for kind, _ in got} == set(KINDS)


def test_every_attempt_ends_as_what_became_of_it_says(run):
    assert set(run.attempts) == {request.call_id for request in run.sent}, "and there are no others"
    wrong = Counter()
    for request in run.sent:
        found = [(row["model"], row["how"]) for row in run.attempts[request.call_id]]
        if found != KINDS[request.kind].attempts:
            wrong[request.kind, request.path, str(found)] += 1
    assert not wrong, wrong


def test_what_is_charged_is_what_the_provider_counted_where_it_told(run):
    charged, counted, wrong = 0, 0, []
    for request, _, amounts in run.rows(REPORTED):
        (arrival,) = [a for a in run.arrivals[request.call_id] if a["status"] == 200]
        charged, counted = charged + amounts["tokens"], counted + arrival["tokens"]
        if amounts["tokens"] != arrival["tokens"]:
            wrong.append((request.kind, request.path, amounts["tokens"], arrival["tokens"]))
    print(f"usage reported: charged {charged:.0f} tokens, the provider counted {counted}")  # noqa: T201
    assert counted > 50 * REQUESTS
    assert abs(charged - counted) <= 0.001 * counted, wrong[:20]


def test_what_may_have_counted_keeps_its_reservation(run):
    sums = defaultdict(lambda: [0, 0.0, 0])
    for request, reserved, charged in run.rows(UNKNOWN):
        assert charged == reserved, request.kind
        row, arrivals = sums[request.kind], run.arrivals[request.call_id]
        row[0], row[1] = row[0] + 1, row[1] + charged["tokens"]
        row[2] += arrivals[0]["tokens"] if arrivals else 0  # what comes again has the same size
    for kind, (count, charged, counted) in sums.items():
        print(f"usage unknown: {kind:24} {count:5} kept {charged:8.0f}, counted {counted:8}")  # noqa: T201
        assert charged >= counted, "never less than the provider may have counted"


def test_what_did_not_count_was_given_back(run):
    refused, never = list(run.rows(BACK)), list(run.rows(NEVER))
    print(f"given back: {len(refused)} refused by the provider, {len(never)} never sent")  # noqa: T201
    assert all(charged == {"tokens": 0, "requests": 1} for _, _, charged in refused)
    assert all(charged == {"tokens": 0, "requests": 0} for _, _, charged in never)
    assert all(reserved["tokens"] > 0 for _, reserved, _ in refused + never)


def test_every_request_that_came_to_the_provider_is_charged_as_one(run):
    charged = Counter()
    for request, row in run.pairs():
        charged[request.call_id] += int(row["charged"]["requests"])
    came = Counter({tag: len(arrivals) for tag, arrivals in run.arrivals.items()})
    kinds = {request.call_id: request.kind for request in run.sent}
    more = Counter(kinds[tag] for tag in charged - came)
    fewer = Counter(kinds[tag] for tag in came - charged)
    assert not fewer, f"came and were not charged: {fewer}"
    assert not more, f"were charged and never came: {more}"
    print(f"{sum(came.values())} requests came to the provider")  # noqa: T201


def test_the_log_has_no_fault_of_ours(run):
    assert "tokenbudget: fault" not in run.proxy.text()
