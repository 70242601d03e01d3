"""Redis URLs are read as in src/ledger/redis/address.rs, and made as in src/litellm/redis_source.rs."""

import json
import pathlib

import pytest

VECTORS = json.loads((pathlib.Path(__file__).parent.parent / "addresses.json").read_text())


def plain(tb, where, named=True):
    """As the vectors have it; behind Sentinels the server has no host of its own."""
    made = {name: where[name] for name in ("username", "password", "db")}
    made["tls"] = where.get("connection_class") is tb.TlsConnection
    assert where.get("ssl_check_hostname", False) == made["tls"]
    return {**made, "host": where["host"] if named else None, "port": where["port"] if named else None}


@pytest.mark.parametrize("case", VECTORS["urls"], ids=lambda case: case["url"])
def test_a_url_says_what_it_says_to_the_operator(tb, case):
    if "problem" in case:
        with pytest.raises(ValueError) as caught:
            tb.Address(case["url"])
        assert case["problem"] in str(caught.value)
        assert "hunter2" not in repr(caught.value)
        return
    address = tb.Address(case["url"])
    assert {
        "url": case["url"],
        "server": plain(tb, address.server, named=not address.sentinels),
        "sentinels": [plain(tb, one) for one in address.sentinels],
        "service": address.service,
    } == case


@pytest.mark.parametrize("case", VECTORS["environments"], ids=lambda case: json.dumps(case["env"]))
def test_the_environment_names_the_same_redis(tb, case):
    assert tb.redis_url(case["env"]) == case["url"]


def test_the_url_of_the_operator_beats_that_of_litellm(tb):
    assert tb.redis_url({"REDIS_URL": "redis://a", "TOKENBUDGET_REDIS_URL": "redis://b"}) == "redis://b"


def test_the_certificate_is_that_of_the_url(tb):
    def trusted(**env):
        return tb.Ledger(tb.Agent(environ=env)).address().server.get("ssl_ca_data")

    assert trusted(TOKENBUDGET_REDIS_URL="rediss://a", TOKENBUDGET_REDIS_CA="pem") == "pem"
    assert trusted(TOKENBUDGET_REDIS_URL="rediss://a") is None
    assert trusted(REDIS_URL="rediss://a", TOKENBUDGET_REDIS_CA="pem") is None
    assert trusted(TOKENBUDGET_REDIS_URL="redis://a", TOKENBUDGET_REDIS_CA="pem") is None
