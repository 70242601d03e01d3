//! How many processes a fleet may come to: what the safe share is a part of.

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
}
