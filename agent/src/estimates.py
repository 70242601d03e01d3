"""How many tokens a request will take, before it runs."""

from __future__ import annotations

import bisect
import collections
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .book import Book, within_reason
from .constants import LIFTED, MOST_JSON, MOST_PARTS, UNKNOWN_OUTPUT
from .request import Attempt, Request
from .shapes import Deployment

# Parts that are one picture, sound or file each, however long they are.
IMAGES = frozenset(
    (
        *("image_url", "image", "input_image", "computer_screenshot", "image_generation_call"),
        *("input_audio", "audio_url", "video_url", "input_video", "file", "document", "input_file"),
    )
)
INLINE = frozenset(("inlineData", "inline_data", "fileData", "file_data"))
FILE = frozenset(("data", "fileUri", "file_uri"))
LONG_WORD = 4096  # characters: no text has one
# What begins so is no text: a data URL, or base64, of which LONG_WORD / 2 characters are looked at.
ENCODED = re.compile(r"data:[^\s,]{0,256},|[A-Za-z0-9+/=_-]{%d}" % (LONG_WORD // 2))


def is_encoded(text: str) -> bool:
    return (len(text) > LONG_WORD or text.startswith("data:")) and ENCODED.match(text) is not None


def is_inline(part: dict[str, object]) -> bool:
    """Whether a part of Gemini's, which have no type, is a file. Tools may have parameters of these names."""
    if INLINE.isdisjoint(part):
        return False
    files = [part[name] for name in INLINE if name in part]
    return any(isinstance(file, dict) and not FILE.isdisjoint(file) for file in files)


def is_text(source: object) -> bool:
    """Whether a document (Anthropic) is none to be looked at, but a text or parts."""
    return isinstance(source, dict) and source.get("type") in ("text", "content")


def length(text: str) -> int:
    """In bytes of UTF-8: of many scripts a character is three of these, and about one token."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def size_of(value: object) -> tuple[int, int]:
    """Characters of text (as :func:`length` counts them), and images, in a message, a prompt, a tool
    definition."""
    if isinstance(value, str):
        return (0, 1) if is_encoded(value) else (length(value), 0)
    chars, images, left, looked = 0, 0, [value], 0
    while left:  # without recursion: a client may nest a body deeper than Python's stack
        value, looked = left.pop(), looked + 1
        if looked > MOST_PARTS:  # no model takes as many: more than any budget, not LiteLLM's own way past it
            return LIFTED, images
        values: Iterable[object]
        if isinstance(value, dict):
            kind = value.get("type")
            if is_inline(value) if kind is None else isinstance(kind, str) and kind in IMAGES:
                if kind != "document" or not is_text(value.get("source")):
                    images += 1
                    continue
            values = value.values()
        elif isinstance(value, (list, tuple)):
            if value and isinstance(value[0], int):  # token ids
                chars += 4 * len(value)
                continue
            values = value
        else:
            chars += 0 if value is None else 4
            continue
        for item in values:
            if isinstance(item, str):  # most are
                if (len(item) > LONG_WORD or item[:5] == "data:") and is_encoded(item):
                    images += 1
                else:
                    chars += length(item)
            else:
                left.append(item)
    return chars, images


class Recent:
    """The last 64 values: their mean, and what 95 of 100 do not exceed. Kept in order and summed up, as each
    request adds one."""

    def __init__(self) -> None:
        self.values: collections.deque[float] = collections.deque()
        self.ordered: list[float] = []
        self.sum = 0.0

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        if len(self.values) == 64:
            oldest = self.values.popleft()
            del self.ordered[bisect.bisect_left(self.ordered, oldest)]
            self.sum -= oldest
        self.values.append(value)
        self.sum += value
        bisect.insort(self.ordered, value)

    def high(self) -> float:
        return self.ordered[int(0.95 * (len(self.ordered) - 1) + 0.5)]

    def mean(self) -> float:
        return self.sum / len(self.values)


class Learned:
    """What a model's answers taught: tokens per character (95th percentile), output tokens (95th percentile,
    mean), and all tokens of what no text says the size of, as images and sounds (95th percentile)."""

    output_high: int | None
    output_mean: float | None

    def __init__(self) -> None:
        self.ratios, self.outputs, self.totals = Recent(), Recent(), Recent()
        self.ratio, self.output_high, self.output_mean, self.total_high = 1 / 3, None, None, 0

    def learn(self, chars: int, overhead: int, prompt: int, output: int, unworded: bool = False) -> None:
        # More than four tokens for a character: not for the text that was sent (previous_response_id, a PDF).
        if chars >= 20 and 0 < prompt <= overhead + 4 * chars:
            self.ratios.add(max(0.05, (prompt - overhead) / chars))
            high = self.ratios.high()
            self.ratio = high if len(self.ratios) >= 16 else max(1 / 3, high)
        if output:
            self.outputs.add(output)
            self.output_high, self.output_mean = int(self.outputs.high()), self.outputs.mean()
        if unworded:
            self.totals.add(prompt + output)
            self.total_high = int(self.totals.high())


# What counts of a request's body.
CONTENT = ("messages", "input", "prompt", "contents")  # the first of these
WORDS = frozenset(  # and all of these
    (
        *("tools", "functions", "system", "instructions", "response_format"),
        *("systemInstruction", "system_instruction", "toolConfig"),
    )
)
OUTPUTS = (  # the largest
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens"),
    "maxTokens",
)
TIMES = frozenset(("n", "best_of", "candidateCount", "candidate_count"))
CONFIGS = ("config", "generationConfig", "inferenceConfig")  # Gemini's, Bedrock's: some of these are in it
# With one of these the model reads more than was sent: earlier turns, a stored prompt, what it looks up.
UNSAID = frozenset(
    (
        *("previous_response_id", "conversation", "prompt_id", "cachedContent", "cached_content"),
        *("web_search_options", "search_parameters", "plugins", "data_sources"),
        *("vector_store_ids", "mcp_servers"),
    )
)
ASKED = (*CONTENT, *WORDS, *OUTPUTS, *TIMES, *CONFIGS)
# A tool that the client runs itself; of a provider's own (a search) the results are in the prompt.
OWN_TOOLS = (None, "function", "custom")
OWN_TOOL = frozenset(("function", "name", "functionDeclarations", "function_declarations"))
NO_OUTPUT = ("embedding", "rerank", "moderation", "transcription", "speech", "image", "ocr", "search")


def amount_of(value: object) -> int:
    """A stated amount, also in text or as 8.0, as some providers take it: 0 to LIFTED; 0 for what is none."""
    try:
        amount = float(value) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:
        return 0
    except OverflowError:  # JSON's numbers have any length
        return LIFTED
    return math.ceil(min(amount, LIFTED)) if amount > 0 else 0


def goes_past_refusals(data: Mapping[str, Any]) -> bool:
    """Whether this is a pass-through route to a model of the router (allm_passthrough_route): LiteLLM sends
    that on without a deployment if it gets none, whatever was raised where it is chosen."""
    return "endpoint" in data and "method" in data


def body_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the client of such a route sent."""
    body = data.get("data") or data.get("json")
    if isinstance(body, (str, bytes)):
        text: Any = body
        try:
            body = json.loads(text) if len(text) <= MOST_JSON else None
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):  # only how long it is is known; letters would be a picture
            return {"prompt": text if isinstance(text, str) else "." * len(text)}
    return body if isinstance(body, dict) else {}


