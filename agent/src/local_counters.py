"""LiteLLM's own counters, kept in this process: the adapter's part."""

from __future__ import annotations

from typing import Any

# The parts of a key that no share stands for: RouterCacheEnum in LiteLLM's types/router.py (1.106.2).
FLEETS_OWN = (":itpm:", ":otpm:")


class LocalCounters:
    """Our share must be compared with this process's usage, not with the fleet's: memory only."""

    def __init__(self) -> None:
        self.replaced: list[tuple[Any, str, Any]] = []  # object, attribute, original
        # Selectors share counters, as in LiteLLM: it tells only one of them what was used, and makes them
        # anew with each change of the router's settings.
        self.selectors: dict[int, Any] = {}  # by the id of the fleet's counters

    def localize(self, router: Any) -> dict[str, str | None]:
        """The problems by name, if something of LiteLLM's is missing."""
        try:
            from litellm.caching.caching import DualCache
        except ImportError:
            return {"caches": "litellm.caching.caching.DualCache is missing: shares compared with totals"}
        handlers, groups = by_usage(router)
        checks = getattr(router, "optional_callbacks", None) or []
        checks = [check for check in checks if type(check).__name__ == "ModelRateLimitingCheck"]
        targets = [(handler, name) for handler in handlers for name in ("router_cache", "dual_cache")]
        targets += [(check, "dual_cache") for check in checks]
        for row in self.replaced[:]:
            if not any(row[0] is owner for owner, _ in targets):  # LiteLLM has dropped it
                self.give_back(row)
                self.replaced.remove(row)
        for owner, name in targets:
            if hasattr(owner, name) and not any(o is owner and n == name for o, n, _ in self.replaced):
                fleets = getattr(owner, name)
                self.replaced.append((owner, name, fleets))
                if owner in checks:
                    own = own_counters(DualCache, fleets)
                else:
                    own = self.selectors.get(id(fleets)) or own_counters(DualCache, fleets)
                    self.selectors[id(fleets)] = own
                setattr(owner, name, own)
        for owner, _, _ in self.replaced:
            empty_queue(owner)
        v2 = all(hasattr(handler, "router_cache") for handler in handlers)
        check = all(hasattr(check, "dual_cache") for check in checks)
        text = "%s is missing: shares compared with totals of the fleet"
        return {
            "caches": None,
            "groups": None if groups else text % "Router._group_selectors or _override_selectors",
            "v2": None if v2 else text % "lowesttpm_logger_v2.router_cache",
            "check": None if check else text % "ModelRateLimitingCheck.dual_cache",
        }

    def give_back(self, row: tuple[Any, str, Any]) -> None:
        owner, name, original = row
        empty_queue(owner)  # the fleet's counters would get it
        setattr(owner, name, original)

    def restore(self) -> None:
        for row in self.replaced:
            self.give_back(row)
        self.replaced, self.selectors = [], {}


def empty_queue(owner: Any) -> None:
    """Drops what a selector has counted for Redis: with counters of its own nobody comes for it
    (BaseRoutingStrategy._push_in_memory_increments_to_redis), and it would grow without end."""
    queue = getattr(owner, "redis_increment_operation_queue", None)
    if isinstance(queue, list):
        queue.clear()


def by_usage(router: Any) -> tuple[list[Any], bool]:
    """What compares usage with a deployment's limit where LiteLLM chooses one: of the router, of its
    `routing_groups`, and of requests that ask for a strategy of their own (from 1.102 on). False if those of
    the groups are not where they were."""
    default = getattr(router, "lowesttpm_logger_v2", None)
    found, known = ([] if default is None else [default]), True
    groups, overrides = (getattr(router, name, None) for name in ("_group_selectors", "_override_selectors"))
    if not groups and (getattr(router, "routing_groups", None) or getattr(router, "_routing_groups", None)):
        known = False
    for some in (*(groups.values() if isinstance(groups, dict) else [groups]), overrides):
        if isinstance(some, dict):
            found += [one for one in some.values() if type(one).__name__ == "LowestTPMLoggingHandler_v2"]
        elif some is not None:
            known = False
    return found, known


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
