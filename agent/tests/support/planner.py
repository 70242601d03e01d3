"""The operator's part of one TokenBudget by its own scripts: claim, publish, and plan.lua each second. Unlike
fake_operator.py it survives a ledger that is lost: what comes back has to learn."""

import json

from .fake_operator import Operator
from .rendering import SCRIPTS


def script(*names):
    return "\n".join((SCRIPTS / f"{name}.lua").read_text() for name in names)


CLAIM = script("common", "claim")
PUBLISH = script("common", "fence", "publish")
PLAN = script("common", "fence", "plan")


class Planner(Operator):
    """Plans every book of one policy. `most` is the most processes that may run: safe = budget / most."""

    def __init__(self, client, pol, most):
        super().__init__(client)
        self.pol, self.most, self.uid = pol, most, pol["uid"]
        self.epoch, self.first = None, True
        self.learning = False

    def tick(self, processes):
        """One turn; `processes` run now, whether the ledger has heard of them or not."""
        meta, members = self.key(self.uid, "meta"), self.key(self.uid, "members")
        if self.epoch is None:
            self.epoch = self.redis.eval(CLAIM, 1, meta)[1]
            args = (self.epoch, self.pol["version"], json.dumps(self.pol))
            assert self.redis.eval(PUBLISH, 1, meta, *args)[0] == "ok"
        keys, plans = [meta, members], []
        for lim in self.pol["limits"]:
            for unit in ("tokens", "requests"):
                if unit in lim:
                    keys.append(self.key(self.uid, f"book:{lim['name']}:{unit}"))
                    plans += [len(keys), *self.planned(lim["name"], unit, lim[unit]["budget"], processes)]
        answer = self.redis.eval(PLAN, len(keys), *keys, self.epoch, len(keys) - 2, *plans)
        if answer[0] == "fenced":  # the ledger is a new one
            self.epoch = None
            return
        self.first = False
        self.learning = any(book[5] == "1" for book in answer[1])

    def planned(self, name, unit, budget, processes):
        """plan.lua's arguments for one book, as src/plan/mod.rs computes them."""
        rows = self.members(self.uid, name, unit)
        here = {m: f for m, f in rows.items() if not f["ended"]}
        gone = {m: f for m, f in rows.items() if f["ended"]}
        aside = min(budget, budget * max(0, processes - len(here)) // self.most)
        room = max(0, budget - aside - sum(f["record"] for f in gone.values()))
        floor = budget / 50 / max(1, len(here))
        wanted = {m: f["spent"] + min(f["denied"], budget) for m, f in here.items()}
        wanted = {m: max(floor, w + w / 120) for m, w in wanted.items()}
        shares, left = dict.fromkeys(rows, 0), room
        for at, member in enumerate(sorted(here, key=wanted.get)):  # the smallest demand first: max-min
            shares[member] = int(min(wanted[member], left / (len(here) - at)))
            left -= shares[member]
        level = max(shares.values(), default=room) if left < 1 + len(here) else room
        for member in here:
            shares[member] += int(max(0, left - budget / 10) / len(here))
        out = [budget, aside, level, budget // self.most, self.pol["leaseMs"], int(self.first), len(rows)]
        for member, share in shares.items():
            out += [member, share, int(member in gone)]
        return out
