//! What is taken out, and what stands in nobody's way.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::sync::mpsc;

use super::*;
use crate::controller::Settings;
use crate::leader::Leadership;
use crate::litellm::{AGENT_FILE, ATTACHED_LABEL, ATTACHED_VALUE};
use crate::ops::Metrics;

fn budget(target: &str) -> TokenBudget {
    serde_json::from_value(json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
        "metadata": {"name": "tb", "namespace": "llm", "uid": "u", "resourceVersion": "1", "finalizers": [FINALIZER]},
        "spec": {"targetRefs": [{"name": target}]}}))
    .unwrap()
}

fn attached(name: &str) -> World {
    attached_by(name, FIELD_MANAGER)
}

fn attached_by(name: &str, manager: &str) -> World {
    let labels = json!({"f:labels": {format!("f:{ATTACHED_LABEL}"): {}}});
    let mounts = json!({"f:volumeMounts": {r#"k:{"mountPath":"/agent.py"}"#: {}}});
    let spec = json!({"f:containers": {r#"k:{"name":"litellm"}"#: mounts}});
    let fields = json!({"f:spec": {"f:template": {"f:metadata": labels, "f:spec": spec}}});
    let managed = json!([{"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields}]);
    World::of(json!({"metadata": {"name": name, "namespace": "llm", "managedFields": managed}, "spec": {"selector": {},
        "template": {"metadata": {"labels": {ATTACHED_LABEL: ATTACHED_VALUE}}, "spec": {"containers": [{"name": "litellm",
            "volumeMounts": [{"name": "agent", "mountPath": "/agent.py", "subPath": AGENT_FILE}]}]}}}}))
}

/// An API server that never answers for Deployments; the channel hears what is sent for TokenBudgets.
fn context() -> (Context, mpsc::UnboundedReceiver<String>) {
    let (told, heard) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: axum::http::Request<kube::client::Body>| {
        let told = told.clone();
        async move {
            let path = format!("{} {}", request.method(), request.uri().path());
            if path.contains("/deployments/") {
                std::future::pending::<()>().await;
            }
            let body = request.into_body().collect_bytes().await.unwrap();
            let _ = told.send(format!("{path} {}", String::from_utf8_lossy(&body)));
            let mut answer = json!(budget("litellm"));
            answer["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "tokenbudget"});
            if path.ends_with("/pods") {
                answer = json!({"metadata": {}, "items": []});
            }
            if path.contains("/configmaps/") {
                (answer["kind"], answer["apiVersion"]) = (json!("ConfigMap"), json!("v1"));
            }
            if path.starts_with("DELETE") {
                answer = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
            }
            let answer = serde_json::to_vec(&answer).unwrap();
            Ok::<_, std::convert::Infallible>(axum::http::Response::new(kube::client::Body::from(answer)))
        }
    });
    let client = Client::new(service, "llm");
    let settings = Settings { role: Role::DetachAll, ..Settings::default() };
    (Context::new(client, settings, Leadership::always(), Metrics::default()), heard)
}

#[tokio::test]
async fn a_deployment_that_cannot_be_written_holds_the_finalizer_only_for_a_while() {
    let ((ctx, mut heard), world, mut memory) = (context(), attached("litellm"), Memory::default());
    let soon = Duration::from_secs(1);
    let tb = budget("litellm");
    assert!(tokio::time::timeout(soon, detach(&tb, &ctx, &world, &mut memory)).await.is_err(), "it is tried");
    let told = told(&mut heard);
    let deleted = |told: &String| told.starts_with("DELETE") && told.contains("/configmaps/tokenbudget-litellm");
    assert!(told.iter().any(deleted), "its policy is gone by then: {told:?}");
    memory.targets.detaches_since = Instant::now().checked_sub(PATIENCE);
    detach(&tb, &ctx, &world, &mut memory).await.unwrap();
    assert_eq!(ctx.given_up(), ["llm/tb"]);
    let sent = heard.recv().await.unwrap();
    assert!(sent.contains("/tokenbudgets/tb") && sent.contains(r#""finalizers":[]"#), "{sent}");
}

#[tokio::test]
async fn a_deletion_whose_writes_hang_is_no_failed_pass_whatever_failed_before() {
    let ((ctx, _heard), world, mut memory) = (context(), attached("litellm"), Memory::default());
    memory.failures = 6;
    let mut tb = budget("litellm");
    // Each of them hangs.
    tb.spec.target_refs.extend(vec![TargetRef { name: "litellm".to_owned(), container: None }; 15]);
    let within = ATTEMPT + Duration::from_secs(1);
    let action = tokio::time::timeout(within, detach(&tb, &ctx, &world, &mut memory)).await.unwrap().unwrap();
    assert_eq!((action, memory.failures), (Action::requeue(AGAIN), 0));
}

#[tokio::test]
async fn an_agent_that_the_user_put_there_is_left_alone() {
    let ((ctx, mut heard), world, mut memory) = (context(), attached_by("litellm", "argocd"), Memory::default());
    let tb = budget("litellm");
    // The Deployment would never answer.
    tokio::time::timeout(Duration::from_secs(5), detach(&tb, &ctx, &world, &mut memory)).await.unwrap().unwrap();
    let told = told(&mut heard);
    assert!(told.iter().any(|told| told.contains(r#""finalizers":[]"#)), "{told:?}");
    assert_eq!(ctx.given_up(), [""; 0]);
}

fn told(heard: &mut mpsc::UnboundedReceiver<String>) -> Vec<String> {
    std::iter::from_fn(|| heard.try_recv().ok()).collect()
}

#[tokio::test]
async fn what_the_spec_lost_while_no_operator_acted_on_it_is_taken_out_with_the_rest() {
    let ((ctx, mut heard), world, mut memory) = (context(), attached("former"), Memory::default());
    let tb = budget("litellm");
    let world = world.with_budgets([tb.clone()]);
    let detach = detach(&tb, &ctx, &world, &mut memory);
    assert!(tokio::time::timeout(Duration::from_secs(1), detach).await.is_err(), "its Deployment is written");
    let told = told(&mut heard);
    assert!(told.iter().any(|t| t.starts_with("DELETE") && t.contains("/configmaps/tokenbudget-former")), "{told:?}");
}

#[tokio::test]
async fn what_the_watch_has_not_brought_of_our_own_write_is_waited_for() {
    let ((ctx, mut heard), mut memory) = (context(), Memory::default());
    let world = World::of(json!({"metadata": {"name": "litellm", "namespace": "llm", "uid": "d", "generation": 1},
        "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "litellm"}]}}}}));
    let tb = budget("litellm");
    let world = world.with_budgets([tb.clone()]);
    let written = ObjectMeta { uid: Some("d".to_owned()), generation: Some(2), ..ObjectMeta::default() };
    memory.targets.attached.entry("litellm".to_owned()).or_default().wrote(&written);
    assert_eq!(detach(&tb, &ctx, &world, &mut memory).await.unwrap(), Action::requeue(AGAIN));
    let told = told(&mut heard);
    assert!(told.iter().all(|t| !t.contains("finalizers")), "{told:?}");
}

#[tokio::test]
async fn a_former_target_that_another_one_names_loses_the_policy_alone() {
    let ((mut ctx, mut heard), world, mut memory) = (context(), attached("former"), Memory::default());
    ctx.settings.role = Role::default();
    let mut other = budget("former");
    (other.metadata.name, other.metadata.uid) = (Some("other".to_owned()), Some("v".to_owned()));
    let tb = budget("litellm");
    let world = world.with_budgets([tb.clone(), other]);
    memory.targets.named = Some(vec![TargetRef { name: "former".to_owned(), container: None }]);
    // The Deployment would never answer.
    let pass = release_former(&tb, &ctx, &world, &mut memory);
    tokio::time::timeout(Duration::from_secs(5), pass).await.unwrap();
    assert_eq!(told(&mut heard), ["GET /api/v1/namespaces/llm/configmaps/tokenbudget-former "]);
    assert!(memory.targets.formers.is_empty());
}

#[tokio::test]
async fn a_former_target_is_remembered_when_its_pass_is_dropped() {
    let ((ctx, _heard), world, mut memory) = (context(), attached("former"), Memory::default());
    memory.targets.named = Some(vec![TargetRef { name: "former".to_owned(), container: None }]);
    let tb = budget("litellm");
    let pass = release_former(&tb, &ctx, &world, &mut memory);
    assert!(tokio::time::timeout(Duration::from_millis(100), pass).await.is_err(), "its Deployment never answers");
    assert_eq!(memory.targets.formers.iter().map(|f| &*f.name).collect::<Vec<_>>(), ["former"]);
}

#[tokio::test]
async fn a_ledger_that_cannot_be_found_is_not_closed() {
    let ((ctx, _heard), world, mut memory) = (context(), attached("litellm"), Memory::default());
    let mut tb = budget("litellm");
    assert_eq!(close_ledger(&tb, &ctx, &world, &mut memory).await, Ok(()), "it never had one");
    let row = crate::api::LimitStatus { name: "gpt".to_owned(), unit: "tokens".to_owned(), ..Default::default() };
    tb.status = Some(crate::api::TokenBudgetStatus { limits: vec![row], ..Default::default() });
    let why = close_ledger(&tb, &ctx, &world, &mut memory).await.unwrap_err();
    assert!(why.contains("Redis"), "{why}");
    let gone = World::of(json!({"metadata": {"name": "other", "namespace": "llm"}, "spec": {"selector": {}}}));
    assert_eq!(close_ledger(&tb, &ctx, &gone, &mut Memory::default()).await, Ok(()), "no process can have it");
}
