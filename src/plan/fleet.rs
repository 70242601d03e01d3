//! How many processes a fleet may come to: what the safe share is a part of.

/// Times between two beats of a member, in ms.
const BEATS_MS: [u64; 8] = [500, 700, 1_000, 1_400, 2_000, 2_800, 4_000, MOST_BEAT_MS];

/// The longest, in ms: a sixth of a lease, so that a few lost calls end none.
const MOST_BEAT_MS: u64 = 5_000;

/// Most beats a second that all processes of a Redis send: one Redis on one core carries 10,000 calls (`benches/ledger.rs`), and some
/// are draws.
const BEATS_PER_SECOND: u64 = 8_000;

/// One Deployment of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Declared `spec.replicas`.
    pub replicas: u32,
    /// `maxReplicas` of the HorizontalPodAutoscaler that scales it, if there is one.
    pub most_replicas: Option<u32>,
    /// Pods that a rolling update may add at `replicas` and at `most_replicas`.
    pub surge: u32,
    /// LiteLLM worker processes in a pod.
    pub workers: u32,
}

/// The sizes of a fleet, in processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetSize {
    /// The most that may run at once.
    pub most_processes: u32,
}

impl FleetSize {
    /// Adds up the targets: (the larger of replicas and maxReplicas, and the surge) times the workers.
    #[must_use]
    pub fn of(targets: &[Target]) -> Self {
        let most = |t: &Target| {
            t.replicas.max(t.most_replicas.unwrap_or(0)).saturating_add(t.surge).saturating_mul(t.workers.max(1))
        };
        Self { most_processes: targets.iter().map(most).fold(0, u32::saturating_add).max(1) }
    }

    /// Time between two beats of each member, in ms: many processes beat more slowly, so that their Redis can bear it. `beside`
    /// are the processes of other fleets on the same one. In steps, so that a process more makes no new policy.
    #[must_use]
    pub fn beat_ms(self, beside: u32) -> u64 {
        let processes = u64::from(self.most_processes) + u64::from(beside);
        let least = processes * 1000 / BEATS_PER_SECOND;
        BEATS_MS.into_iter().find(|beat| *beat >= least).unwrap_or(MOST_BEAT_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_surge_and_the_workers() {
        let target = Target { replicas: 3, most_replicas: Some(6), surge: 2, workers: 4 };
        assert_eq!(FleetSize::of(&[target]).most_processes, 32);
        assert_eq!(FleetSize::of(&[]).most_processes, 1);
    }

    #[test]
    fn a_ledger_hears_so_many_beats_a_second() {
        let beat = |most_processes| FleetSize { most_processes }.beat_ms(0);
        assert_eq!([1, 4_000, 4_008, 20_000, 1_000_000].map(beat), [500, 500, 700, 2_800, 5_000]);
        assert_eq!(FleetSize { most_processes: 20 }.beat_ms(19_980), 2_800, "others count, too");
    }
}
