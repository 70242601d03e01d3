//! Fixtures that mirror LiteLLM's Helm charts, and as much of server-side apply as the tests need.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::{Map, Value, json};

use crate::api::FIELD_MANAGER;

pub fn litellm_helm() -> Deployment {
    serde_saphyr::from_str(include_str!("fixtures/litellm-helm.yaml")).unwrap()
}

pub fn componentized() -> Deployment {
    serde_saphyr::from_str(include_str!("fixtures/litellm-gateway.yaml")).unwrap()
}

pub fn sidecars() -> Deployment {
    serde_saphyr::from_str(include_str!("fixtures/sidecars.yaml")).unwrap()
}

pub fn container(yaml: &str) -> Container {
    serde_saphyr::from_str(yaml).unwrap()
}

/// Changes LiteLLM's container.
pub fn edit(deployment: &Deployment, change: impl FnOnce(&mut Container)) -> Deployment {
    let name = super::choose_container(deployment, None).unwrap().name.clone();
    let mut deployment = deployment.clone();
    let spec = deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    change(spec.containers.iter_mut().find(|container| container.name == name).unwrap());
    deployment
}

/// Changes the pod template's annotations.
pub fn annotate(deployment: &Deployment, name: &str, value: &str) -> Deployment {
    let mut deployment = deployment.clone();
    let metadata = deployment.spec.as_mut().unwrap().template.metadata.get_or_insert_default();
    metadata.annotations.get_or_insert_default().insert(name.to_owned(), value.to_owned());
    deployment
}

/// A variable that the user sets.
pub fn set_env(deployment: &Deployment, name: &str, value: &str) -> Deployment {
    set_env_by(deployment, name, value, "helm")
}

/// `kubectl set env` of a variable that is there: it owns the value, not the entry.
pub fn change_env(deployment: &Deployment, name: &str, value: &str) -> Deployment {
    let mut changed = edit(deployment, |container| {
        let variable = container.env.iter_mut().flatten().find(|variable| variable.name == name).unwrap();
        variable.value = Some(value.to_owned());
    });
    let container = super::choose_container(deployment, None).unwrap().name.clone();
    let (container, variable) = (format!("k:{{\"name\":\"{container}\"}}"), format!("k:{{\"name\":\"{name}\"}}"));
    let fields = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {&container: {"f:env": {
        &variable: {"f:value": {}},
    }}}}}}});
    let all = changed.metadata.managed_fields.get_or_insert_default();
    let path = format!("/f:spec/f:template/f:spec/f:containers/{container}/f:env/{variable}");
    for entry in all.iter_mut() {
        if let Some(item) = entry.fields_v1.as_mut().unwrap().0.pointer_mut(&path) {
            item.as_object_mut().unwrap().remove("f:value");
        }
    }
    all.push(managed("kubectl-set", "Update", fields));
    changed
}

pub fn set_env_by(deployment: &Deployment, name: &str, value: &str, manager: &str) -> Deployment {
    let mut changed = edit(&drop_entry(deployment, name), |container| {
        let variable = serde_json::from_value(json!({"name": name, "value": value})).unwrap();
        container.env.get_or_insert_default().push(variable);
    });
    let container = super::choose_container(deployment, None).unwrap().name.clone();
    let fields = json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {format!("k:{{\"name\":\"{container}\"}}"): {
        "f:env": {format!("k:{{\"name\":\"{name}\"}}"): {".": {}, "f:name": {}, "f:value": {}}},
    }}}}}});
    changed.metadata.managed_fields.get_or_insert_default().push(managed(manager, "Update", fields));
    changed
}

/// A variable that somebody takes out: nobody owns it then.
pub fn drop_entry(deployment: &Deployment, name: &str) -> Deployment {
    let mut changed = edit(deployment, |container| {
        container.env.get_or_insert_default().retain(|variable| variable.name != name);
    });
    for entry in changed.metadata.managed_fields.iter_mut().flatten() {
        forget(&mut entry.fields_v1.as_mut().unwrap().0, &format!("k:{{\"name\":\"{name}\"}}"));
    }
    changed
}

fn forget(fields: &mut Value, key: &str) {
    let Some(fields) = fields.as_object_mut() else {
        return;
    };
    fields.remove(key);
    fields.values_mut().for_each(|inner| forget(inner, key));
}

