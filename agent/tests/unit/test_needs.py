"""What a request is reserved for, before it runs."""

import random

import pytest
from support.calls import DEPLOYMENT, MESSAGES, books


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 300}, 300),
        ({"max_output_tokens": 70}, 70),
        ({"max_tokens": 100, "n": 3}, 300),
        ({}, 1000),
    ],
)
def test_the_output_that_is_reserved(tb, agent, data, expected):
    request = tb.Request(tb.Called("a", None, (0.0, {}, "acompletion")), data, MESSAGES)
    need = agent.estimates.need(request, DEPLOYMENT, books(agent)["tokens"])
    assert expected < need < expected + 30


def test_embeddings_have_no_output_and_images_and_tools_count(tb, agent):
    def need(data, messages=None, call_type="acompletion"):
        return agent.estimates.need(
            tb.Request(tb.Called("a", None, (0.0, {}, call_type or "")), data, messages),
            DEPLOYMENT,
            books(agent)["tokens"],
        )

    assert need({"input": ["x" * 300]}, None, "aembedding") == 107
    picture = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:" + "x" * 10000}}]}
    ]
    assert 1100 < need({"max_tokens": 1}, picture) < 1200
    tools = [{"type": "function", "function": {"name": "f", "description": "y" * 3000}}]
    assert need({"max_tokens": 1, "tools": tools}, MESSAGES) > 1000


def test_images_and_sounds_are_reserved_by_what_was_sent_and_what_they_came_to(tb, agent):
    """LiteLLM's router chooses their deployment by a message of its own (Router._aimage_generation)."""
    book = books(agent)["tokens"]

    def request(sent, call_type):
        called = tb.Called("a", None, (0.0, sent, call_type))
        return tb.Request(called, {}, [{"role": "user", "content": "prompt"}])

    speech = request({"input": "x" * 3000}, "aspeech")
    assert agent.estimates.need(speech, DEPLOYMENT, book) == 1007
    image = request({"prompt": "x" * 300}, "aimage_generation")
    assert agent.estimates.need(image, DEPLOYMENT, book) == 107
    made = tb.Attempt(image, "d1", DEPLOYMENT["litellm_params"]["model"], [], 0.0)
    agent.estimates.learn(made, 50, 4000)
    assert agent.estimates.need(image, DEPLOYMENT, book) == 4050
    embedded = request({"input": [{"image": "data:,x"}]}, "aembedding")
    agent.estimates.learn(tb.Attempt(embedded, "d1", "voyage/multimodal", [], 0.0), 3500, 0)
    multimodal = {**DEPLOYMENT, "litellm_params": {"model": "voyage/multimodal"}}
    assert agent.estimates.need(embedded, multimodal, book) == 3500
    two = request({"prompt": "x" * 300, "n": 2}, "aimage_generation")
    assert agent.estimates.need(two, DEPLOYMENT, book) == 8100
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]
    chat = tb.Request(tb.Called("b", None, (0.0, {}, "acompletion")), {}, picture)
    for _ in range(64):  # a chat about a picture, of the same model
        agent.estimates.learn(tb.Attempt(chat, "d1", made.model, [], 0.0), 100, 20)
    assert agent.estimates.need(image, DEPLOYMENT, book) == 4050


def test_text_in_other_scripts_is_longer_than_its_characters(tb, agent):
    def need(text):
        request = tb.Request(
            tb.Called("a", None, (0.0, {}, "acompletion")),
            {"max_tokens": 1},
            [{"role": "user", "content": text}],
        )
        return agent.estimates.need(request, DEPLOYMENT, books(agent)["tokens"])

    assert need("x" * 300) < 120
    assert need("\u6f22" * 300) > 300
    assert need("\ud83d") > 0  # half of a pair, as JSON may have it


def test_an_amount_may_be_text_or_a_fraction(tb, agent):
    def need(**data):
        request = tb.Request(tb.Called("a", None, (0.0, {}, "acompletion")), data, MESSAGES)
        return agent.estimates.need(request, DEPLOYMENT, books(agent)["tokens"])

    for same in ("4000", 4000.0, 3999.5):
        assert need(max_tokens=same) == need(max_tokens=4000)
    for same in ("8", 8.0):
        assert need(max_tokens=10, n=same) == need(max_tokens=10, n=8)
    for huge in (float("inf"), 10**400, "1e999"):
        assert need(max_tokens=huge) == 10**12
    for none in ("a lot", "", "nan", float("nan"), -5, 0, None, [7], {}):
        assert need(max_tokens=none) == need(), none


def test_what_no_hook_sees_of_a_model_that_embeds(tb, agent):
    """Of an embedding that LiteLLM makes itself (a semantic cache) nothing but the model is known."""
    request, book = tb.Request(tb.Called("a"), {}, None), books(agent)["tokens"]
    assert agent.estimates.need(request, DEPLOYMENT, book) >= 1000
    agent.estimates.most_output = lambda deployment, model: 0
    assert agent.estimates.need(request, DEPLOYMENT, book) == tb.UNKNOWN_OUTPUT
    made = tb.Attempt(request, "d1", DEPLOYMENT["litellm_params"]["model"], [], 0.0)
    agent.estimates.learn(made, 300, 0)
    assert agent.estimates.need(request, DEPLOYMENT, book) == 300
    seen = tb.Request(tb.Called("b", None, (0.0, {"input": "x" * 30}, "aembedding")), {}, None)
    assert agent.estimates.need(seen, DEPLOYMENT, book) == 17, "its text is known"
    agent.estimates.learn(tb.Attempt(seen, "d1", made.model, [], 0.0), 9, 0)
    assert agent.estimates.need(request, DEPLOYMENT, book) == 300


def test_estimate_learns_the_mean_output_and_the_ratio(tb, agent):
    governor = agent.governors["uid-1"]
    governor.update({**governor.policy, "reserve": "Estimate"}, agent.clock.boot())
    learned = agent.estimates.learned["openai/gpt"] = tb.Learned()
    for _ in range(30):
        learned.learn(chars=1000, overhead=7, prompt=257, output=50)
    assert learned.ratio == pytest.approx(0.25)
    called = tb.Called("a", None, (0.0, {}, "acompletion"))
    request = tb.Request(called, {"max_tokens": 1000}, [{"role": "user", "content": "x" * 996}])
    assert 300 <= agent.estimates.need(request, DEPLOYMENT, books(agent)["tokens"]) <= 310


def test_what_is_learned_is_of_the_last_64_values(tb):
    rng, recent, values = random.Random(1), tb.Recent(), []
    for _ in range(1000):
        values.append(rng.choice((rng.randrange(9), 5 * rng.random())))
        recent.add(values[-1])
        last = values[-64:]
        assert len(recent) == len(last)
        assert recent.high() == sorted(last)[int(0.95 * (len(last) - 1) + 0.5)]
        assert recent.mean() == pytest.approx(sum(last) / len(last))
