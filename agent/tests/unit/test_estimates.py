"""The size of what a client sent."""

import asyncio
import random
import time

import pytest
from support.calls import DEPLOYMENT, done, spent
from test_agent import books

LEVELS = 1000


def nested(levels):
    value = "x" * 30
    for level in range(levels):
        value = [value] if level % 2 else {"content": value}
    return value


def test_a_body_of_a_thousand_levels_is_charged(tb, agent):
    assert tb.size_of(nested(LEVELS)) == (30, 0)

    async def ask():
        messages = [{"role": "user", "content": nested(LEVELS)}]
        kwargs = {"litellm_call_id": "a", "max_tokens": 100, "tools": nested(LEVELS)}
        hooks = tb.Hooks(agent)
        left = await hooks.async_filter_deployments("gpt", [DEPLOYMENT], messages, kwargs)
        await hooks.async_pre_call_check(left[0], None)

    asyncio.run(ask())
    assert not agent.faults
    assert spent(agent) == {"tokens": 100 + 29, "requests": 1}
    assert books(agent)["requests"].ring.spent == 1


def plainly(tb, value):
    """What counts, level by level."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, dict) and value.get("type") in list(tb.IMAGES):
        return 0, 1
    if isinstance(value, list) and value and isinstance(value[0], int):
        return 4 * len(value), 0
    if isinstance(value, (dict, list)):
        inner = [plainly(tb, one) for one in (value.values() if isinstance(value, dict) else value)]
        return sum(chars for chars, _ in inner), sum(images for _, images in inner)
    return (0 if value is None else 4), 0


def test_every_part_counts_wherever_it_stands(tb):
    rng = random.Random(5)

    def made(depth):
        kind = rng.choice(("text", "list", "dict") if depth else ("text",)) if rng.random() < 0.8 else "other"
        if kind == "text":
            return "x" * rng.randrange(9)
        if kind == "list":
            return [made(depth - 1) for _ in range(rng.randrange(4))]
        if kind == "dict":
            parts = {name: made(depth - 1) for name in "abc"[: rng.randrange(4)]}
            return {"type": rng.choice(("text", "image_url", "file", ["odd"])), **parts}
        return rng.choice((None, True, 1.5, 7, [1, 2, 3]))

    for _ in range(500):
        value = made(5)
        assert tb.size_of(value) == plainly(tb, value), value


def itself():
    body = {"role": "user"}
    body["content"] = [body]
    return body


@pytest.mark.parametrize("name", ["messages", "systemInstruction", "tools"])
@pytest.mark.parametrize("value", [[[] for _ in range(2000)], [itself()]], ids=["many parts", "itself"])
def test_what_is_not_looked_through_does_not_pass_the_limit(tb, agent, monkeypatch, name, value):
    """It would be LiteLLM's own way, which is past the check, too."""
    monkeypatch.setattr(tb, "MOST_PARTS", 1000)
    kwargs = {"litellm_call_id": "a", "max_tokens": 10, name: value}
    filtered = tb.Hooks(agent).async_filter_deployments("gpt", [DEPLOYMENT], kwargs.get("messages"), kwargs)
    with pytest.raises(tb.Refused, match="can never be admitted"):
        asyncio.run(filtered)
    assert not agent.faults
    assert not tb.Request(tb.Called("a"), kwargs, None).plain


BASE64 = "iVBORw0KGgo" + "A" * 1_000_000
URL = "data:image/png;base64," + BASE64


