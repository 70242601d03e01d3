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


def test_without_a_policy_file_a_token_budget_ends_after_ten_minutes_whatever_the_ledger_says(
    tb, clock, tmp_path
):
    file = tmp_path / "policy.json"
    pol = json.dumps({"tokenBudgets": [policy([limit()])]})
    file.write_text(pol)
    agent = tb.Agent(clock=clock, environ={"TOKENBUDGET_POLICY_DIR": str(tmp_path)})
    ledger = tb.Ledger(agent)

    def still_there_after(seconds):
        clock.now += seconds
        for governor in agent.governors.values():
            governor.last_good = clock.now  # the ledger answers
        ledger.read_policies()
        return bool(agent.governors)

    assert still_there_after(0)
    file.unlink()
    assert still_there_after(0)
    assert still_there_after(590)
    file.write_text(pol)  # the operator puts it back
    assert still_there_after(10)
    file.unlink()
    assert still_there_after(0)
    assert still_there_after(600)
    assert not still_there_after(1)


def test_without_a_policy_file_a_token_budget_ends_that_no_ledger_has(tb, clock, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"tokenBudgets": [policy([limit()])]}))
    agent = tb.Agent(clock=clock, environ={"TOKENBUDGET_POLICY_DIR": str(tmp_path)})
    ledger = tb.Ledger(agent)
    ledger.read_policies()
    (governor,) = agent.governors.values()
    file.unlink()
    for down, seconds, ends in ((True, 96, False), (False, 0, True)):
        clock.now, governor.down = clock.now + seconds, down
        ledger.read_policies()
        assert (not agent.governors) == ends


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
