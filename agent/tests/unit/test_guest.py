"""Manners of a guest: what others send or log does not break it, and it does not fill their logs."""

import json
import logging

from support.fake_operator import limit, policy


def test_an_infinite_max_tokens_is_a_large_one(tb):
    data = json.loads('{"max_tokens": 1e400, "messages": []}')
    assert tb.Request(tb.Called("c"), data, []).output == tb.LIFTED


def test_what_is_wrong_in_the_policy_file_hides_no_other_policy(tb, clock, tmp_path):
    broken = policy([{"models": []}], uid="no-name")
    good = policy([limit()])
    (tmp_path / "policy.json").write_text(json.dumps({"tokenBudgets": ["text", broken, good]}))
    agent = tb.Agent(clock=clock, environ={"TOKENBUDGET_POLICY_DIR": str(tmp_path)})
    tb.Ledger(agent).read_policies()
    assert list(agent.governors) == ["uid-1"]
    assert agent.problems()[0].startswith("policy file: KeyError")


def logged(tb, caplog, emit):
    """What a logger with the agent's filter writes."""
    logger = logging.getLogger("LiteLLM Proxy")
    logger.addFilter(tb.QuietRefusals())
    try:
        with caplog.at_level(logging.ERROR, logger.name):
            emit(logger)
    finally:
        logger.filters.clear()
    return caplog.text


def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_refusal_is_logged_without_its_traceback(tb, caplog):
    error = raised(tb.Refused("no room", "llm/test/gpt", 3))
    text = logged(tb, caplog, lambda logger: logger.error("failed - no room", exc_info=error))
    assert "failed - no room" in text
    assert "Traceback" not in text


def test_a_refusal_in_the_text_of_a_message_too(tb, caplog):
    message = f"no room\nTraceback (most recent call last):\n  ...\n{tb.Refused.__module__}.Refused: no room"
    text = logged(tb, caplog, lambda logger: logger.error(message))
    assert "no room" in text
    assert "Traceback" not in text


def test_other_tracebacks_stay(tb, caplog):
    error = raised(ValueError("theirs"))
    text = logged(tb, caplog, lambda logger: logger.error("failed", exc_info=error))
    assert "Traceback" in text
    assert "theirs" in text