@pytest.mark.parametrize(
    "part",
    [
        {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": URL}},
        {"type": "computer_call_output", "output": {"type": "to be invented", "image_url": URL}},
        {"type": "image_generation_call", "result": BASE64},
        {"type": "video_url", "video_url": {"url": URL}},
        {"type": "to be invented", "result": BASE64},
        [URL],
        URL,
    ],
)
def test_what_is_encoded_is_one_picture_wherever_it_stands(tb, part):
    chars, images = tb.size_of(part)
    assert chars < 50
    assert images == 1


@pytest.mark.parametrize(
    "text",
    [
        "a text " * 10_000,
        "\u6f22\u5b57" * 10_000,
        "data: 1, 2, 3 " * 1000,
        '{"a":1,"b":[2,3]}' * 1000,
        "A" * 4096,
        "data:",
    ],
    ids=["words", "no white space", "data", "json", "short", "a word"],
)
def test_what_is_text_is_counted_as_text(tb, text):
    assert tb.size_of({"content": text}) == (len(text.encode()), 0)


def test_a_long_text_is_not_read_through(tb):
    text = "A" * 10_000_000
    start = time.thread_time()
    for _ in range(100):
        tb.size_of([text])
    assert time.thread_time() - start < 0.1


TEXT = "some text " * 300


def needed(tb, agent, data, messages=None):
    request = tb.Request(tb.Called("a"), data, messages)
    return agent.estimates.need(request, DEPLOYMENT, books(agent)["tokens"])


@pytest.mark.parametrize("config", ["config", "generationConfig"])
@pytest.mark.parametrize("most", ["maxOutputTokens", "max_output_tokens"])
@pytest.mark.parametrize("system", ["systemInstruction", "system_instruction"])
def test_geminis_own_requests_are_counted(tb, agent, config, most, system):
    """/v1beta/models/{model}:generateContent."""
    parts = [{"text": TEXT}, {"inlineData": {"mimeType": "image/png", "data": "A" * 3000}}]
    data = {
        "contents": [{"role": "user", "parts": parts}],
        system: {"parts": [{"text": TEXT}]},
        config: {most: 500, "candidateCount": 2, "temperature": 1},
    }
    assert 2 * 1000 + 1100 + 2 * 500 < needed(tb, agent, data) < 2 * 1000 + 1100 + 2 * 500 + 20
    inside = {"contents": TEXT, config: {most: 500, system: {"parts": [{"text": TEXT}]}}}
    assert 2 * 1000 + 500 < needed(tb, agent, inside) < 2 * 1000 + 500 + 20


def test_a_tool_may_have_a_parameter_of_a_files_name(tb):
    parameters = {"file_data": {"description": "y" * 600}}
    assert tb.size_of({"properties": parameters}) == (600, 0)


def test_the_largest_output_counts_wherever_it_is_stated(tb, agent):
    data = {"contents": "x", "max_tokens": 500, "config": {"max_tokens": 5}}
    assert needed(tb, agent, data) > 500


@pytest.mark.parametrize("config", [None, "x", [1]])
def test_a_config_that_is_none_is_left_alone(tb, agent, config):
    assert needed(tb, agent, {"contents": "x", "config": config, "max_tokens": 5}) < 20


def test_a_document_of_text_is_text_and_one_of_pages_a_file(tb, agent):
    """Anthropic's."""

    def document(source):
        content = [{"type": "document", "source": source, "title": "x"}]
        return needed(tb, agent, {"max_tokens": 1}, [{"role": "user", "content": content}])

    assert 1000 < document({"type": "text", "media_type": "text/plain", "data": TEXT}) < 1030
    assert 1000 < document({"type": "content", "content": [{"type": "text", "text": TEXT}]}) < 1030
    assert 1100 < document({"type": "base64", "media_type": "application/pdf", "data": TEXT}) < 1120


def test_the_door_keeps_what_geminis_requests_say(tb, agent):
    async def ask():
        hooks = tb.Hooks(agent)
        data = {"contents": TEXT, "generationConfig": {"maxOutputTokens": 500}, "litellm_call_id": "a"}
        await hooks.async_pre_call_hook(None, None, {**data, "model": "d1"}, "agenerate_content")
        await hooks.async_pre_call_check(DEPLOYMENT, None)

    asyncio.run(ask())
    assert 1500 < spent(agent)["tokens"] < 1520


PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}


def answered(tb, agent, prompt, call_type="acompletion", content="x" * 600, **data):
    """What a model has taught by one call that used so many tokens of prompt and 10 of output."""

    async def ask():
        hooks = tb.Hooks(agent)
        messages = [{"role": "user", "content": content}]
        kwargs = {"litellm_call_id": "a", "max_tokens": 10, **data}
        await hooks.async_pre_call_hook(
            None, None, {**kwargs, "messages": messages, "model": "gpt"}, call_type
        )
        left = await hooks.async_filter_deployments("gpt", [DEPLOYMENT], messages, kwargs)
        await hooks.async_pre_call_check(left[0], None)

    asyncio.run(ask())
    usage = {"prompt_tokens": prompt, "completion_tokens": 10, "total_tokens": prompt + 10, "model_id": "d1"}
    done(tb, agent, "a", 0, standard_logging_object=usage)
    assert not agent.faults
    return agent.estimates.learned["openai/gpt"]


@pytest.mark.parametrize(
    "data",
    [
        {"content": [{"type": "text", "text": "x" * 600}, PICTURE], "prompt": 3000},
        {"content": [{"type": "text", "text": "x" * 600}, {"inlineData": {"data": "A"}}], "prompt": 3000},
        {"previous_response_id": "resp_1"},
        {"conversation": {"id": "conv_1"}},
        {"prompt_id": "p"},
        {"cachedContent": "cachedContents/1"},
        {"web_search_options": {"search_context_size": "low"}},
        {"tools": [FUNCTION, {"type": "web_search"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "mcp", "server_url": "litellm_proxy"}]},
        {"tools": [{"googleSearch": {}}]},
        {"tools": {"to be": "invented"}},
        {"call_type": "aimage_edit"},
    ],
    ids=" ".join,
)
def test_a_call_that_reads_more_than_was_sent_does_not_teach_what_a_text_takes(tb, agent, data):
    """Else ordinary texts could never be admitted, and taught nothing."""
    learned = answered(tb, agent, **{"prompt": 2300, **data})
    assert (learned.ratio, learned.output_high) == (1 / 3, 10)
    assert needed(tb, agent, {"max_tokens": 10, "input": "a text " * 2500}) < 5900


def test_a_stored_prompt_of_a_response_does_not_teach_either(tb, agent):
    request = tb.Request(tb.Called("a"), {"input": "x" * 600, "prompt": {"id": "pmpt_1"}}, None)
    assert not request.plain
    assert tb.Attempt(request, "d1", "openai/gpt", [], 0.0).chars == 0


def test_small_pictures_do_not_make_texts_look_small(tb, agent):
    for _ in range(20):
        answered(tb, agent, 235, content=[{"type": "text", "text": "x" * 600}, PICTURE])
    assert needed(tb, agent, {"max_tokens": 10, "input": "a text " * 2500}) > 5800


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"previous_response_id": None, "tools": [], "conversation": None},
        {"tools": [FUNCTION]},
        {"tools": [{"name": "f", "input_schema": {}}]},
        {"tools": [{"functionDeclarations": [{"name": "f"}]}]},
        {"tools": [{"type": "custom", "name": "f"}]},
        {"call_type": "aembedding"},
    ],
    ids=" ".join,
)
def test_a_text_teaches_what_a_text_takes(tb, agent, data):
    assert answered(tb, agent, prompt=450, **data).ratio > 0.65