fn managed(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
    ManagedFieldsEntry {
        manager: Some(manager.to_owned()),
        operation: Some(operation.to_owned()),
        fields_v1: Some(FieldsV1(fields)),
        ..ManagedFieldsEntry::default()
    }
}

/// The server-side apply of a patch by our field manager, without force.
pub fn apply_patch(deployment: &Deployment, patch: &Value) -> Deployment {
    let all = deployment.metadata.managed_fields.clone().unwrap_or_default();
    let is_ours = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
    };
    let (ours, mut others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_ours);
    let mut live = serde_json::to_value(deployment).unwrap();
    let mut theirs = json!({});
    others.iter().for_each(|other| merge(&mut theirs, &other.fields_v1.as_ref().unwrap().0));
    for entry in ours {
        let mut gone = entry.fields_v1.unwrap().0;
        subtract(&mut gone, &theirs);
        remove(&mut live, &gone);
    }
    merge(&mut live, patch);
    let mut merged: Deployment = serde_json::from_value(live).unwrap();
    let mut fields = patch.clone();
    for key in ["apiVersion", "kind", "metadata"] {
        fields.as_object_mut().unwrap().remove(key);
    }
    let fields = fields_of(&fields);
    if fields.as_object().is_some_and(|fields| !fields.is_empty()) {
        others.push(managed(FIELD_MANAGER, "Apply", fields));
    }
    merged.metadata.managed_fields = Some(others);
    merged
}

/// The field that tells the items of a list apart.
fn key_field(items: &[Value]) -> &'static str {
    if items.iter().all(|item| item.get("mountPath").is_some()) { "mountPath" } else { "name" }
}

fn item_key(item: &Value, field: &str) -> String {
    format!("k:{}", json!({field: item[field]}))
}

fn fields_of(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, inner)| (format!("f:{key}"), fields_of(inner))).collect(),
        Value::Array(items) => {
            let field = key_field(items);
            let mut out = Map::new();
            for item in items {
                let mut fields = fields_of(item);
                fields.as_object_mut().unwrap().insert(".".to_owned(), json!({}));
                out.insert(item_key(item, field), fields);
            }
            Value::Object(out)
        }
        _ => json!({}),
    }
}

/// Takes from `fields` what `others` own too.
fn subtract(fields: &mut Value, others: &Value) {
    let (Some(fields), Some(others)) = (fields.as_object_mut(), others.as_object()) else {
        return;
    };
    for (key, other) in others {
        // An item of a list stays only for a manager that owns the item itself.
        if key.starts_with("k:") && other.get(".").is_none() {
            continue;
        }
        let Some(inner) = fields.get_mut(key) else {
            continue;
        };
        subtract(inner, other);
        if inner.as_object().is_some_and(Map::is_empty) {
            fields.remove(key);
        }
    }
}

/// Removes from `live` what `fields` name.
fn remove(live: &mut Value, fields: &Value) {
    let Some(fields) = fields.as_object() else {
        return;
    };
    match live {
        Value::Object(map) => {
            for (key, inner) in fields {
                let Some(name) = key.strip_prefix("f:") else {
                    continue;
                };
                let Some(value) = map.get_mut(name) else {
                    continue;
                };
                remove(value, inner);
                let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty);
                if inner.as_object().is_some_and(Map::is_empty) || empty {
                    map.remove(name);
                }
            }
        }
        Value::Array(items) => {
            let field = key_field(items);
            items.retain(|item| fields.get(&item_key(item, field)).is_none_or(|owned| owned.get(".").is_none()));
            for item in items.iter_mut() {
                if let Some(inner) = fields.get(&item_key(item, field)) {
                    remove(item, inner);
                }
            }
        }
        _ => {}
    }
}

fn merge(live: &mut Value, patch: &Value) {
    match (live, patch) {
        (Value::Object(live), Value::Object(patch)) => {
            for (key, value) in patch {
                if live.get(key).is_none_or(Value::is_null) {
                    live.insert(key.clone(), value.clone());
                } else {
                    merge(&mut live[key], value);
                }
            }
        }
        (Value::Array(live), Value::Array(patch)) => {
            let field = key_field(patch);
            for item in patch {
                match live.iter_mut().find(|other| other[field] == item[field]) {
                    Some(other) => merge(other, item),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, patch) => *live = patch.clone(),
    }
}
