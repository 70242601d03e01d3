use super::*;

const LITELLM: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: litellm, namespace: llm}
spec:
  replicas: 3
  selector: {matchLabels: {app: litellm}}
  strategy: {rollingUpdate: {maxSurge: 1}}
  template:
    metadata: {labels: {app: litellm}}
    spec:
      containers:
      - name: litellm
        env: [{name: REDIS_HOST, value: redis}]
        args: [--num_workers, '2']
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: litellm, namespace: llm}
spec: {minReplicas: 3, maxReplicas: 5, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: litellm}}
---
";

fn found(text: &str) -> Report {
    check(&manifests::parse("f.yaml", text).unwrap(), "llm")
}

fn tb(name: &str, spec: &str) -> String {
    format!("---\napiVersion: tokenbudget.dev/v1alpha1\nkind: TokenBudget\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

const LIMITED: &str = "{targetRefs: [{name: litellm}],
  limits: [{name: gpt, models: [{modelName: m}], tokensPerMinute: 60000, requestsPerMinute: 11}]}";

#[test]
fn the_safe_share_is_the_operators() {
    let expected = "\
f.yaml: TokenBudget llm/a: note: spec.limits: limit gpt: 11 requests are fewer than the fleet's 12 processes, so the safe share is \
0: without Redis no process admits anything; lower maxReplicas or the workers

TokenBudget llm/a in f.yaml
  Deployment litellm: (5 replicas + 1 in a rollout) x 2 workers
  12 processes at most
  limit gpt: 60,000 tokens per minute, safe share 5,000
  limit gpt: 11 requests per minute, safe share 0

1 TokenBudget, no problems
";
    let report = found(&(LITELLM.to_owned() + &tb("a", LIMITED)));
    assert_eq!(report.text(), expected);
    assert!(!report.has_problems());
}

#[test]
fn the_safe_share_is_of_what_headroom_leaves() {
    let spec = LIMITED.replacen('{', "{headroomPercent: 50, ", 1);
    let report = found(&(LITELLM.to_owned() + &tb("a", &spec)));
    assert!(report.text().contains("limit gpt: 30,000 tokens per minute, safe share 2,500\n"), "{}", report.text());
}

#[test]
fn sentinels_are_a_redis_too() {
    let names_none = |variable: &str| {
        let litellm = LITELLM.replace("REDIS_HOST", variable);
        found(&(litellm + &tb("a", LIMITED))).text().contains("neither REDIS_URL")
    };
    assert!(names_none("OTHER"));
    assert!(!names_none("REDIS_SENTINEL_NODES") && !names_none("REDIS_HOST"));
}

#[test]
fn an_autoscaler_of_keda_counts_as_the_hpa_that_it_makes() {
    let keda = |most: &str| {
        format!(
            "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {{name: s}}\nspec: {{scaleTargetRef: {{name: litellm}}{most}}}\n"
        )
    };
    let processes = |text: &str| found(&(LITELLM.to_owned() + text + &tb("a", LIMITED))).budgets[0].most_processes;
    assert_eq!(processes(&keda(", maxReplicaCount: 9")), Some(20));
    assert_eq!(processes(&keda("")), Some(202));
    assert_eq!(processes("kind: ConfigMap\n"), Some(12));
}

#[test]
fn problems_name_file_object_and_field() {
    let text = tb("A_b", "{targetRefs: [{name: litellm}], limit: []}") + &tb("c", "{}") + "---\nkind: TokenBudget\n";
    let expected = "\
f.yaml: TokenBudget llm/A_b: metadata.name: must be a name of lower case letters, digits, - and . that begins and ends with a letter \
or digit
f.yaml: TokenBudget llm/A_b: spec.limit: no such field; did you mean limits?
f.yaml: TokenBudget llm/c: spec.targetRefs: missing: The Deployments of this namespace whose LiteLLM processes spend from this \
budget (1 to 16)
f.yaml: TokenBudget llm/(no name): apiVersion: must be tokenbudget.dev/v1alpha1, and is \"\"

4 problems
";
    let report = found(&text);
    assert_eq!(report.text(), expected);
    assert!(report.has_problems());
}

#[test]
fn names_are_held_to_the_resources_own_rule() {
    let report = found(&tb(&"a".repeat(53), "{targetRefs: [{name: x}]}"));
    assert_eq!(report.findings[0].message, "metadata.name must be at most 52 characters long");
    assert!(!found(&tb(&"a".repeat(52), "{targetRefs: [{name: x}]}")).has_problems());
}

#[test]
fn two_that_claim_the_same_are_a_problem_and_two_that_may_are_noted() {
    let other = LIMITED.replace("gpt", "other");
    let report = found(&(LITELLM.to_owned() + &tb("a", LIMITED) + &tb("b", &other)));
    let claims: Vec<&Finding> = report.findings.iter().filter(|f| f.field == "spec").collect();
    assert_eq!(claims.len(), 1);
    assert_eq!((claims[0].severity, claims[0].object.as_str()), (Severity::Problem, "TokenBudget llm/b"));
    assert!(
        claims[0]
            .message
            .contains("TokenBudget a on Deployment litellm (limits gpt and other both select modelName m)"),
        "{claims:?}"
    );

    let derives = "{targetRefs: [{name: litellm}]}";
    let may = found(&(LITELLM.to_owned() + &tb("a", LIMITED) + &tb("b", &LIMITED.replace("modelName", "id"))));
    let noted: Vec<&Finding> = may.findings.iter().filter(|f| f.field == "spec").collect();
    assert!(!may.has_problems() && noted[0].severity == Severity::Note, "{may:?}");
    assert!(found(&(LITELLM.to_owned() + &tb("a", derives) + &tb("b", derives))).has_problems());
    let elsewhere = tb("b", derives).replace("name: b", "name: b, namespace: other");
    assert!(!found(&(LITELLM.to_owned() + &tb("a", derives) + &elsewhere)).has_problems());
    let twice = found(&(tb("a", derives) + &tb("a", derives)));
    assert_eq!(twice.findings.iter().filter(|f| f.field == "metadata.name").count(), 1);
}

#[test]
fn what_the_operator_would_refuse_is_a_problem() {
    let refused = |spec: &str, change: (&str, &str)| {
        let report = found(&(LITELLM.replace(change.0, change.1) + &tb("a", spec)));
        report.findings.into_iter().map(|f| (f.severity, f.field, f.message)).collect::<Vec<_>>()
    };
    let derives = "{targetRefs: [{name: litellm}]}";
    assert_eq!(refused(derives, ("", "")), []);
    let container = refused("{targetRefs: [{name: litellm, container: x}]}", ("", ""));
    assert!(
        container[0].1 == "spec.targetRefs[0].container" && container[0].2.contains("no container x"),
        "{container:?}"
    );
    let env = "env: [{name: LITELLM_WORKER_STARTUP_HOOKS, value: mine:start}, ";
    let hooks = refused(derives, ("env: [", env));
    assert!(hooks[0].0 == Severity::Problem && hooks[0].2.contains("mine:start,tokenbudget_agent:start"), "{hooks:?}");
    assert_eq!(refused("{targetRefs: [{name: litellm}], attach: Manual}", ("env: [", env)), []);
    let unasked = refused("{targetRefs: [{name: litellm}], attach: Admission}", ("env: [", env));
    assert!(matches!(&unasked[..], [(Severity::Problem, _, told)] if told.contains("label tokenbudget.dev/attach")));
    let redis = refused(derives, ("REDIS_HOST", "NONE"));
    assert!(redis[0].0 == Severity::Note && redis[0].2.contains("spec.redis.urlSecretRef"), "{redis:?}");
    let own = |image: &str| refused(derives, ("- name: litellm", &format!("- name: litellm\n        {image}")));
    assert_eq!(own("image: ghcr.io/berriai/litellm-database:main-stable"), []);
    let image = own("image: registry/gateway:1");
    assert!(image[0].0 == Severity::Note && image[0].2.contains("if registry/gateway:1 starts elsewhere"), "{image:?}");
    assert_eq!(own("image: registry/gateway:1\n        workingDir: /srv"), []);
    let broken = refused(derives, ("replicas: 3", "replicas: three"));
    assert!(broken[0].0 == Severity::Problem && broken[0].2.contains("cannot be read"), "{broken:?}");
}

#[test]
fn the_examples_of_the_repository_are_sound() {
    for name in ["minimal", "observe", "explicit"] {
        let path = format!("{}/crds/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let documents = manifests::read(std::path::Path::new(&path)).unwrap();
        let report = check(&documents, "default");
        assert!(!report.has_problems() && report.budgets.len() == 1, "{name}: {report:?}");
    }
}
