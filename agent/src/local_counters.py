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
        handler = getattr(router, "lowesttpm_logger_v2", None)
        checks = getattr(router, "optional_callbacks", None) or []
        checks = [check for check in checks if type(check).__name__ == "ModelRateLimitingCheck"]
        targets = [(handler, "router_cache"), (handler, "dual_cache")] if handler is not None else []
        targets += [(check, "dual_cache") for check in checks]
        local: dict[int, Any] = {}
        for owner, name in targets:
            if hasattr(owner, name) and not any(o is owner and n == name for o, n, _ in self.replaced):
                fleets = getattr(owner, name)
                self.replaced.append((owner, name, fleets))
                setattr(owner, name, local.setdefault(id(owner), own_counters(DualCache, fleets)))
        v2 = handler is None or hasattr(handler, "router_cache")
        check = all(hasattr(check, "dual_cache") for check in checks)
        text = "%s is missing: shares compared with totals of the fleet"
        return {
            "caches": None,
            "v2": None if v2 else text % "lowesttpm_logger_v2.router_cache",
            "check": None if check else text % "ModelRateLimitingCheck.dual_cache",
        }

    def restore(self) -> None:
        for owner, name, original in self.replaced:
            setattr(owner, name, original)
        self.replaced = []


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
