"""An agent that talks to a real ledger, without LiteLLM."""

import json
import time


def until(condition, seconds=5.0):
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            found = condition()
        except KeyError:  # the thread has not read its policy yet
            found = None
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


class Member:
    """An agent and its thread, without LiteLLM."""

    def __init__(self, tb, url, directory, policies, pod="pod-1", **environ):
        self.tb, self.file = tb, directory / "policy.json"
        directory.mkdir(exist_ok=True)
        if policies is not None:
            self.write(policies)
        self.agent = tb.Agent(
            environ={
                "TOKENBUDGET_REDIS_URL": url,
                "TOKENBUDGET_POD_UID": pod,
                "TOKENBUDGET_POD_NAME": "p",
                "TOKENBUDGET_CONTAINER": "litellm",
                "TOKENBUDGET_POLICY_DIR": str(directory),
                **environ,
            }
        )
        self.ledger = tb.Ledger(self.agent)
        self.ledger.start()

    def write(self, policies):
        self.file.write_text(json.dumps({"tokenBudgets": policies}))

    def book(self, uid="uid-1", name="gpt", unit="tokens"):
        return self.agent.governors[uid].books[(name, unit)]

    def stop(self):
        self.ledger.stopping = True
        self.ledger.event.set()
        self.ledger.join(5)
