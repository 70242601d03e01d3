"""What LiteLLM itself would choose between: the adapter's part that is asked on the request path."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from typing import Any

from .request import Called, model_id
from .shapes import Data, Deployment

# Of a request that LiteLLM tries again: which of the deployments may have it now.
TRIED = ("_target_order", "_excluded_deployment_ids", "_retry_skipped_deployment_ids")
SETTINGS = ("enable_pre_call_checks", "enable_tag_filtering")
# Its functions are called with these.
CHECKS = {"model", "healthy_deployments", "messages", "request_kwargs"}
COUNT, COUNTS = "_acount_pre_call_check_tokens", CHECKS | {"input"}  # from 1.102 on
COUNTED_CHECKS = COUNTS | {"input_token_count", "skip_inline_token_count"}
TAGS = {"llm_router_instance", "model", "healthy_deployments", "request_kwargs", "metadata_variable_name"}
ORDERED, ORDERS = "get_order_filtered_deployments", {"healthy_deployments", "target_order"}  # from 1.102 on
PLUGGED, PLUGINS = "_filter_by_routing_plugin_candidates", {"healthy_deployments", "request_kwargs"}


class Narrowing:
    """LiteLLM asks the filter first, and only then leaves out what is of another region or too small for the
    prompt (`enable_pre_call_checks`), what has other tags, and what it has tried already
    (Router.async_get_healthy_deployments). Without those that the filter dropped for want of room it would go
    to another tier, or say that there is none. So once something is full its own functions are asked what
    they would leave."""

    router: Any
    checks: bool  # whether the router has these
    tags: bool
    plugins: bool
    lacking: str | None  # what could not be asked
    failed: str | None  # what LiteLLM's functions raised last, if that says that they are not as known

    def __init__(self) -> None:
        self.router, self.lacking, self.failed = None, None, None
        self.checks = self.tags = self.plugins = False
        self.by_tags: Any = None
        self.by_order: Any = None

    def refresh(self, router: Any, models: list[Deployment]) -> str | None:
        """What this router looks at; the problem, if it cannot be asked about that."""
        tagging = sys.modules.get("litellm.router_strategy.tag_based_routing")
        if router is not self.router:
            self.router, self.failed = router, None
        self.by_tags = getattr(tagging, "get_deployments_for_tag", None)
        self.by_order = getattr(sys.modules.get("litellm.utils"), ORDERED, None)
        self.checks = bool(getattr(router, "enable_pre_call_checks", False))
        self.tags = bool(getattr(router, "enable_tag_filtering", False)) or any(
            (deployment.get("model_info") or {}).get("enable_tag_filtering") for deployment in models
        )
        self.plugins = bool(getattr(router, "routing_plugins", None))
        count = getattr(router, COUNT, None)
        checks = CHECKS if count is None else COUNTED_CHECKS
        wanted = [
            ("_pre_call_checks", getattr(router, "_pre_call_checks", None), checks, self.checks),
            (COUNT, count, COUNTS, self.checks and count is not None),
            (ORDERED, self.by_order, ORDERS, self.by_order is not None),
            ("get_deployments_for_tag", self.by_tags, TAGS, self.tags),
            (PLUGGED, getattr(router, PLUGGED, None), PLUGINS, self.plugins),
        ]
        lacking = [name for name in SETTINGS if not hasattr(router, name)]
        lacking += [name for name, function, of, looks in wanted if looks and not takes(function, of)]
        text = "%s of LiteLLM's router is not as known: a full deployment is refused, not passed over"
        self.lacking = text % " and ".join(lacking) if lacking else None
        return self.lacking or self.failed

    async def eligible(
        self, model: str, called: Called, deployments: list[Deployment], messages: Any, kwargs: Data
    ) -> list[Deployment] | None:
        """Those of them that LiteLLM would choose between if all had room. None: none of them, as LiteLLM
        will say itself, or it can't be known: then it chooses, and the check decides."""
        tags = self.tags or kwargs.get("enable_tag_filtering") is True  # which a key or a team may have
        tried = any(kwargs.get(name) is not None for name in TRIED)
        if self.lacking:
            return None
        if not (self.checks or tags or self.plugins or tried):
            return deployments
        try:
            found = deployments
            if self.checks:
                found = await self.checked(model, called, found, messages, kwargs)
            if tags:
                found = await self.tagged(model, found, kwargs)
            if self.plugins:
                found = getattr(self.router, PLUGGED)(healthy_deployments=found, request_kwargs=kwargs)
            if tried:
                found = self.untried(found, kwargs)
            self.failed = None
            return found or None
        except (TypeError, AttributeError, KeyError) as error:
            text = "LiteLLM's router cannot be asked what it would choose between (%s: %s): %s"
            what = "a full deployment is refused, not passed over"
            self.failed = text % (type(error).__name__, str(error)[:200], what)
        except Exception:
            pass  # as LiteLLM will say itself
        return None

    async def checked(
        self, model: str, called: Called, deployments: list[Deployment], messages: Any, kwargs: Data
    ) -> list[Deployment]:
        """Regions, context windows, parameters."""
        more: Data = {}
        count = getattr(self.router, COUNT, None)
        if count is not None:
            text = kwargs.get("input")
            if text is None and called.body is not None:
                text = called.body[1].get("input")
            more["input"] = text if messages is None else None
        if messages is None and more.get("input") is None:
            return deployments
        asked = {"model": model, "messages": messages, "request_kwargs": kwargs, **more}
        if count is not None:  # not in the event loop
            asked["input_token_count"] = await count(healthy_deployments=deployments, **asked)
            asked["skip_inline_token_count"] = True
        plain = [unordered(deployment) for deployment in deployments]
        left = {model_id(d) for d in self.router._pre_call_checks(healthy_deployments=plain, **asked)}
        return [deployment for deployment in deployments if model_id(deployment) in left]

    async def tagged(self, model: str, deployments: list[Deployment], kwargs: Data) -> list[Deployment]:
        name = "litellm_metadata" if "litellm_metadata" in kwargs else "metadata"
        if isinstance(kwargs.get(name), dict):  # it writes there what it found
            kwargs = {**kwargs, name: {**kwargs[name]}}
        return list(
            await self.by_tags(
                llm_router_instance=self.router,
                model=model,
                healthy_deployments=deployments,
                request_kwargs=kwargs,
                metadata_variable_name=name,
            )
        )

    def untried(self, deployments: list[Deployment], kwargs: Data) -> list[Deployment]:
        target, excluded, skipped = (kwargs.get(name) for name in TRIED)
        if target is not None and self.by_order is not None:
            deployments = self.by_order(deployments, target_order=target)
        elif target is not None:  # 1.92
            deployments = [d for d in deployments if order_of(d) == target] or deployments
        if excluded:
            deployments = others(deployments, excluded)
        if skipped:
            deployments = others(deployments, skipped) or deployments
        return deployments


def takes(function: Any, names: set[str]) -> bool:
    """Whether it can be called with these."""
    try:
        return names <= set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False


def order_of(deployment: Deployment) -> Any:
    found = (deployment.get("litellm_params") or {}).get("order")
    return (deployment.get("model_info") or {}).get("order") if found is None else found


def unordered(deployment: Deployment) -> Deployment:
    """In 1.82.6 the checks leave only the lowest `order`. That one being full, the next shall be taken."""
    params = deployment.get("litellm_params") or {}
    if "order" not in params:
        return deployment
    return {**deployment, "litellm_params": {name: params[name] for name in params if name != "order"}}


def others(deployments: list[Deployment], ids: Iterable[object]) -> list[Deployment]:
    tried = set(map(str, ids))
    return [deployment for deployment in deployments if model_id(deployment) not in tried]
