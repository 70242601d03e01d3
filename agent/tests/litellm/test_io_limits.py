"""LiteLLM's own `itpm` and `otpm`, a beta of 1.106, go on counting for the fleet beside the agent."""

import pytest
from conftest import until
from support.fake_operator import limit, policy
from support.proxy import config, deployment


@pytest.fixture
def proxy(rig):
    pol = policy([limit(name="gpt", budget=40000, safe=40000)], uid="uid-io")
    rig.operator.publish(pol)
    one = deployment(rig.provider.base)
    one["litellm_params"].update(itpm=30000, otpm=30000)
    conf = config(
        [one],
        optional_pre_call_checks=["enforce_model_rate_limits"],
        **rig.litellm_redis,
    )
    return rig.start(conf, [pol])


def test_they_are_counted_in_redis(rig, proxy):
    if proxy.version < (1, 106):
        pytest.skip("LiteLLM counts no itpm yet")
    proxy.wait()
    redis = rig.redis.client()
    until(lambda: proxy.chat(300)[0] == 200, 20)
    until(lambda: any(int(redis.get(key)) > 0 for key in redis.keys("*:itpm:*")), 20)
    assert any(int(redis.get(key)) > 0 for key in redis.keys("*:otpm:*"))
    assert "tokenbudget_agent.py" not in proxy.text(), "no traceback of the agent's"
