"""Calls of LiteLLM that are no request for a model's work, or more than one: what is done with an answer that
is there, mirrored requests, the counting of tokens, Gemini's way of asking."""

import json
import time
import urllib.request

import pytest
from conftest import until
from support.fake_operator import limit, policy
from support.proxy import KEY, config, deployment

BUDGET = 40000
POLICY = policy(
    [
        limit(budget=BUDGET, safe=BUDGET),
        limit(name="shadow", budget=BUDGET, safe=BUDGET, modelName="shadow"),
        limit(name="full", budget=1000, safe=1000, modelName="full"),
    ],
    beatMs=300,
)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def proxy(rig):
    base = rig.provider.base
    rig.operator.publish(POLICY)
    mirrored = deployment(base, "mirrored", tpm=None)
    mirrored["litellm_params"]["silent_model"] = "shadow"
    models = [deployment(base), mirrored, deployment(base, "shadow", tpm=None), deployment(base, "full")]
    return rig.start(config(models, routing_strategy="simple-shuffle"), [POLICY]).wait()


def row(rig, name="gpt", unit="tokens"):
    return next(iter(rig.operator.members(name=name, unit=unit).values()))


def fetch(proxy, method, path):
    request = urllib.request.Request(
        f"http://127.0.0.1:{proxy.port}{path}", method=method, headers={"authorization": "Bearer " + KEY}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_an_answer_that_is_fetched_again_is_charged_once(rig, proxy):
    """Its deployment is in its id: LiteLLM asks the check alone."""
    until(lambda: row(rig)["record"] > 20000)
    status, _, text = proxy.post("/v1/responses", {"model": "gpt", "max_output_tokens": 30, "input": "hello"})
    assert status == 200, text
    (used,) = [a["tokens"] for a in rig.provider.arrivals()]
    until(lambda: row(rig)["spent"] == used)
    answer = json.loads(text)["id"]
    for _ in range(3):
        assert fetch(proxy, "GET", "/v1/responses/" + answer)["usage"]["total_tokens"] == 4000
    assert fetch(proxy, "POST", f"/v1/responses/{answer}/cancel")
    assert proxy.chat(10)[0] == 200
    used = sum(a["tokens"] for a in rig.provider.arrivals())
    until(lambda: row(rig)["spent"] == used, 4)


def test_a_mirrored_request_is_charged_what_it_used(rig, proxy):
    """LiteLLM takes its call id out, and makes another after the check."""
    until(lambda: row(rig, "shadow")["record"] > 20000)
    start = len(rig.provider.arrivals())
    assert proxy.chat(3000, "mirrored")[0] == 200

    def counted():
        return [a["tokens"] for a in rig.provider.arrivals()[start:] if a["model"] == "shadow"]

    until(counted)
    until(lambda: [row(rig, "shadow")["spent"]] == counted(), 5)


def test_a_full_limit_does_not_refuse_to_count_tokens(rig, proxy):
    assert proxy.chat(900, "full")[0] == 200
    assert proxy.chat(900, "full")[0] == 429
    denied = until(lambda: row(rig, "full")["denied"])
    status, _, text = proxy.post("/v1/messages/count_tokens", {"model": "full", "messages": HELLO})
    assert status == 200, text
    time.sleep(1)  # some beats
    assert row(rig, "full")["denied"] == denied


def test_geminis_way_of_asking_is_charged_by_what_it_says(rig, proxy):
    """Of a provider that is not Gemini LiteLLM tells no usage: it fails in its own code."""
    until(lambda: row(rig)["record"] > 20000)
    before, start = row(rig)["spent"], len(rig.provider.arrivals())
    body = {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "generationConfig": {"maxOutputTokens": 50},
    }
    status, _, text = proxy.post("/v1beta/models/gpt:generateContent", body)
    assert status == 200, text
    used = sum(a["tokens"] for a in rig.provider.arrivals()[start:])
    assert used
    until(lambda: used <= row(rig)["spent"] - before < used + 20, 5)


def test_nothing_failed(proxy):
    assert "tokenbudget: fault" not in proxy.text()
