//! The NetworkPolicy.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::helm::{objects, of_kind, only, render};

fn policy(values: &[&str]) -> Value {
    let values = [&["networkPolicy.enabled=true"], values].concat();
    let policy = only(&objects(&render(&values)), "NetworkPolicy");
    let read: NetworkPolicy = serde_json::from_value(policy.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), policy, "a field that Kubernetes does not know");
    policy
}

#[test]
fn it_is_off_unless_asked_for() {
    assert!(of_kind(&objects(&render(&[])), "NetworkPolicy").is_empty());
}

#[test]
fn it_lets_metrics_in_and_dns_the_api_server_and_redis_out() {
    let policy = policy(&["listen=$(POD_IP):9090"]);
    let spec = &policy["spec"];
    let deployment = only(&objects(&render(&[])), "Deployment");
    assert_eq!(spec["podSelector"], deployment["spec"]["selector"]);
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(spec["ingress"], json!([{"ports": [{"protocol": "TCP", "port": 9090}]}]));
    assert_eq!(
        spec["egress"],
        json!([
            {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
            {"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]},
            {"ports": [{"protocol": "TCP", "port": 6379}, {"protocol": "TCP", "port": 26379}]},
        ])
    );
}

#[test]
fn its_values_narrow_and_widen_it() {
    let policy = policy(&[
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.x=monitoring",
        "networkPolicy.apiServer.ports={6443}",
        "networkPolicy.apiServer.to[0].ipBlock.cidr=10.0.0.1/32",
        "networkPolicy.redis.ports={6380,26379}",
        "networkPolicy.redis.to[0].podSelector.matchLabels.app=redis",
        "networkPolicy.extraEgress[0].ports[0].port=4317",
    ]);
    let spec = &policy["spec"];
    assert_eq!(spec["ingress"][0]["from"], json!([{"namespaceSelector": {"matchLabels": {"x": "monitoring"}}}]));
    assert_eq!(
        spec["egress"][1],
        json!({"ports": [{"protocol": "TCP", "port": 6443}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]})
    );
    assert_eq!(spec["egress"][2]["ports"][1]["port"], 26379);
    assert_eq!(spec["egress"][2]["to"], json!([{"podSelector": {"matchLabels": {"app": "redis"}}}]));
    assert_eq!(spec["egress"][3], json!({"ports": [{"port": 4317}]}));
}
