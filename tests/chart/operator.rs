//! The operator itself: pod, rights, command line.

use serde_json::{Value, json};

use super::helm::{
    CHART, EVERYTHING, args, config_map, helm, objects, of_kind, only, refusal, render, render_with_hooks,
};

#[test]
fn lint_finds_nothing() {
    let output = helm(&["lint", "--strict", CHART]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_crd_is_the_generated_one_and_stays() {
    let generated = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/crds/tokenbudgets.yaml")).unwrap();
    let copy = std::fs::read_to_string(format!("{CHART}/files/tokenbudgets.yaml")).unwrap();
    assert_eq!(generated, copy, "run: make generate");

    let mut rendered = only(&objects(&render(&[])), "CustomResourceDefinition");
    let annotations = rendered["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
    assert_eq!(annotations["helm.sh/resource-policy"], "keep");
    assert_eq!(rendered, serde_saphyr::from_str::<Value>(&generated).unwrap());

    assert!(of_kind(&objects(&render(&["crds.install=false"])), "CustomResourceDefinition").is_empty());
}

#[test]
fn the_pod_is_restricted() {
    for values in [&[][..], &EVERYTHING] {
        let deployment = only(&objects(&render(values)), "Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for forbidden in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
            assert!(pod.get(forbidden).is_none(), "{forbidden}");
        }
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.len() == 1 && volumes[0]["configMap"].is_object(), "{volumes:?}");
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert!(container["securityContext"].get("privileged").is_none());
        assert!(container["resources"]["requests"]["cpu"].is_string());
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(container[probe]["httpGet"]["path"], path);
            assert_eq!(container[probe]["httpGet"]["port"], "http");
        }
        assert_eq!(container["ports"][0]["containerPort"], 8080);
    }
}

#[test]
fn rights_are_narrow_and_explained() {
    for values in [&[][..], &EVERYTHING] {
        let text = render(values);
        let objects = objects(&text);
        let roles = [of_kind(&objects, "ClusterRole"), of_kind(&objects, "Role")].concat();
        assert!(!roles.is_empty());
        for rule in roles.iter().flat_map(|role| role["rules"].as_array().unwrap()) {
            assert!(!rule.to_string().contains('*'), "{rule}");
            let resources = rule["resources"].to_string();
            let verbs = rule["verbs"].to_string();
            if resources.contains("secrets") {
                assert_eq!(verbs, r#"["get"]"#);
            }
            assert!(!resources.contains("roles") && !resources.contains("pods/"), "{rule}");
        }
        // Each rule has its reason above it, or belongs to the rule before.
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("- apiGroups:")) {
            let above = lines[at - 1].trim_start();
            assert!(above.starts_with('#') || lines[at - 1].contains("verbs: [create]"), "no reason above: {line}");
        }
    }
}

#[test]
fn secrets_can_be_narrowed_by_name() {
    let names = |values: &[&str]| {
        let rules = only(&objects(&render(values)), "ClusterRole")["rules"].clone();
        let rule = rules.as_array().unwrap().iter().find(|rule| rule["resources"][0] == "secrets").cloned();
        rule.unwrap()["resourceNames"].clone()
    };
    assert!(names(&[]).is_null());
    assert_eq!(names(&["rbac.secretNames={a,b}"]), serde_json::json!(["a", "b"]));
}

#[test]
fn namespaces_make_roles_and_flags() {
    let all = objects(&render(&[]));
    assert_eq!((of_kind(&all, "ClusterRole").len(), of_kind(&all, "Role").len()), (1, 1));
    let some = objects(&render(&["watchNamespaces={a,b}"]));
    assert_eq!((of_kind(&some, "ClusterRole").len(), of_kind(&some, "Role").len()), (0, 3));
    let nodes = objects(&render_with_hooks(&["watchNamespaces={a,b}", "rbac.nodes=true"]));
    let rule = serde_json::json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]});
    assert_eq!(only(&nodes, "ClusterRole")["rules"], serde_json::json!([rule]), "of the operator, and nothing else");
    let alone = objects(&render(&["watchNamespaces={a}", "rbac.nodes=true", "leaderElection=false"]));
    assert_eq!(
        only(&alone, "ClusterRole")["rules"],
        serde_json::json!([rule]),
        "whether or not it takes part in an election"
    );
    let text = args(&some).join(" ");
    assert!(text.contains("--namespace a --namespace b"), "{text}");
    assert!(!args(&all).contains(&"--namespace".to_owned()));
    let lease = only(&all, "Role")["rules"][1]["resourceNames"][0].clone();
    assert_eq!(lease, "tb-tokenbudget", "the release's own");
}

