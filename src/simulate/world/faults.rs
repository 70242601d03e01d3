//! What goes wrong, and what people do.

use super::{Event, World};
use crate::simulate::fault::Fault;
use crate::simulate::operator::{Operator, Seen};
use crate::simulate::process::TIMEOUT;

impl World<'_> {
    pub(super) fn fault(&mut self, fault: Fault) {
        let live = self.live.clone();
        let at = |place: usize| live.get(place % live.len().max(1)).copied();
        match fault {
            Fault::Kill(place) => {
                if let Some(who) = at(place) {
                    self.kill(who);
                    let boots_at = self.now + 10.0 + 5.0 * self.rng.unit();
                    self.push(boots_at, Event::Boot(self.slots[who].pod));
                }
            }
            Fault::Freeze(place, seconds) => {
                if let Some(who) = at(place) {
                    self.slots[who].frozen_until = self.now + seconds;
                    self.push(self.now + seconds, Event::Wake(who));
                }
            }
            Fault::Suspend(place, seconds) => {
                if let Some(who) = at(place) {
                    let slot = &mut self.slots[who];
                    slot.boot_offset -= seconds * slot.boot_rate;
                    slot.frozen_until = self.now + seconds;
                    self.push(self.now + seconds, Event::Wake(who));
                }
            }
            Fault::Orphan(seconds) => {
                self.start(None);
                if let Some(slot) = self.slots.last_mut() {
                    slot.cut_until = self.now + seconds;
                }
            }
            Fault::FalseEnd(place) => {
                if let Some(who) = at(place) {
                    let (member, since) = (self.slots[who].name.clone(), self.slots[who].since);
                    let finished_ms = Some(self.finished_ms(who));
                    self.ended.push(Seen { member, since, finished_ms, vanished: false });
                }
            }
            Fault::Fork(place) => {
                if let Some(who) = at(place).filter(|_| live.len() < self.wish.most as usize) {
                    self.fork(who);
                }
            }
            Fault::SetWall(place, by) => {
                if let Some(who) = at(place) {
                    self.slots[who].wall_offset += by;
                }
            }
            Fault::CutOff(place, seconds) => {
                if let Some(who) = at(place) {
                    self.slots[who].cut_until = self.now + seconds;
                }
            }
            Fault::Failing(place, seconds) => {
                if let Some(who) = at(place) {
                    self.slots[who].failing_until = self.now + seconds;
                }
            }
            Fault::Vanish(place) => {
                if let Some(who) = at(place) {
                    let pod = self.slots[who].pod;
                    self.pods[pod].1 = true;
                }
            }
            Fault::Scale(to) => self.scale(to.min(self.wish.most as usize)),
            Fault::LedgerDown(seconds) => self.server.down_until = self.now + seconds,
            Fault::LedgerSilent(seconds) => self.server.silent_until = self.now + seconds,
            Fault::Failover(lag) => self.server.fail_over(lag, self.now),
            Fault::Restart(keep) => self.server.restart(keep),
            Fault::Flush => self.server.flush(),
            Fault::SetServer(by) => self.server.set_clock(by),
            Fault::OperatorAway(seconds) => {
                self.operator_away_until = self.now + seconds;
                self.operators[0].0 = Operator::new(self.operators[0].0.ever, self.config.rules);
            }
            Fault::TwoOperators(seconds) => self.two_operators(seconds),
            Fault::KubernetesLate(seconds) => self.kubernetes_lag = seconds,
            Fault::Budget(percent) => {
                self.wish.budgets = self.config.budgets.iter().map(|b| b * percent / 100).collect();
            }
            Fault::Most(most) => self.wish.most = most,
            Fault::Lease(seconds) => {
                let before = self.wish.lease;
                self.wish.lease = before.max(seconds);
                self.manners.lease = seconds;
                self.lease_falls_at = self.now + before + 2.0 * TIMEOUT + 6.0;
            }
        }
    }

    /// `finishedAt`, if its container ended now: whole seconds of the node's wall clock.
    fn finished_ms(&self, who: usize) -> u64 {
        self.clocks(who).wall.max(1.0) as u64 * 1000
    }

    fn kill(&mut self, who: usize) {
        let finished_ms = self.finished_ms(who);
        let slot = &mut self.slots[who];
        slot.alive = false;
        slot.deferred.clear();
        let vanished = self.pods[slot.pod].1;
        let finished_ms = (!vanished).then_some(finished_ms);
        self.ended.push(Seen { member: slot.name.clone(), since: slot.since, finished_ms, vanished });
        self.count();
    }

    pub(super) fn wake(&mut self, who: usize) {
        let slot = &self.slots[who];
        if !slot.alive || slot.frozen_until > self.now {
            return;
        }
        let clocks = self.clocks(who);
        self.slots[who].process.tick(clocks);
        for event in std::mem::take(&mut self.slots[who].deferred) {
            self.push(self.now, event);
        }
    }

    fn fork(&mut self, who: usize) {
        let clocks = self.clocks(who);
        let slot = &self.slots[who];
        let (pod, rate) = (slot.pod, slot.boot_rate);
        let child = self.slots.len();
        let member = format!("p{pod}.{child}");
        let process = slot.process.forked(member, &self.limits(), clocks);
        self.add(process, pod, rate, clocks.boot);
        self.push(self.now, Event::Beat(child, 0));
    }

    fn scale(&mut self, to: usize) {
        let live = self.live.clone();
        for _ in live.len()..to {
            self.start(None);
        }
        for &who in live.iter().skip(to) {
            self.leave(who);
        }
    }

    /// SIGTERM: the process ends its requests and says good-bye. In the simulation it does both at once.
    fn leave(&mut self, who: usize) {
        let clocks = self.clocks(who);
        if self.slots[who].frozen_until > self.now {
            self.kill(who);
            return;
        }
        let reachable = self.slots[who].cut_until <= self.now && self.server.down_until <= self.now;
        if reachable && !self.slots[who].process.is_calling() {
            let out = self.slots[who].process.call(false, true, clocks);
            self.slots[who].leaving = true;
            self.dispatch(who, out);
        }
        self.kill(who);
    }

    /// A second operator takes over, while the first goes on with what it knew.
    fn two_operators(&mut self, seconds: f64) {
        let ever = self.operators[0].0.ever;
        let first = std::mem::replace(&mut self.operators[0].0, Operator::new(ever, self.config.rules));
        let wish = self.operators[0].2.clone();
        self.second_until = self.now + seconds;
        if self.operators.len() == 1 {
            self.operators.push((first, self.now, wish));
            self.push(self.now + 0.5, Event::Pass(1));
        } else {
            self.operators[1] = (first, self.now, wish);
        }
    }
}
