"""LiteLLM's own counters, kept in this process: the adapter's part."""

from __future__ import annotations

from typing import Any

# The parts of a key that no share stands for: RouterCacheEnum in LiteLLM's types/router.py (1.106.2).
FLEETS_OWN = (":itpm:", ":otpm:")


class LocalCounters:
    """Our share must be compared with this process's usage, not with the fleet's: memory only."""

    def __init__(self) -> None:
        self.replaced: list[tuple[Any, str, Any]] = []  # object, attribute, original

    def localize(self, router: Any) -> dict[str, str | None]:
        """The problems by name, if something of LiteLLM's is missing."""
        try:
            from litellm.caching.caching import DualCache
        except ImportError:
            return {"caches": "litellm.caching.caching.DualCache is missing: shares compared with totals"}
        handlers = by_usage(router)
        checks = getattr(router, "optional_callbacks", None) or []
        checks = [check for check in checks if type(check).__name__ == "ModelRateLimitingCheck"]
        targets = [(handler, name) for handler in handlers for name in ("router_cache", "dual_cache")]
        targets += [(check, "dual_cache") for check in checks]
        local: dict[int, Any] = {}
        for owner, name in targets:
            if hasattr(owner, name) and not any(o is owner and n == name for o, n, _ in self.replaced):
                fleets = getattr(owner, name)
                self.replaced.append((owner, name, fleets))
                setattr(owner, name, local.setdefault(id(owner), own_counters(DualCache, fleets)))
        self.empty_queues()
        v2 = all(hasattr(handler, "router_cache") for handler in handlers)
        check = all(hasattr(check, "dual_cache") for check in checks)
        text = "%s is missing: shares compared with totals of the fleet"
        return {
            "caches": None,
            "v2": None if v2 else text % "lowesttpm_logger_v2.router_cache",
            "check": None if check else text % "ModelRateLimitingCheck.dual_cache",
        }

    def empty_queues(self) -> None:
        """What a selector has counted for Redis: with counters of its own nobody comes for it
        (BaseRoutingStrategy._push_in_memory_increments_to_redis), and it would grow without end."""
        for owner, _, _ in self.replaced:
            queue = getattr(owner, "redis_increment_operation_queue", None)
            if isinstance(queue, list):
                queue.clear()

    def restore(self) -> None:
        self.empty_queues()
        for owner, name, original in self.replaced:
            setattr(owner, name, original)
        self.replaced = []


def by_usage(router: Any) -> list[Any]:
    """What compares usage with a deployment's limit where LiteLLM chooses one: of the router, of its
    `routing_groups`, and of requests that ask for a strategy of their own (from 1.102 on)."""
    default = getattr(router, "lowesttpm_logger_v2", None)
    found = [] if default is None else [default]
    groups = getattr(router, "_group_selectors", None) or {}
    for some in (*groups.values(), getattr(router, "_override_selectors", None) or {}):
        found += [one for one in some.values() if type(one).__name__ == "LowestTPMLoggingHandler_v2"]
    return found


def limits_the_fleet() -> bool:
    """Whether LiteLLM compares a group's `tpm` with what the fleet uses: its callbacks dynamic_rate_limiter
    and dynamic_rate_limiter_v3. A share there would be the limit of all processes together."""
    import litellm

    callbacks = getattr(litellm, "callbacks", None) or ()
    return any("DynamicRateLimitHandler" in type(one).__name__ for one in callbacks)


def own_counters(dual_cache: Any, fleets: Any) -> Any:
    """Counters of this process alone, in LiteLLM's class; what counts for `itpm` and `otpm` stays the
    fleet's."""

    class OwnCounters(dual_cache):  # type: ignore[misc]
        def increment_cache(self, key: str, *args: Any, **kwargs: Any) -> Any:
            owner: Any = fleets if any(part in key for part in FLEETS_OWN) else super()
            return owner.increment_cache(key, *args, **kwargs)

        async def async_increment_cache(self, key: str, *args: Any, **kwargs: Any) -> Any:
            owner: Any = fleets if any(part in key for part in FLEETS_OWN) else super()
            return await owner.async_increment_cache(key, *args, **kwargs)

    return OwnCounters()
