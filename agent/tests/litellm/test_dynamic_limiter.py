"""LiteLLM's dynamic_rate_limiter_v3, which holds `tpm` against what the fleet uses, beside the agent."""

import pytest
from conftest import control, until
from support.fake_operator import limit, policy
from support.proxy import config, deployment


@pytest.fixture
def proxy(rig):
    """The budget is lent in part: its share is a small part of what is configured."""
    pol = policy([limit(name="gpt", budget=2000, safe=500)], uid="uid-dynamic")
    rig.operator.publish(pol)
    conf = config(
        [deployment(rig.provider.base, tpm=60000, id="one")],
        optional_pre_call_checks=["enforce_model_rate_limits"],
        **rig.litellm_redis,
    )
    conf["litellm_settings"] = {"callbacks": ["dynamic_rate_limiter_v3"]}
    return rig.start(conf, [pol])


def test_it_goes_by_what_is_configured_and_the_agent_refuses(proxy):
    proxy.wait()
    until(lambda: proxy.chat(300)[0] == 200, 20)
    assert control(proxy, "limits") == {"one": [None, None]}, "as they were"
    assert control(proxy, "caches") == {"local": False, "checks": [True]}
    statuses = [proxy.chat(600) for _ in range(4)]
    assert [status for status, *_ in statuses][-1] == 429
    assert "limit gpt (2000 tokens per minute for the whole fleet)" in statuses[-1][2]
    assert "tokenbudget: fault" not in proxy.text()
