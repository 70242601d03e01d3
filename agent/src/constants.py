"""TokenBudget agent: one file, loaded into every LiteLLM worker process by LITELLM_WORKER_STARTUP_HOOKS.

It holds the process's part of a fleet-wide provider quota (a *grant*, lent by the ledger in Redis) and admits
a request only while what was charged in the last 60 s stays at or under it. Admission is local; a thread
talks to Redis.

  Core     Ring      what was charged when, in slots of 50 ms; forgets them 60 s + slot + guard later
           Book      one (limit, unit): grant, share, lease, give-back rules of docs/architecture.md
           Governor  one TokenBudget: its policy and books
  Agent    all TokenBudgets of the process: admission over several books, reservations, refusals, estimates
  Ledger   thread: beats, draws, the final call (contract: docs/protocol.md), policy file, back-off
  Adapter  the one place that touches LiteLLM's private attributes: router, model_list, callbacks, shutdown
           (with LocalCounters, and Narrowing, which asks what LiteLLM would choose between)
  Hooks    the CustomLogger: filter, check, deployment hook, pre_api_call (stamp), success / failure

Amounts are tokens or requests (spent rounded up, grants down); times are seconds unless a name ends in Ms;
the clock is CLOCK_BOOTTIME, so that a suspended machine counts. Nothing here may fail a request: a fault lets
it through LiteLLM's own path, is named in the report's `problems`, and is logged once a minute. No files are
written.
"""

from __future__ import annotations

import hashlib
import logging

AGENT_VERSION = "0.1.0"
# src/ledger/scripts/call.lua, put here by the operator when it makes the ConfigMap.
CALL_SCRIPT = r"""@CALL_LUA@"""

log = logging.getLogger("tokenbudget")


def digest() -> str:
    """Of this file, as it is in the annotation of its ConfigMap: the first 12 digits."""
    try:
        with open(__file__, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()[:12]
    except OSError:
        return "unread"


AGENT = AGENT_VERSION + "+" + digest()

WINDOW = 60.0  # what a provider's "per minute" is taken to be: any 60 s
SLOT = 0.05  # resolution of the ring
DELAY = 0.35  # what the time from stamp to the provider may differ by; longer stalls are measured
UNKNOWN = 0.6  # what the clock may gain in a window while nothing is known of it (1 %)
SPAN = 60.0  # the clock is measured over this, by the ledger's
STEP = 0.03  # a clock that differs by more was not drifting: one of the two was set
STALL = 0.1  # an event loop whose turn took longer may have held requests back after their stamp
MARGIN = 0.2  # a request stamped this long before a stall may still have been on its way out
TURN = 0.05  # how often the light loop looks
REFRESH = 1.0  # how often it looks over shares and leases, and at all while no request is on its way out
TURNS = 16  # at most, of the event loop, from the stamp until a request has left (new connection, TLS)
DAMP = 1 / 3  # part of the way that a grant moves per beat; all of it under pressure
BUFFER = 0.05  # seconds of its own rate that a member keeps beyond what it spent
EMPTY = 0.04  # part of the budget in the pool that counts as nothing: the most pressure (slack 0)
FULL = 0.2  # and as enough: none (slack 1)
WORTH = 5000  # under pressure a beat is sent as soon as this part of the budget has left the window
BEAT_GAP = 0.1  # least time between two beats
TOUCH = 4.0  # a ledger that has not answered for so long is out of touch: nobody can take what is given up
FILE_GONE = 600.0  # no policy file for so long: the TokenBudget is gone; a lost one is back within 400 s
LEAVE_STEP = 1.0  # a call says how much leaves the window in each of the next steps
LEAVE_STEPS = 60  # together a window
LEAVES_EVERY = 1.0  # that is looked up so often
RECHECK = 0.05  # how often it is looked whether there is room for what waits
DRAW_GAP = 0.05  # least time between two calls of one TokenBudget
UNSENT_BOUND = 120.0  # a reservation without a stamp is taken as sent after this long
ATTEMPT_BOUND = 900.0  # and forgotten (what it charged stays) after this long
BODY_BOUND = 30.0  # what a client sent is kept so long between the proxy's door and the router
MOST_PARTS = 1_000_000  # of a message that are looked at
MOST_JSON = 1_000_000  # characters of a body that LiteLLM has not read
MOST_STAMPS = 1000  # call types and models that are known to be stamped: clients may make models up
STALE_CHECK = 1.0  # a reservation older than this when it is about to leave is admitted again
LATE_WAIT = 5.0  # how long that may wait
HOLD = 65.0  # how long the ledger holds a record beyond its lease: a window, and some
REPORT_EVERY = 10.0  # its figures are made anew then
RATIOS = 256  # calls of which the report says what was reserved beside what they used
OUTSIDE_STEPS = 30  # of REPORT_EVERY, for which the report says what went past the router
NAMED_DEPLOYMENTS = 20  # at most, of a limit, in the report
READ_TIMEOUT = 0.8
CONNECT_TIMEOUT = 1.0
BACKOFF_MAX = 2.0
MOST_HOPS = 3  # nodes of a cluster that are asked in one call
MOST_AMOUNT = 10**12  # in a call (MOST in the ledger's common.lua)
SENTINEL_PORT = 26379
URL_FAULT = "the Redis URL cannot be used: %s"
NO_PARSE = (
    "it does not parse: it has to name a host, the port has to be a number, and special characters of user "
    "and password have to be percent-encoded (%2F for /, %23 for #, %3F for ?, %40 for @)"
)
LIFTED = 10**12  # "no limit" to LiteLLM's own calendar-minute check, for a request that the agent governs
UNKNOWN_OUTPUT = 1000  # tokens of output before anything is known of a model
IMAGE_TOKENS = (
    1100  # OpenAI: up to 1105 for a high-detail image; Anthropic: width x height / 750, about 1600 at most
)
MESSAGE_TOKENS = 4  # OpenAI's chat format: 3 for a message, 1 for a name
