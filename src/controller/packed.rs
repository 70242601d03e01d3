//! A Deployment as the cache keeps it. Other people's are kept, too, as a TokenBudget may name them any time, and
//! k8s-openapi's type takes 50 kB for one with 30 environment variables; this takes 8.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ObjectMeta};
use kube::{Resource, ResourceExt};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::litellm::is_attached;

/// The whole object once more, by `kubectl apply`.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A Deployment, packed.
#[derive(Clone, Debug, Resource)]
#[resource(inherit = "k8s_openapi::api::apps::v1::Deployment")]
pub struct PackedDeployment {
    /// Name, namespace, UID and version.
    pub metadata: ObjectMeta,
    /// Whether its pod template carries the agent.
    pub is_attached: bool,
    json: Box<[u8]>,
}

impl PackedDeployment {
    fn pack(mut deployment: Deployment) -> serde_json::Result<Self> {
        strip(&mut deployment);
        let metadata = ObjectMeta {
            name: deployment.metadata.name.clone(),
            namespace: deployment.metadata.namespace.clone(),
            uid: deployment.metadata.uid.clone(),
            resource_version: deployment.metadata.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let json = serde_json::to_vec(&deployment)?.into_boxed_slice();
        Ok(Self { metadata, is_attached: is_attached(&deployment), json })
    }

    /// The Deployment, with what the operator asks for.
    ///
    /// # Errors
    /// When it cannot be read, which would be a fault of ours: it was written by the same type.
    pub fn unpack(&self) -> serde_json::Result<Deployment> {
        serde_json::from_slice(&self.json)
    }
}

impl<'de> Deserialize<'de> for PackedDeployment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::pack(Deployment::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Who owns which field is more than half of a Deployment, and only the pod template's owners are asked for
/// (`litellm::entries`).
fn strip(deployment: &mut Deployment) {
    deployment.annotations_mut().remove(LAST_APPLIED);
    deployment.status =
        deployment.status.take().map(|s| DeploymentStatus { replicas: s.replicas, ..DeploymentStatus::default() });
    for entry in deployment.managed_fields_mut() {
        let template = entry.fields_v1.as_mut().and_then(|fields| fields.0.pointer_mut("/f:spec/f:template"));
        entry.fields_v1 = template.map(|template| FieldsV1(json!({"f:spec": {"f:template": template.take()}})));
    }
    deployment.managed_fields_mut().retain(|entry| entry.fields_v1.is_some());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(deployment: serde_json::Value) -> PackedDeployment {
        serde_json::from_value(deployment).unwrap()
    }

    #[test]
    fn a_deployment_keeps_who_owns_what_of_its_template_and_how_many_pods_it_has() {
        let packed = packed(json!({
            "metadata": {"name": "d", "namespace": "llm", "resourceVersion": "7", "annotations": {LAST_APPLIED: "{}", "mine": "1"}, "managedFields": [
                {"manager": "helm", "fieldsV1": {"f:metadata": {"f:labels": {}}, "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {}}}}},
                {"manager": "kube-controller-manager", "subresource": "status", "fieldsV1": {"f:status": {"f:replicas": {}}}}]},
            "status": {"replicas": 3, "readyReplicas": 2}
        }));
        assert_eq!((packed.name_any(), packed.namespace()), ("d".to_owned(), Some("llm".to_owned())));
        assert_eq!(packed.resource_version().as_deref(), Some("7"), "a watch goes on from there");
        let kept = serde_json::to_value(packed.unpack().unwrap()).unwrap();
        assert_eq!(kept["metadata"]["annotations"], json!({"mine": "1"}));
        assert_eq!(
            kept["metadata"]["managedFields"],
            json!([{"manager": "helm", "fieldsV1": {"f:spec": {"f:template": {"f:spec": {}}}}}])
        );
        assert_eq!(kept["status"], json!({"replicas": 3}));
    }

    #[test]
    fn what_is_unpacked_is_what_was_packed() {
        let env: Vec<_> =
            (0..30).map(|n| json!({"name": format!("NAME_{n}"), "value": "some value of a usual length"})).collect();
        let mut deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "labels": {"app": "d"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "d"}}, "template": {"spec": {"containers": [
                {"name": "c", "image": "i", "env": env, "resources": {"limits": {"memory": "1Gi"}}}]}}}
        }))
        .unwrap();
        let packed = PackedDeployment::pack(deployment.clone()).unwrap();
        strip(&mut deployment);
        assert_eq!(packed.unpack().unwrap(), deployment);
        assert!(packed.json.len() < 3_000, "{} bytes", packed.json.len());
    }
}