@functools.lru_cache(maxsize=256)
def has_no_output(call_type: str) -> bool:
    """Whether calls of this type answer with no tokens."""
    return any(word in call_type for word in NO_OUTPUT)


# Calls that fetch, list, count or manage what is there: no model works, and they have no part in a limit,
# even if what they fetch tells the usage of what once made it. Whatever is not known here is governed.
MANAGED = re.compile(
    r"_?a?_?(get|list|delete|cancel|retrieve|upload|update|count|file|vector_store|add_message|run_code"
    r"|code_interpreter_tool|pass_through_endpoint|call_mcp_tool"
    r"|video_(content|delete|list|retrieve|get|status|create_character)"
    r"|create_(batch|container|file|fine_tuning_job|assistants|thread|sandbox|skill|eval))(_|s?$|s_)"
)


@functools.lru_cache(maxsize=256)
def is_governed(call_type: str) -> bool:
    """Whether calls of this type may be charged and refused; also where LiteLLM has no name for it."""
    return MANAGED.match(call_type) is None


def all_own(tools: object) -> bool:
    """Whether the client runs all of these tools itself."""
    return isinstance(tools, list) and all(
        isinstance(tool, dict) and tool.get("type") in OWN_TOOLS and not OWN_TOOL.isdisjoint(tool)
        for tool in tools
    )


UNLEARNED = Learned()  # of a model that has not answered yet


class Estimates:
    """What a request is charged before it runs. `most_output`: the most that a deployment's model answers, or
    None; asked for when nobody says how much an answer may be."""

    learned: dict[str, Learned]  # by LiteLLM's name of the model; only answers add one

    def __init__(self, most_output: Callable[[Deployment, str], int | None]) -> None:
        self.learned, self.most_output = {}, most_output

    def learn(self, attempt: Attempt, prompt: int, output: int) -> None:
        """What the provider says that an attempt used."""
        learned = self.learned.setdefault(attempt.model, Learned())
        prompt, output = within_reason(prompt), within_reason(output) // attempt.n
        learned.learn(attempt.chars, attempt.overhead, prompt, output, attempt.unworded)

    def need(self, request: Request, deployment: Deployment, book: Book) -> int:
        """What this request will be charged in this book, before it runs: at most MOST_AMOUNT."""
        if book.unit == "requests":
            return 1
        return within_reason(self.tokens(request, deployment, book))

    def tokens(self, request: Request, deployment: Deployment, book: Book) -> int:
        params = deployment.get("litellm_params") or {}
        model = params.get("model") or ""
        learned = self.learned.get(model, UNLEARNED)
        prompt = request.overhead + request.chars * learned.ratio
        if request.no_output:
            return math.ceil(max(prompt, learned.total_high * request.n) if request.unworded else prompt)
        output = request.output
        if book.governor.reserve == "Estimate" and learned.output_mean is not None:
            guess = math.ceil(learned.output_mean)
            output = guess if output is None else min(output, guess)
        elif output is None:
            output = self.default_output(deployment, params, model, book, learned)
        if not output and request.unworded:  # an embedding that LiteLLM makes itself: no hook sees its text
            prompt = max(prompt, learned.total_high or UNKNOWN_OUTPUT)
        return math.ceil(prompt + output * request.n)

    def default_output(
        self, deployment: Deployment, params: dict[str, Any], model: str, book: Book, learned: Learned
    ) -> int:
        for name in OUTPUTS:
            stated = amount_of(params.get(name))
            if stated:
                return stated
        known = self.most_output(deployment, model)
        if known == 0:
            return 0
        usual = learned.output_high or UNKNOWN_OUTPUT
        return min(known, max(usual, book.share // 4)) if known else usual
