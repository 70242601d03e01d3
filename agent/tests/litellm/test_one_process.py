"""One LiteLLM process with the agent: every kind of call, refusals, failures, changes while it runs, its
end."""

import concurrent.futures
import contextlib
import socket
import time

import pytest
from conftest import control, until
from support.fake_operator import limit, policy
from support.provider import worst_minute
from support.proxy import config, deployment

BUDGET = 40000
LIMITS = [
    limit(budget=BUDGET, safe=BUDGET),
    limit(name="small", budget=1000, safe=1000, modelName="small"),
    limit(name="counted", budget=None, requests=3, modelName="counted"),
    limit(name="later", budget=5000, safe=5000, modelName="later"),
    limit(name="twice", budget=1200, safe=1200, litellmModel="openai/twice-a"),
    limit(name="named", budget=5000, safe=5000, litellmModel="openai/named"),
]
POLICY = policy(LIMITS, beatMs=1000)


@pytest.fixture(scope="module")
def proxy(rig):
    base = rig.provider.base
    rig.operator.publish(POLICY)
    conf = config(
        [
            deployment(base),
            deployment(base, "small", tpm=1000),
            deployment(base, "counted", tpm=None, rpm=3),
            deployment(base, "spare", tpm=None),
            deployment(base, "free", tpm=777),
            deployment(base, "twice", model="openai/twice-a", tpm=1200, id="twice-a"),
            deployment(base, "twice", model="openai/twice-b", tpm=None, id="twice-b"),
            deployment("http://127.0.0.1:1/v1", "nobody", model="openai/gpt", tpm=None),
            deployment(base, "named", tpm=None, id="by-its-id"),
        ],
        fallbacks=[{"counted": ["spare"]}, {"nobody": ["by-its-id"]}],
        optional_pre_call_checks=["enforce_model_rate_limits"],
        **rig.litellm_redis,
    )
    conf["litellm_settings"] = {"callbacks": "control.handler"}
    return rig.start(conf, [POLICY]).wait()


def row(rig, name="gpt", unit="tokens"):
    return next(iter(rig.operator.members(name=name, unit=unit).values()))


def test_the_share_is_there_before_the_process_is_ready(rig, proxy):
    assert row(rig)["record"] > BUDGET * 0.6
    assert row(rig)["share"] == BUDGET
    report = until(
        lambda: next((r for r in rig.operator.reports().values() if r["state"] != "Starting"), None)
    )
    assert (report["state"], report["problems"]) == ("Enforcing", [])
    # What its own explicit limits name is declared all the same: they may go.
    assert [(d["modelName"], d["tokensPerMinute"]) for d in report["declared"]] == [
        ("gpt", 60000),
        ("small", 1000),
        ("counted", None),
        ("free", 777),
        ("twice", 1200),
    ]


