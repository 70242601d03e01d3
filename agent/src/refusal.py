"""429s of ours, and whether a provider was reached at all."""

from __future__ import annotations

import logging

from .book import Book


class Refused(Exception):
    """A 429 of ours. LiteLLM cools nothing down for it, does not retry (num_retries) and still uses
    fallbacks."""

    status_code = 429
    num_retries = 0
    type = "rate_limit_error"
    param = None
    code = "429"

    def __init__(self, message: str, limit: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = {"x-tokenbudget-limit": limit}
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    @classmethod
    def by(cls, book: Book, amount: float, seconds: int) -> Refused:
        """What a client reads. More than 60 s: never."""
        who, name = book.governor.name, f"{book.governor.name}/{book.limit}"
        if seconds > 60:
            text = (
                f"this request needs {amount} {book.unit} and the whole budget of limit {book.limit} is "
                f"{book.budget} per minute: it can never be admitted. Lower max_tokens or split the request."
            )
            return cls(f"TokenBudget {who}: {text}", name, None)
        text = (
            f"limit {book.limit} ({book.budget} {book.unit} per minute for the whole fleet) has no room for "
            f"{amount} {book.unit}. Retry after {seconds} s."
        )
        return cls(f"TokenBudget {who}: {text}", name, seconds)


class RefusedLate(Refused):
    """Raised once a deployment is chosen: in the deployment hook, and in the check, where it may be of a
    fallback (1.102 on). There LiteLLM cools the deployment down, for all processes, unless the text names an
    APIConnectionError (router_utils/cooldown_handlers.py, _is_cooldown_required)."""

    def __str__(self) -> str:
        return self.message + " (nothing was sent: not a fault of the deployment; APIConnectionError)"


class QuietRefusals(logging.Filter):
    """LiteLLM before 1.102 logs every 429 with a traceback; ours are no faults, and there may be many."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            if record.exc_info and isinstance(record.exc_info[1], Refused):
                record.exc_info = record.exc_text = None
            text = record.msg
            if isinstance(text, str) and not record.args and Refused.__module__ + ".Refused" in text:
                record.msg = text.split("\nTraceback (most recent call last)", 1)[0]
        except Exception:
            pass
        return True


# Of aiohttp and httpx: no connection to the provider was opened.
UNCONNECTED = frozenset(
    (
        "ConnectTimeout",
        "ClientConnectorError",
        "PoolTimeout",
        "ConnectionRefusedError",
        "ClientConnectorDNSError",
    )
)
# It may have been, and the request sent. LiteLLM makes a ConnectError of these, too
# (llms/custom_httpx/aiohttp_transport.py, AIOHTTP_EXC_MAP).
MAYBE_CONNECTED = frozenset(("ClientOSError", "ClientConnectorSSLError", "CancelledError"))


# The provider has answered (httpx, aiohttp).
ANSWERED = frozenset(("HTTPStatusError", "ClientResponseError"))
# Of the proxy: a guardrail beside the call or after it, a budget of LiteLLM's own.
OF_THE_PROXY = frozenset(("HTTPException", "ProxyException"))


def is_of_the_proxy(error: BaseException | None) -> bool:
    """Whether it is no provider's word."""
    return type(error).__name__ in OF_THE_PROXY


def never_connected(error: BaseException | None) -> bool:
    """Whether the connection to the provider was never opened (aiohttp, httpx). LiteLLM's error of an earlier
    attempt may be the context of this one's: what is behind it says nothing of this attempt."""
    unconnected = False
    for depth in range(8):
        if error is None or (depth and type(error).__module__ == "litellm.exceptions"):
            break
        name = type(error).__name__
        if name in UNCONNECTED:
            return True
        if name in MAYBE_CONNECTED or name in ANSWERED:
            return False
        unconnected = unconnected or name == "ConnectError"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return unconnected
