//! Series of a TokenBudget as a whole: conditions, processes, their calls, pods.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{
    CallKind, CallLabels, ConditionLabels, ConditionStatus, FleetReading, PodLabels, ProcessLabels, ProcessState,
};
use super::show;
use crate::api::ConditionKind;

#[derive(Clone)]
pub(super) struct Fleets {
    condition: Family<ConditionLabels, Gauge>,
    processes: Family<ProcessLabels, Gauge>,
    calls: Family<CallLabels, Gauge>,
    pods: Family<PodLabels, Gauge>,
}

impl Fleets {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let fleets = Self {
            condition: Family::default(),
            processes: Family::default(),
            calls: Family::default(),
            pods: Family::default(),
        };
        registry.register(
            "condition",
            "Conditions of the TokenBudget: 1 for the status that it has, 0 for the others",
            fleets.condition.clone(),
        );
        registry.register(
            "processes",
            "LiteLLM processes in the ledger by how they do; missing while the ledger does not answer",
            fleets.processes.clone(),
        );
        registry.register(
            "calls",
            "Calls of the ledger by LiteLLM processes in the last whole minute: beats, and draws for requests without room",
            fleets.calls.clone(),
        );
        registry.register(
            "pods",
            "Live pods of the target Deployments, by whether they were made with the agent",
            fleets.pods.clone(),
        );
        fleets
    }

    pub(super) fn set(&self, namespace: &str, tokenbudget: &str, reading: &FleetReading) {
        for kind in ConditionKind::ALL {
            let is = reading.conditions.get(kind.as_str());
            for labels in condition_labels(namespace, tokenbudget, kind) {
                show(&self.condition, &labels, is.map(|is| i64::from(*is == labels.status)));
            }
        }
        for labels in process_labels(namespace, tokenbudget) {
            let count = reading.processes.as_ref().map(|states| states.get(&labels.state).copied().unwrap_or(0));
            show(&self.processes, &labels, count);
        }
        for (labels, place) in call_labels(namespace, tokenbudget).iter().zip(0..) {
            show(&self.calls, labels, reading.calls.map(|calls: [i64; 2]| calls[place]));
        }
        for labels in pod_labels(namespace, tokenbudget) {
            let count = if labels.agent { reading.pods_with_agent } else { reading.pods_without_agent };
            self.pods.get_or_create(&labels).set(count);
        }
    }

    pub(super) fn remove(&self, namespace: &str, tokenbudget: &str) {
        for labels in ConditionKind::ALL.into_iter().flat_map(|kind| condition_labels(namespace, tokenbudget, kind)) {
            self.condition.remove(&labels);
        }
        for labels in process_labels(namespace, tokenbudget) {
            self.processes.remove(&labels);
        }
        for labels in call_labels(namespace, tokenbudget) {
            self.calls.remove(&labels);
        }
        for labels in pod_labels(namespace, tokenbudget) {
            self.pods.remove(&labels);
        }
    }

    pub(super) fn clear(&self) {
        self.condition.clear();
        self.processes.clear();
        self.calls.clear();
        self.pods.clear();
    }
}

fn condition_labels(namespace: &str, tokenbudget: &str, kind: ConditionKind) -> [ConditionLabels; 3] {
    ConditionStatus::ALL.map(|status| ConditionLabels {
        namespace: namespace.to_owned(),
        tokenbudget: tokenbudget.to_owned(),
        r#type: kind.as_str(),
        status,
    })
}

fn process_labels(namespace: &str, tokenbudget: &str) -> [ProcessLabels; 6] {
    ProcessState::ALL.map(|state| ProcessLabels {
        namespace: namespace.to_owned(),
        tokenbudget: tokenbudget.to_owned(),
        state,
    })
}

fn call_labels(namespace: &str, tokenbudget: &str) -> [CallLabels; 2] {
    [CallKind::beat, CallKind::draw].map(|kind| CallLabels {
        namespace: namespace.to_owned(),
        tokenbudget: tokenbudget.to_owned(),
        kind,
    })
}

fn pod_labels(namespace: &str, tokenbudget: &str) -> [PodLabels; 2] {
    [true, false].map(|agent| PodLabels { namespace: namespace.to_owned(), tokenbudget: tokenbudget.to_owned(), agent })
}