def test_a_config_with_one_callback_as_a_string_does_not_drop_the_agent(proxy):
    assert "tokenbudget_agent" in control(proxy, "callbacks")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}),
        (
            "/v1/chat/completions",
            {
                "max_tokens": 60,
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": "hello"}],
            },
        ),
        (
            "/v1/chat/completions",
            {"max_tokens": 20, "n": 2, "messages": [{"role": "user", "content": "hello"}]},
        ),
        ("/v1/completions", {"max_tokens": 40, "prompt": "hello " * 10}),
        ("/v1/embeddings", {"input": "hello " * 50}),
        ("/v1/responses", {"max_output_tokens": 30, "input": "hello"}),
        ("/v1/responses", {"max_output_tokens": 35, "input": "hello", "stream": True}),
        ("/v1/messages", {"max_tokens": 25, "messages": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_every_kind_of_call_is_charged_what_the_provider_counted(rig, proxy, path, body):
    used, charged = charges(rig, proxy, path, body)
    assert used == charged


def charges(rig, proxy, path, body):
    """What one call costs at the provider, and what it is charged when it has settled."""
    time.sleep(1.2)
    before, counted = row(rig)["spent"], sum(a["tokens"] for a in rig.provider.arrivals())
    status, _, text = proxy.post(path, {"model": "gpt", **body})
    assert status == 200, text
    used = sum(a["tokens"] for a in rig.provider.arrivals()) - counted
    assert used > 0
    deadline = time.time() + 4
    while time.time() < deadline and row(rig)["spent"] - before != used:
        time.sleep(0.05)
    return used, row(rig)["spent"] - before


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_stream_that_reports_no_usage_keeps_what_was_reserved(rig, proxy, path):
    body = {"max_tokens": 45, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    used, charged = charges(rig, proxy, path, body)
    if proxy.version >= (1, 102):  # LiteLLM asks for it itself, and takes it out for the client
        assert charged == used
    else:
        assert charged > 45


def test_no_redis_command_on_the_request_path_inside_the_grant(rig, proxy):
    def calls():
        stats = rig.redis.client().info("commandstats")
        return sum(v["calls"] for k, v in stats.items() if k in ("cmdstat_evalsha", "cmdstat_eval"))

    until(lambda: row(rig)["record"] > 30000)
    before, start = calls(), time.time()
    for _ in range(40):
        assert proxy.chat(10)[0] == 200
    beats = (time.time() - start) / 1.0
    assert calls() - before <= beats + 1, "nothing but beats"


def test_a_refusal_is_a_fast_429_with_a_true_retry_after_and_no_cooldown(rig, proxy):
    assert proxy.chat(800, "small")[0] == 200
    start = time.time()
    status, headers, text = proxy.chat(800, "small")
    assert time.time() - start < 1.5, "LiteLLM's retries would take 4 s"
    assert status == 429
    headers = {k.lower(): v for k, v in headers.items()}
    assert 55 <= int(headers["retry-after"]) <= 60
    assert headers["x-tokenbudget-limit"] == "llm/test/small"
    assert '"type":"rate_limit_error"' in text
    assert '"code":"429"' in text
    assert "TokenBudget llm/test: limit small" in text
    assert proxy.chat(20, "small")[0] == 200, "what fits is admitted: no cooldown"
    assert control(proxy, "cooldowns") == []
    assert "Traceback" not in proxy.text()
    until(lambda: row(rig, "small")["denied"] > 800, 3)


def test_bigger_than_the_whole_budget(proxy):
    status, headers, text = proxy.chat(5000, "small")
    assert status == 429
    assert "can never be admitted" in text
    assert "retry-after" not in {k.lower() for k in headers}


def test_requests_are_limited_too_and_fallbacks_are_used(rig, proxy):
    served = [proxy.chat(10, "counted") for _ in range(5)]
    assert [s for s, _, _ in served] == [200] * 5
    models = [a["model"] for a in rig.provider.arrivals()[-5:]]
    assert models == ["counted"] * 3 + ["spare"] * 2


def test_a_deployment_without_room_leaves_the_work_to_another(rig, proxy):
    assert [proxy.chat(500, "twice")[0] for _ in range(8)] == [200] * 8
    models = [a["model"] for a in rig.provider.arrivals()[-8:]]
    assert 1 <= models.count("twice-a") <= 2


def test_a_fallback_that_names_a_deployment_settles(rig, proxy):
    """LiteLLM asks no filter then: the reservation is of the request all the same."""
    assert proxy.chat(2000, "nobody")[0] == 200
    used = rig.provider.arrivals()[-1]["tokens"]
    until(lambda: row(rig, "named")["spent"] == used, 5)


def test_requests_of_one_call_id_end_their_own_charges(rig, proxy):
    """A client may choose it: here one request is refused by the provider while the other is answered."""
    time.sleep(1.2)
    before, seen = row(rig)["spent"], len(rig.provider.arrivals())
    chosen = {"x-litellm-call-id": "mine"}
    slow = {"model": "gpt", "max_tokens": 3000, "messages": [{"role": "user", "content": "inject:slow"}]}
    quick = {**slow, "max_tokens": 100, "messages": [{"role": "user", "content": "inject:429"}]}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(proxy.post, "/v1/chat/completions", slow, headers=chosen)
        until(lambda: row(rig)["spent"] > before + 3000, 1.8)
        refused = proxy.post("/v1/chat/completions", {**quick, "num_retries": 0}, headers=chosen)
        assert refused[0] == 429
        assert not answer.done()
        assert row(rig)["spent"] > before + 3000, "the other one still holds what it reserved"
        status, headers, text = answer.result()
    assert status == 200, text
    assert headers["x-litellm-call-id"] == "mine", "and nobody renames it"
    (used,) = [a["tokens"] for a in rig.provider.arrivals()[seen:] if a["status"] == 200]
    until(lambda: row(rig)["spent"] - before == used, 5)


def test_a_429_of_the_provider_gives_the_tokens_back(rig, proxy):
    time.sleep(1.2)
    before = row(rig)["spent"]
    rig.provider.set(status=429)
    assert proxy.chat(3000, num_retries=0)[0] == 429
    rig.provider.set(status=500)
    time.sleep(1.2)
    assert row(rig)["spent"] == before
    until(lambda: control(proxy, "cooldowns") == [], 15)
    proxy.chat(2000, num_retries=0)
    rig.provider.set(status=200)
    until(lambda: row(rig)["spent"] >= before + 2000, 5)  # it may have been counted: the charge stays


def test_a_client_that_disconnects_keeps_its_charge(rig, proxy):
    until(lambda: proxy.chat(10)[0] == 200, 15)
    rig.provider.set(chunks=50, chunk_delay=0.1)
    time.sleep(1.2)
    before = row(rig)["spent"]
    proxy.hang_up(
        "/v1/chat/completions",
        {"model": "gpt", "max_tokens": 4000, "stream": True, "messages": [{"role": "user", "content": "x"}]},
        after=1.0,
    )
    rig.provider.set(chunks=1, chunk_delay=0)
    time.sleep(2)
    assert row(rig)["spent"] >= before


def test_a_connection_that_takes_too_long_keeps_nothing(rig, proxy):
    """What is raised then leads to the request's task."""
    with contextlib.ExitStack() as open_:
        server = open_.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):  # more than may wait until they are accepted, which nobody does
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        base = "http://127.0.0.1:%d/v1" % server.getsockname()[1]
        added = deployment(base, "silent", tpm=None, model="openai/named", id="silent-1")
        added["litellm_params"].update(timeout=0.5, max_retries=0)
        control(proxy, "add", deployment=added)
        assert proxy.chat(10, "silent", num_retries=0)[0] == 408
        served = [proxy.chat(10, "silent", num_retries=0, fallbacks=["spare"])[0] for _ in range(8)]
        assert served == [200] * 8
    control(proxy, "delete", id="silent-1")
    # LiteLLM's own router keeps the last four in 1.82.6 (Router.previous_models).
    until(lambda: max(control(proxy, "kept")) <= 4, 5)


def test_a_model_added_while_running_is_governed_at_once_and_a_reload_too(rig, proxy):
    added = deployment(rig.provider.base, "later", tpm=5000, id="later-1")
    control(proxy, "add", deployment=added)
    assert proxy.chat(3000, "later")[0] == 200
    assert proxy.chat(3000, "later")[0] == 429
    until(lambda: control(proxy, "limits")["later-1"][0] == 5000, 2)
    control(proxy, "reload")
    until(lambda: control(proxy, "limits")["later-1"][0] == 5000, 2)
    assert proxy.chat(3000, "later")[0] == 429


def test_detached_restores_everything(rig, proxy):
    shown = control(proxy, "limits")
    governed = [v for v in shown.values() if v != [None, None]]
    assert len(governed) >= 5
    rig.operator.detach("uid-1")
    until(lambda: all(v == [None, None] for v in control(proxy, "limits").values()), 4)
    assert control(proxy, "caches")["local"] is False
    assert proxy.chat(10)[0] == 200


def test_the_log_has_no_traceback_of_ours_and_the_worst_minute_holds(rig, proxy):
    assert "tokenbudget: fault" not in proxy.text()
    mine = [a for a in rig.provider.arrivals() if a["model"] == "gpt"]
    assert worst_minute(mine) <= BUDGET
