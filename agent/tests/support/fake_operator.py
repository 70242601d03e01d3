"""What the operator does to the ledger, written straight into Redis."""

import json
import time


def policy(limits, uid="uid-1", version="1", **more):
    """A policy as in docs/protocol.md."""
    base = {
        "version": version,
        "tokenBudget": "llm/test",
        "uid": uid,
        "mode": "Enforce",
        "reserve": "MaxTokens",
        "maxWaitMs": 250,
        "onLedgerLoss": "SafeShare",
        "leaseMs": 30000,
        "beatMs": 500,
        "limits": limits,
    }
    return {**base, **more}


def limit(name="gpt", budget=60000, safe=20000, requests=None, **selector):
    """One limit; the selector's fields default to modelName."""
    out = {"name": name, "models": [selector or {"modelName": name}]}
    if budget is not None:
        out["tokens"] = {"budget": budget, "safe": safe}
    if requests is not None:
        out["requests"] = {"budget": requests, "safe": requests // 3}
    return out


class Operator:
    """Publishes policies, makes books, plans shares (even ones)."""

    def __init__(self, client):
        self.redis, self.books = client, set()

    def key(self, uid, rest):
        return f"tokenbudget:{{{uid}}}:{rest}"

    def publish(self, pol):
        """The policy, and the books it names that are not there yet; the budget of the ones that are."""
        uid = pol["uid"]
        self.redis.hset(
            self.key(uid, "meta"), mapping={"epoch": 1, "version": pol["version"], "policy": json.dumps(pol)}
        )
        for lim in pol.get("limits", []):
            for unit in ("tokens", "requests"):
                if unit in lim:
                    self.book(uid, lim["name"], unit, lim[unit]["budget"], lim[unit]["safe"], pol["leaseMs"])

    def book(self, uid, name, unit, budget, safe, lease_ms):
        key = self.key(uid, f"book:{name}:{unit}")
        self.books.add(key)
        if self.redis.exists(key):
            self.redis.hset(key, mapping={"budget": budget, "safe": safe})
            return
        info = self.redis.info("replication")
        self.redis.hset(
            key,
            mapping={
                "budget": budget,
                "lent": 0,
                "aside": 0,
                "safe": safe,
                "leaseMs": lease_ms,
                "clock": 0,
                "time": int(time.time() * 1000),
                "replid": info["master_replid"],
                "learnUntil": 0,
                "claims": "",
            },
        )

    def keep_time(self):
        """The real operator plans each second, so no book is silent for a lease while it lives. No script:
        tests count those of the agents."""
        for key in list(self.books):
            since = self.redis.hget(key, "time")
            gap = int(time.time() * 1000) - int(since or 0)
            if since and gap > 1000:
                self.redis.hincrby(key, "clock", gap)
                self.redis.hincrby(key, "time", gap)

    def detach(self, uid):
        """close.lua."""
        for key in list(self.redis.scan_iter(self.key(uid, "book:*"))):
            self.redis.delete(key)
        self.redis.hset(
            self.key(uid, "meta"), mapping={"version": "detached", "policy": '{"mode":"Detached"}'}
        )

    def members(self, uid="uid-1", name="gpt", unit="tokens"):
        """member -> its fields in one book."""
        names = ("seq", "record", "spent", "denied", "until", "off", "share", "ended", "claim", "claimSlot")
        fields = self.redis.hgetall(self.key(uid, f"book:{name}:{unit}"))
        return {k[2:]: dict(zip(names, map(int, v.split()))) for k, v in fields.items() if k.startswith("m:")}

    def reports(self, uid="uid-1"):
        return {k: json.loads(v) for k, v in self.redis.hgetall(self.key(uid, "members")).items()}

    def plan(self, uid="uid-1", name="gpt", unit="tokens"):
        """Max-min shares over demand, 10 % kept back while demand is below the budget, as design section
        7."""
        key = self.key(uid, f"book:{name}:{unit}")
        budget = int(self.redis.hget(key, "budget") or 0)
        rows = {m: f for m, f in self.members(uid, name, unit).items() if not f["ended"]}
        if not rows or not budget:
            return
        demand = {m: f["spent"] + f["denied"] + (f["spent"] + f["denied"]) / 120 for m, f in rows.items()}
        shares, left, open_ = dict.fromkeys(rows, 0.0), float(budget), set(rows)
        while open_ and left > 1e-6:
            each = left / len(open_)
            for m in sorted(open_):
                take = min(each, demand[m] - shares[m])
                shares[m] += take
                left -= take
            done = {m for m in open_ if demand[m] - shares[m] <= 1e-6}
            if not done:
                break
            open_ -= done
        spread = max(0.0, left - min(left, 0.1 * budget)) / len(rows)
        for m in rows:
            self.set_share(key, m, int(shares[m] + spread))

    def set_share(self, key, member, share):
        """Only this field, in one step: the agents write the others."""
        self.redis.eval(
            "local v=redis.call('HGET',KEYS[1],ARGV[1]); if not v then return end; local w={}; "
            "for x in string.gmatch(v,'%S+') do w[#w+1]=x end; w[7]=ARGV[2]; "
            "redis.call('HSET',KEYS[1],ARGV[1],table.concat(w,' '))",
            1,
            key,
            "m:" + member,
            share,
        )