#[test]
fn releases_in_one_namespace_have_leases_of_their_own() {
    let all = objects(&render_with_hooks(&["fullnameOverride=other"]));
    for role in of_kind(&all, "Role").iter().filter(|role| role["rules"][1]["resources"][0] == "leases") {
        assert_eq!(role["rules"][1]["resourceNames"], serde_json::json!(["other"]), "{role}");
    }
    for pod in [only(&all, "Deployment"), only(&all, "Job")] {
        let args = pod["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        assert!(args.to_string().contains(r#""--lease-name","other""#), "{args}");
    }
}

#[test]
fn the_command_line_follows_the_values() {
    assert_eq!(
        args(&objects(&render(&[]))),
        [
            "run",
            "--listen",
            "[::]:8080",
            "--leader-election",
            "true",
            "--lease-namespace",
            "$(POD_NAMESPACE)",
            "--lease-name",
            "tb-tokenbudget",
            "--identity",
            "$(POD_NAME)",
            "--log-file",
            "/etc/tokenbudget/log/filter"
        ]
    );
    let text = args(&objects(&render(&[
        "redis.urlSecretRef.name=r",
        "redis.urlSecretRef.key=url",
        "listen=$(POD_IP):9090",
        "leaderElection=false",
    ])))
    .join(" ");
    for part in ["--default-redis-secret r/url", "--listen $(POD_IP):9090", "--leader-election false"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let off = objects(&render(&["leaderElection=false", "listen=$(POD_IP):9090"]));
    assert_eq!(only(&off, "Deployment")["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(
        only(&off, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"],
        9090
    );
    assert!(of_kind(&off, "Role").is_empty());
}

#[test]
fn everything_on_is_there() {
    let objects = objects(&render(&EVERYTHING));
    for kind in [
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "PodDisruptionBudget",
        "ServiceMonitor",
        "Service",
        "ServiceAccount",
        "PrometheusRule",
        "NetworkPolicy",
    ] {
        only(&objects, kind);
    }
    for suffix in ["-dashboard", "-log"] {
        config_map(&objects, suffix);
    }
    for object in &objects {
        assert!(object["kind"] == "CustomResourceDefinition" || object["metadata"]["labels"].is_object());
    }
}

#[test]
fn the_version_is_the_crates() {
    let chart = std::fs::read_to_string(format!("{CHART}/Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&chart).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let deployment = only(&objects(&render(&[])), "Deployment");
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
    assert_eq!(image, format!("ghcr.io/tokenbudget/tokenbudget:{}", env!("CARGO_PKG_VERSION")));
    for example in ["artifacthub.io/crds", "artifacthub.io/crdsExamples", "artifacthub.io/changes"] {
        assert!(serde_saphyr::from_str::<Value>(chart["annotations"][example].as_str().unwrap()).unwrap().is_array());
    }
}

#[test]
fn unknown_and_wrong_values_are_refused() {
    for value in [
        "replicaCount=3",
        "image.name=x",
        "redis.url=x",
        "crds.create=true",
        "serviceMonitor.on=true",
        "networkPolicy.redis.port=1",
    ] {
        let text = refusal(&[value]);
        assert!(text.contains("not allowed") || text.contains("additional properties"), "{value}: {text}");
    }
    for value in [
        "replicas=many",
        "redis.urlSecretRef.name=r",
        "listen=everywhere",
        "image.digest=latest",
        "networkPolicy.redis.ports={0}",
        "admission.failurePolicy=Never",
        "prometheusRule.disabled={Other}",
    ] {
        assert!(refusal(&[value]).contains("values don't meet the specifications"), "{value}");
    }
    assert!(refusal(&["leaderElection=false", "replicas=2"]).contains("one replica at most"));
}

#[test]
fn several_replicas_are_spread_unless_the_values_say_otherwise() {
    let spread = |values: &[&str]| {
        let pod = only(&objects(&render(values)), "Deployment")["spec"]["template"]["spec"].clone();
        pod.get("topologySpreadConstraints").cloned()
    };
    assert_eq!(spread(&[]), None);
    let spread_of_two = spread(&["replicas=2"]).unwrap();
    let keys: Vec<&str> = spread_of_two.as_array().unwrap().iter().filter_map(|c| c["topologyKey"].as_str()).collect();
    assert_eq!(keys, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]);
    let deployment = only(&objects(&render(&["replicas=2"])), "Deployment");
    for constraint in spread_of_two.as_array().unwrap() {
        assert_eq!(constraint["labelSelector"], deployment["spec"]["selector"]);
        assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway");
    }
    let own = spread(&["replicas=2", "topologySpreadConstraints[0].topologyKey=rack"]).unwrap();
    assert_eq!(own.as_array().unwrap().len(), 1);
    assert_eq!(own[0]["topologyKey"], "rack");
}

/// Sets `value`, and finds `what` at `pointer` of the only object of this kind.
fn shows(value: &str, kind: &str, pointer: &str, what: &Value) {
    let object = only(&objects(&render(&[value])), kind);
    assert_eq!(object.pointer(pointer), Some(what), "{value}");
}

#[test]
fn every_other_value_of_the_pod_does_something() {
    let pod = |rest: &str| format!("/spec/template/spec/{rest}");
    for (value, pointer, what) in [
        ("replicas=3", "/spec/replicas".to_owned(), json!(3)),
        ("fullnameOverride=other", "/metadata/name".to_owned(), json!("other")),
        ("nameOverride=budget", "/metadata/name".to_owned(), json!("tb-budget")),
        ("image.repository=r", pod("containers/0/image"), json!(format!("r:{}", env!("CARGO_PKG_VERSION")))),
        ("image.tag=t", pod("containers/0/image"), json!("ghcr.io/tokenbudget/tokenbudget:t")),
        ("runAsUser=1000680000", pod("securityContext/runAsUser"), json!(1_000_680_000)),
        ("image.pullPolicy=Never", pod("containers/0/imagePullPolicy"), json!("Never")),
        ("imagePullSecrets[0].name=pull", pod("imagePullSecrets/0/name"), json!("pull")),
        ("serviceAccount.name=sa", pod("serviceAccountName"), json!("sa")),
        ("resources.limits.memory=1Gi", pod("containers/0/resources/limits/memory"), json!("1Gi")),
        ("nodeSelector.disk=ssd", pod("nodeSelector/disk"), json!("ssd")),
        ("tolerations[0].key=gpu", pod("tolerations/0/key"), json!("gpu")),
        ("affinity.podAffinity.x=y", pod("affinity/podAffinity/x"), json!("y")),
        ("podAnnotations.x=y", "/spec/template/metadata/annotations/x".to_owned(), json!("y")),
        ("podLabels.x=y", "/spec/template/metadata/labels/x".to_owned(), json!("y")),
        ("priorityClassName=high", pod("priorityClassName"), json!("high")),
        ("terminationGracePeriodSeconds=40", pod("terminationGracePeriodSeconds"), json!(40)),
    ] {
        shows(value, "Deployment", &pointer, &what);
    }
    let chosen = only(&objects(&render(&["runAsUser=null"])), "Deployment");
    let security = chosen.pointer(&pod("securityContext")).unwrap();
    assert_eq!((&security["runAsUser"], &security["runAsNonRoot"]), (&Value::Null, &json!(true)));
    for object in objects(&render(&["commonLabels.x=y", "enabled=true"])) {
        let kind = object["kind"].as_str().unwrap_or_default();
        assert!(object["metadata"]["labels"]["x"] == "y" || kind == "CustomResourceDefinition", "{object}");
    }
    shows("serviceAccount.annotations.x=y", "ServiceAccount", "/metadata/annotations/x", &json!("y"));
    shows("logLevel=debug", "ConfigMap", "/data/filter", &json!("debug"));
    assert!(of_kind(&objects(&render(&["serviceAccount.create=false"])), "ServiceAccount").is_empty());
    let digest = format!("image.digest=sha256:{}", "a".repeat(64));
    let text = render(&[&digest, "image.tag=t"]);
    assert!(text.contains(&format!("tokenbudget@sha256:{}", "a".repeat(64))) && !text.contains("tokenbudget:t"));
    let disruption = only(
        &objects(&render(&["podDisruptionBudget.enabled=true", "podDisruptionBudget.maxUnavailable=50%"])),
        "PodDisruptionBudget",
    );
    assert_eq!(disruption["spec"]["maxUnavailable"], "50%");
}
