"""The one place that touches LiteLLM's private attributes."""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import math
import re
import sys
from typing import Any

from .agent import Agent
from .book import Book
from .constants import log
from .governor import Governor, Limits
from .hooks import Hooks
from .local_counters import LocalCounters, limits_the_fleet
from .narrowing import Narrowing
from .refusal import QuietRefusals
from .request import model_id
from .shapes import Data, Deployment, Row
from .start import leave
from .told import metadata_of

FILTERED = (  # strategies under which Router asks async_filter_deployments
    "simple-shuffle",
    "least-busy",
    "latency-based-routing",
    "cost-based-routing",
    "usage-based-routing-v2",
)


def whole(value: Any) -> int | None:
    """A limit as somebody wrote it, also in model_info, which LiteLLM does not look at: "10k" is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


class Adapter:
    """All that touches LiteLLM beyond the hooks of CustomLogger. Each attribute that is missing is a problem
    by name."""

    router: Any
    missing: dict[str, str]
    seen: dict[str, Row]
    matched: dict[str, list[Book]]
    named: dict[tuple[str, str], set[str]]
    # What LiteLLM's configuration declares, and the TokenBudgets that name it in an explicit limit.
    declared_rows: list[tuple[dict[str, Any], set[str]]] | None
    identities: dict[str, str]
    made_of: object  # the router's entries and the limits that were matched last
    limited: set[str]  # ids of those that declare a limit

    def __init__(self, agent: Agent, handler: Hooks) -> None:
        self.agent, self.handler = agent, handler
        self.router, self.missing = None, {}
        self.seen = {}  # model id -> [deployment dict, original {tpm, rpm}, last written {tpm, rpm}]
        self.matched = {}  # model id -> [books]
        self.named = {}  # uid and limit -> "<model id>:<litellm model>", as LiteLLM's own counters are named
        self.declared_rows, self.identities = None, {}
        self.limits, self.made_of, self.limited = Limits([]), None, set()
        self.narrowing, self.counters = Narrowing(), LocalCounters()
        self.dirty = True
        self.quiet = QuietRefusals()

    def problems(self) -> list[str]:
        return list(self.missing.values())

    def problem(self, name: str, text: str | None) -> None:
        if text is None:
            self.missing.pop(name, None)
        else:
            if name not in self.missing:
                log.error("tokenbudget: %s", text)
            self.missing[name] = text

    def changed(self) -> None:
        self.dirty = True
        self.agent.rouse()

    def declared(self, governor: Governor) -> list[dict[str, Any]] | None:
        """What this TokenBudget may derive limits from: not what an explicit limit of another one names. What
        its own names counts: those may go."""
        if self.declared_rows is None:
            return None
        return [row for row, named in self.declared_rows if not named - {governor.uid}]

    # -- registration

    def register(self) -> None:
        import litellm

        manager = getattr(litellm, "logging_callback_manager", None)
        callbacks = getattr(litellm, "callbacks", None)
        if callbacks is None or manager is None:
            return self.problem(
                "callbacks", "litellm.callbacks or logging_callback_manager is missing: not enforcing"
            )
        if self.handler not in callbacks:
            manager.add_litellm_callback(self.handler)
        limit = getattr(sys.modules.get("litellm.constants"), "AIOHTTP_CONNECTOR_LIMIT_PER_HOST", 0)
        self.agent.connections = limit if isinstance(limit, int) and limit > 0 else math.inf
        for name, add in (
            ("input_callback", "add_litellm_input_callback"),
            ("_async_success_callback", "add_litellm_async_success_callback"),
            ("_async_failure_callback", "add_litellm_async_failure_callback"),
        ):
            if self.handler not in getattr(litellm, name, ()) and hasattr(manager, add):
                getattr(manager, add)(self.handler)
        kept = self.handler in litellm.callbacks
        self.problem("callbacks", None if kept else "LiteLLM drops the agent's callback: not enforcing")

    def wrap_shutdown(self, server: Any) -> None:
        """uvicorn raises the signal again after its shutdown, so atexit does not run: the proxy's own
        shutdown event,
        which comes when no request is running any more, is where the agent leaves."""
        event = getattr(server, "proxy_shutdown_event", None)
        if event is None:
            return self.problem(
                "shutdown",
                "litellm.proxy.proxy_server.proxy_shutdown_event is missing: "
                "grants of ended processes come back late",
            )
        self.problem("shutdown", None)
        if getattr(event, "tokenbudget", False):
            return None

        @functools.wraps(event)
        async def leave_first(*args: Any, **kwargs: Any) -> Any:
            try:
                await asyncio.get_running_loop().run_in_executor(None, leave)
            except Exception as error:
                self.agent.fault("leave", error)
            return await event(*args, **kwargs)

        leave_first.tokenbudget = True  # type: ignore[attr-defined]
        server.proxy_shutdown_event = leave_first

    def quieten(self, wanted: bool) -> None:
        for name in ("LiteLLM Router", "LiteLLM Proxy"):
            logger = logging.getLogger(name)
            if wanted:
                logger.addFilter(self.quiet)  # twice is once
            else:
                logger.removeFilter(self.quiet)

    # -- the router

    def refresh(self) -> None:
        """Runs in the event loop, each second and after changes: LiteLLM's lists are not touched from
        elsewhere."""
        self.register()
        server = sys.modules.get("litellm.proxy.proxy_server")
        if server is None:
            return None
        self.wrap_shutdown(server)
        if not hasattr(server, "llm_router"):
            return self.problem("router", "litellm.proxy.proxy_server.llm_router is missing: not enforcing")
        router = server.llm_router
        self.problem("router", None)
        if router is None:
            return None
        models = getattr(router, "model_list", None)
        if not isinstance(models, list):
            return self.problem("model_list", "Router.model_list is not a list: not enforcing")
        self.problem("model_list", None)
        if router is not self.router:
            self.counters.restore()
            self.router = router
        if self.dirty:
            self.dirty, self.made_of = False, None
        self.quieten(bool(self.agent.governors))
        strategy = self.strategy()
        unasked = (
            None
            if strategy in FILTERED
            else (
                "routing_strategy %s does not ask who has room: a full deployment is refused, not passed over"
                % strategy
            )
        )
        self.problem("strategy", unasked)
        self.problem("narrowing", self.narrowing.refresh(router, models))
        governors = list(self.agent.governors.values())
        entries = [self.entry(deployment) for deployment in models]
        made_of = (entries, [(governor, governor.limits) for governor in governors])
        present = {entry[0] for entry in entries}
        gone = not len(present) == len(self.matched) == len(self.identities)  # before a refresh saw it
        if gone or made_of != self.made_of:
            self.made_of, self.limits = None, Limits(governors)
            self.match_all(models, present)
            self.made_of = made_of
        boot, wall, all_governed = self.agent.clock.boot(), self.agent.clock.wall(), True
        fleets = limits_the_fleet()
        for deployment in models:
            key = model_id(deployment)
            books = () if fleets else self.matched[key]
            enforced = [b for b in books if b.governor.acting(boot, wall) == "enforce"]
            self.write(deployment, self.seen[key], enforced)
            if not enforced and key in self.limited:
                all_governed = False
        if all_governed and any(self.matched.values()):
            for name, text in self.counters.localize(router).items():
                self.problem(name, text)
        else:
            self.counters.restore()

    def entry(self, deployment: Deployment) -> tuple[Any, ...]:
        """All of an entry that matters here."""
        params, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
        key = model_id(deployment)
        own = self.originals(key, deployment)[1]
        what = (key, deployment.get("model_name"), params.get("model"), params.get("api_base"))
        limits = (*own.values(), params.get("tpm"), params.get("rpm"), info.get("tpm"), info.get("rpm"))
        return what + limits

    def match_all(self, models: list[Deployment], present: set[str]) -> None:
        """Only when something has changed: it takes a while where both lists are long."""
        self.identify(models)
        rows: list[tuple[dict[str, Any], set[str]]] = []
        named: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        self.limited = set()
        for deployment in models:
            key = model_id(deployment)
            books, named_by = self.limits.match(deployment, self.identities[key])
            self.matched[key] = books
            for book in books:
                model = (deployment.get("litellm_params") or {}).get("model")
                named[book.governor.uid, book.limit].add(f"{key}:{model}")
            limits = self.limits_of(deployment, self.seen[key][1])
            if any(v is not None for v in limits.values()):
                self.limited.add(key)
                rows.append((self.declared_row(deployment, limits), named_by))
        for known in (self.seen, self.matched):
            for key in [key for key in known if key not in present]:
                del known[key]
        self.declared_rows, self.named = rows, dict(named)

    def originals(self, key: str, deployment: Deployment) -> Row:
        row = self.seen.get(key)
        if row is None or row[0] is not deployment:
            values = {}
            for name in ("tpm", "rpm"):
                value = deployment.get(name)
                if row is not None and value is not None and value == row[2].get(name):
                    value = row[1][name]  # a copy of an entry that we had rewritten
                values[name] = value
            row = self.seen[key] = [deployment, values, row[2] if row else {}]
        return row

    def limits_of(self, deployment: Deployment, original: dict[str, Any]) -> dict[str, int | None]:
        params, info = deployment.get("litellm_params") or {}, deployment.get("model_info") or {}
        out: dict[str, int | None] = {}
        for name in ("tpm", "rpm"):
            values = [original[name], params.get(name), info.get(name)]
            out[name] = next((whole(v) for v in values if v is not None), None)
        return out

    def write(self, deployment: Deployment, row: Row, books: list[Book]) -> None:
        """max(share, grant) at the top level of the live entry, and nowhere else."""
        for name, unit in (("tpm", "tokens"), ("rpm", "requests")):
            values = [max(book.share, book.grant, 1) for book in books if book.unit == unit]
            if values:
                deployment[name] = row[2][name] = int(min(values))
            elif name in row[2]:
                del row[2][name]
                if row[1][name] is None:
                    deployment.pop(name, None)
                else:
                    deployment[name] = row[1][name]

    # -- which limits a deployment spends from

    def identify(self, models: list[Deployment]) -> None:
        """The identity of each deployment, for derived limits: declared id, else what it is and the how
        manieth."""
        counts: collections.Counter[str]
        counts, self.identities = collections.Counter(), {}
        for deployment in models:
            declared = self.declared_id(deployment)
            if declared is not None:
                identity = "id=%s" % declared
            else:
                params = deployment.get("litellm_params") or {}
                base = "%s|%s|%s" % (
                    deployment.get("model_name"),
                    params.get("model"),
                    params.get("api_base") or "",
                )
                identity = "%s|%d" % (base, counts[base])
                counts[base] += 1
            self.identities[model_id(deployment)] = identity

    def declared_id(self, deployment: Deployment) -> str | None:
        """LiteLLM's own ids are a sha256 over all params: they change with a key or a limit."""
        found = model_id(deployment)
        return None if re.match(r"^[0-9a-f]{64}$", found) or found == "None" else found

    def declared_row(self, deployment: Deployment, limits: dict[str, int | None]) -> dict[str, Any]:
        params = deployment.get("litellm_params") or {}
        return {
            "identity": self.identities[model_id(deployment)],
            "modelName": deployment.get("model_name"),
            "litellmModel": params.get("model"),
            "apiBase": params.get("api_base"),
            "id": self.declared_id(deployment),
            "tokensPerMinute": limits["tpm"],
            "requestsPerMinute": limits["rpm"],
        }

    def books_of(self, deployment: Deployment) -> list[Book]:
        """On the request path: what the last refresh found, or found now for an entry that is new."""
        if self.dirty and self.router is not None:
            self.refresh()
        elif self.dirty:
            self.limits = Limits(list(self.agent.governors.values()))
        key = model_id(deployment)
        books = self.matched.get(key)
        if books is None:
            if key not in self.identities and self.router is not None:
                self.identify(self.router.model_list)
            books, _ = self.limits.match(deployment, self.identities.get(key))
            self.matched[key] = books
        return books

    def skips_filter(self, model: str | None) -> bool:
        """Whether LiteLLM goes to the check without asking the filter (async_get_available_deployment): also
        where it reads the deployment out of another id (Router._init_responses_api_endpoints)."""
        if not model or model in self.matched or self.strategy() not in FILTERED:
            return True
        has_id = getattr(self.router, "has_model_id", None)  # of one that came since the last look
        return has_id is not None and has_id(model) is True

    def strategy(self) -> str:
        found = getattr(self.router, "routing_strategy", None) or FILTERED[0]
        return getattr(found, "value", found)

    def max_output(self, deployment: Deployment, model: str) -> int | None:
        import litellm

        info = deployment.get("model_info") or {}
        costs = getattr(litellm, "model_cost", {})
        entry = costs.get(model) or costs.get(model.split("/", 1)[-1]) or {}
        if (info.get("mode") or entry.get("mode")) in ("embedding", "rerank", "moderation"):
            return 0  # max_tokens are those of its input
        value = info.get("max_output_tokens")
        if value is None:
            value = entry.get("max_output_tokens") or entry.get("max_tokens")
        try:
            return int(value) if value else None
        except (TypeError, ValueError):
            return None

    def was_reported(self, kwargs: Data) -> bool:
        """Whether the usage is the provider's word. Before 1.102 LiteLLM asks for the usage of a chat's
        stream only if the client did; else it counts by a tokenizer of its own, as 1.106 does for a client
        that left (common_request_processing.py, _bill_partial_streamed_spend_on_disconnect)."""
        if any(metadata.get("client_disconnected") for metadata in metadata_of(kwargs)):
            return False
        if not kwargs.get("stream") or kwargs.get("call_type") not in ("acompletion", "atext_completion"):
            return True
        options = (kwargs.get("optional_params") or {}).get("stream_options") or {}
        if options.get("include_usage"):
            return True
        import litellm

        asks = (
            litellm.get_supported_openai_params(kwargs.get("model"), kwargs.get("custom_llm_provider")) or ()
        )
        return "stream_options" not in asks

    def counts_alone(self) -> bool:
        """Whether the router keeps its counters in memory: nobody else can compare them."""
        return getattr(getattr(self.router, "cache", None), "redis_cache", None) is None
