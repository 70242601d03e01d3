//! What the operator costs: its memory, CPU and requests with one TokenBudget, beside 5,000 pods and 2,000 Deployments of other people, and with up
//! to 1,000.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::{Api, Client};
use serde_json::json;
use tokenbudget::api::TokenBudget;

use super::audit;
use super::fleet::until;
use super::operator::{Footprint, Passes};
use super::rig::{Rig, create};

/// How many TokenBudgets: how it grows is seen in three sizes.
const MANY: [usize; 3] = [100, 300, 1_000];
/// Pods and Deployments of other people: the first are not cached, the others are.
const FOREIGN: usize = 5_000;
const FOREIGN_DEPLOYMENTS: usize = 2_000;
/// Variables in each of these.
const VARIABLES: usize = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// Objects are created side by side.
const AT_ONCE: usize = 20;

/// Measures, and prints a table.
///
/// # Errors
/// When something cannot be made or measured.
pub async fn run(rig: &Rig) -> Result<()> {
    super::checks::prepare(rig).await?;
    println!(
        "| the operator with | RSS, MB | CPU, % of a core | API requests a minute, of them writes | passes a second | 99 % of them within |\n|---|---|---|---|---|---|"
    );
    row(rig, "one TokenBudget, 3 pods, no traffic").await?;
    let client = rig.client().await?;
    create::<Namespace>(&Api::all(client.clone()), json!({"metadata": {"name": "many"}})).await?;
    foreign(&client).await?;
    row(rig, &format!("the same, and {FOREIGN} pods of others")).await?;
    foreign_deployments(&client).await?;
    row(rig, &format!("the same, and {FOREIGN_DEPLOYMENTS} Deployments of others, of {VARIABLES} variables each"))
        .await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "many");
    create(&secrets, json!({"metadata": {"name": "redis"}, "stringData": {"url": rig.redis_url}})).await?;
    let mut there = 0;
    for size in MANY {
        many(rig, &client, there..size).await?;
        there = size;
        row(rig, &format!("the same, and {size} TokenBudgets of {size} Deployments without pods")).await?;
    }
    Ok(())
}

async fn row(rig: &Rig, what: &str) -> Result<()> {
    // What was just made settles first.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let since_ms = jiff::Timestamp::now().as_millisecond();
    let (before, passes) = (Footprint::of_leader(rig)?, Passes::so_far(rig)?);
    tokio::time::sleep(WINDOW).await;
    let (after, passes) = (Footprint::of_leader(rig)?, Passes::so_far(rig)?.since(&passes));
    let requests = audit::requests(rig)?.into_iter().filter(|r| r.at_ms >= since_ms).collect::<Vec<_>>();
    let writes = requests.iter().filter(|r| r.right.is_write()).count();
    let cpu = (after.cpu_s - before.cpu_s) / WINDOW.as_secs_f64() * 100.0;
    let p99 = passes.p99_s().map_or_else(|| "-".to_owned(), |seconds| format!("{:.0} ms", seconds * 1e3));
    let rate = passes.count / WINDOW.as_secs_f64();
    println!("| {what} | {:.0} | {cpu:.1} | {}, {writes} | {rate:.1} | {p99} |", after.rss_mb, requests.len());
    Ok(())
}

/// Pods that no node takes and that are not ours.
async fn foreign(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "many");
    let pod = |index: usize| {
        json!({"metadata": {"name": format!("foreign-{index}"), "labels": {"app": "foreign"}}, "spec": {
            "nodeSelector": {"nobody": "has-it"}, "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "example.com/foreign:1"}]}})
    };
    let made = stream::iter(0..FOREIGN).map(|index| create(&pods, pod(index))).buffer_unordered(AT_ONCE);
    made.map_ok(drop).try_collect().await
}

async fn foreign_deployments(client: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "many");
    let variables: Vec<_> =
        (0..VARIABLES).map(|index| json!({"name": format!("VARIABLE_{index}"), "value": "something"})).collect();
    let deployment = |index: usize| {
        let (name, labels) = (format!("foreign-{index}"), json!({"app": format!("foreign-{index}")}));
        json!({"metadata": {"name": name}, "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [
                {"name": "main", "image": "example.com/foreign:1", "env": variables}]}}}})
    };
    let made = stream::iter(0..FOREIGN_DEPLOYMENTS).map(|index| create(&deployments, deployment(index)));
    made.buffer_unordered(AT_ONCE).map_ok(drop).try_collect().await
}

async fn many(rig: &Rig, client: &Client, new: std::ops::Range<usize>) -> Result<()> {
    let all = new.end;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "many");
    let budgets: Api<TokenBudget> = Api::namespaced(client.clone(), "many");
    let make = async |index: usize| -> Result<()> {
        let name = format!("many-{index}");
        let labels = json!({"app": name});
        create(
            &deployments,
            json!({"metadata": {"name": name}, "spec": {
            "replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "containers": [{"name": "litellm", "image": "ghcr.io/berriai/litellm:v1.106.2"}]}}}}),
        )
        .await?;
        create(
            &budgets,
            json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": name},
            "spec": {"targetRefs": [{"name": name}], "redis": {"urlSecretRef": {"name": "redis", "key": "url"}},
                "limits": [{"name": "a", "models": [{"modelName": "m"}], "tokensPerMinute": 60_000}]}}),
        )
        .await
        .map(drop)
    };
    stream::iter(new).map(make).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let reached = || -> Result<usize> {
        let path = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="LedgerReachable")].status}{"\n"}{end}"#;
        Ok(rig.kubectl(&["-n", "many", "get", "tb", "-o", path])?.lines().filter(|line| *line == "True").count())
    };
    if let Err(error) = until("every ledger is reached", Duration::from_secs(300), || Ok(reached()? == all)).await {
        bail!("{error}: only {} of {all}", reached()?);
    }
    Ok(())
}
