use super::super::test_support::{
    annotate, apply_patch, change_env, componentized, drop_entry, edit, litellm_helm, set_env, set_env_by,
};
use super::super::{difference, is_attached};
use super::*;

fn wanted() -> Wanted {
    Wanted { redis_secret: Some(SecretKeyRef { name: "r".to_owned(), key: "url".to_owned() }), ..Wanted::default() }
}

fn attach(deployment: &Deployment, wanted: &Wanted) -> Deployment {
    apply_patch(deployment, &attachment(deployment, wanted).unwrap().patch)
}

fn hooks(deployment: &Deployment) -> Option<String> {
    let container = choose_container(deployment, None).unwrap();
    container.env.iter().flatten().find(|variable| variable.name == STARTUP_HOOKS)?.value.clone()
}

#[test]
fn the_patch_is_this() {
    let made = attachment(&litellm_helm(), &wanted()).unwrap();
    let expected: Value = serde_saphyr::from_str(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: llm-litellm, namespace: llm, uid: 5f1c7a3e-0000-4000-8000-000000000001}
spec:
  template:
    metadata: {labels: {tokenbudget.dev/agent: attached}}
    spec:
      containers:
      - name: litellm
        env:
        - {name: LITELLM_WORKER_STARTUP_HOOKS, value: "tokenbudget_agent:start"}
        - {name: TOKENBUDGET_CONTAINER, value: litellm}
        - {name: TOKENBUDGET_NODE_NAME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: spec.nodeName}}}
        - {name: TOKENBUDGET_POD_NAME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}
        - {name: TOKENBUDGET_POD_UID, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.uid}}}
        - {name: TOKENBUDGET_REDIS_URL, valueFrom: {secretKeyRef: {name: r, key: url}}}
        - {name: TOKENBUDGET_REDIS_CA, valueFrom: {secretKeyRef: {name: r, key: ca.crt, optional: true}}}
        volumeMounts:
        - {name: tokenbudget-agent, mountPath: /app/tokenbudget_agent.py, subPath: tokenbudget_agent.py, readOnly: true}
        - {name: tokenbudget-policy, mountPath: /etc/tokenbudget, readOnly: true}
      volumes:
      - {name: tokenbudget-agent, configMap: {name: tokenbudget-agent}}
      - {name: tokenbudget-policy, configMap: {name: tokenbudget-llm-litellm, optional: true}}
"#,
    )
    .unwrap();
    assert_eq!(made.patch, expected);
    assert_eq!(made.container, "litellm");
}

#[test]
fn applying_it_to_its_own_result_is_the_same_patch() {
    for deployment in [litellm_helm(), componentized()] {
        let first = attachment(&deployment, &wanted()).unwrap();
        assert!(!is_attached(&deployment));
        let once = apply_patch(&deployment, &first.patch);
        let second = attachment(&once, &wanted()).unwrap();
        assert_eq!(first, second);
        assert!(difference(&once, &second).is_empty(), "{:?}", difference(&once, &second));
        assert!(is_attached(&once));
        assert_eq!(apply_patch(&once, &second.patch), once);
        assert_eq!(once.spec.as_ref().unwrap().replicas, deployment.spec.as_ref().unwrap().replicas);
    }
}

#[test]
fn the_working_directory_is_where_python_looks() {
    let deployment = edit(&litellm_helm(), |container| container.working_dir = Some("/srv/".to_owned()));
    let patch = attachment(&deployment, &wanted()).unwrap().patch;
    let path = patch.pointer("/spec/template/spec/containers/0/volumeMounts/0/mountPath").unwrap();
    assert_eq!(path, "/srv/tokenbudget_agent.py");
}

#[test]
fn an_agent_that_is_rolled_out_changes_the_template_and_a_change_of_mind_does_not() {
    let rolling = Wanted { roll_out_agent: true, ..wanted() };
    let annotation = |deployment: &Deployment| {
        deployment.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?.get(DIGEST_ANNOTATION).cloned()
    };
    let quiet = attach(&litellm_helm(), &wanted());
    assert_eq!(annotation(&quiet), None);
    let rolled = attach(&quiet, &rolling);
    assert_eq!(annotation(&rolled).as_deref(), Some(agent_digest()));
    assert!(difference(&rolled, &attachment(&rolled, &wanted()).unwrap()).is_empty());
    assert_eq!(attach(&rolled, &wanted()), rolled);

    let outdated = annotate(&rolled, DIGEST_ANNOTATION, "old");
    let difference = difference(&outdated, &attachment(&outdated, &rolling).unwrap());
    assert_eq!(difference.missing, [Entry::Annotation(DIGEST_ANNOTATION.to_owned())]);
    assert_eq!(apply_patch(&rolled, &detachment(&rolled, None).patch).spec, litellm_helm().spec);
}

#[test]
fn detaching_restores_the_deployment() {
    for deployment in [litellm_helm(), componentized()] {
        let attached = attach(&deployment, &wanted());
        let end = detachment(&attached, None);
        assert_eq!(end.stays, None);
        assert!(end.patch.get("spec").is_none());
        let restored = apply_patch(&attached, &end.patch);
        assert_eq!(restored.spec, deployment.spec);
    }
}

#[test]
fn hooks_of_the_user_are_never_taken_over() {
    let deployment = set_env(&litellm_helm(), STARTUP_HOOKS, "flags:init");
    let refusal = attachment(&deployment, &wanted()).unwrap_err();
    assert_eq!(refusal.reason(), Reason::HooksOwnedByUser);
    assert!(refusal.to_string().ends_with("set it to \"flags:init,tokenbudget_agent:start\""), "{refusal}");
    let empty = set_env(&litellm_helm(), STARTUP_HOOKS, "");
    assert!(attachment(&empty, &wanted()).unwrap_err().to_string().ends_with("\"tokenbudget_agent:start\""));
}

#[test]
fn hooks_of_the_user_that_name_the_agent_are_accepted_and_left_theirs() {
    let theirs = "flags:init, tokenbudget_agent:start";
    let deployment = set_env(&litellm_helm(), STARTUP_HOOKS, theirs);
    let attached = attach(&deployment, &wanted());
    assert_eq!(hooks(&attached).as_deref(), Some(theirs));
    let ours = Entry::Env { container: "litellm".to_owned(), name: STARTUP_HOOKS.to_owned() };
    assert!(!owned(&attached).contains(&ours));
    assert!(difference(&attached, &attachment(&attached, &wanted()).unwrap()).is_empty());
}

/// Seen on a real API server: an apply that leaves the entry out takes the user's value with it.
#[test]
fn hooks_that_the_user_writes_into_our_entry_are_left_theirs() {
    let attached = attach(&litellm_helm(), &wanted());
    let both = format!("flags:init,{AGENT_HOOK}");
    let changed = change_env(&attached, STARTUP_HOOKS, "flags:init");
    assert_eq!(attachment(&changed, &wanted()).unwrap_err().reason(), Reason::HooksOwnedByUser);
    assert_eq!(hooks(&apply_patch(&changed, &detachment(&changed, None).patch)).as_deref(), Some("flags:init"));

    let accepted = change_env(&changed, STARTUP_HOOKS, &both);
    assert!(difference(&accepted, &attachment(&accepted, &wanted()).unwrap()).is_empty());
    let again = attach(&accepted, &wanted());
    assert_eq!(hooks(&again), Some(both.clone()));
    let end = detachment(&again, None);
    assert!(end.stays.is_some(), "the hooks name the agent's file");
    assert_eq!(hooks(&apply_patch(&again, &end.patch)), Some(both));
}

#[test]
fn a_hook_that_outlives_the_attachment_keeps_the_file() {
    let own = |value: &str| attach(&set_env(&litellm_helm(), STARTUP_HOOKS, value), &wanted());
    // The second is owned by both, with one value.
    for attached in [own("flags:init,tokenbudget_agent:start"), own(AGENT_HOOK)] {
        let end = detachment(&attached, None);
        assert!(end.stays.is_some_and(|text| text.contains("take tokenbudget_agent:start out")));
        let left = apply_patch(&attached, &end.patch);
        let container = choose_container(&left, None).unwrap();
        assert!(hooks(&left).is_some_and(|value| names_agent(&value)));
        assert_eq!(container.volume_mounts.iter().flatten().filter(|mount| mount.name == AGENT_VOLUME).count(), 1);
        assert!(!is_attached(&left));
        assert!(!container.env.iter().flatten().any(|variable| variable.name.starts_with("TOKENBUDGET_")));
        // Once the user has taken the hook out, nothing of ours stays.
        let cleaned = drop_entry(&left, STARTUP_HOOKS);
        assert_eq!(detachment(&cleaned, None).stays, None);
    }
}

#[test]
fn hooks_from_elsewhere_are_refused_with_their_source() {
    let deployment = edit(&litellm_helm(), |container| {
        let yaml = "{name: LITELLM_WORKER_STARTUP_HOOKS, valueFrom: {configMapKeyRef: {name: c, key: k}}}";
        container.env.get_or_insert_default().push(serde_saphyr::from_str(yaml).unwrap());
    });
    assert!(attachment(&deployment, &wanted()).unwrap_err().to_string().contains("valueFrom"));

    let helm = litellm_helm();
    assert_eq!(startup_hooks(choose_container(&helm, None).unwrap()).refs().count(), 2, "envFrom of the chart");
    let inherited = |value: &str| inheriting("ConfigMap litellm-env", value);
    let text = attachment(&helm, &inherited("a:b")).unwrap_err().to_string();
    assert!(text.contains("ConfigMap litellm-env") && text.contains("a:b,tokenbudget_agent:start"), "{text}");
    let accepting = inherited("a:b,tokenbudget_agent:start");
    let accepted = attachment(&helm, &accepting).unwrap();
    let attached = apply_patch(&helm, &accepted.patch);
    assert_eq!(hooks(&attached), None);
    assert_eq!(detachment(&attached, None).stays, None);
    assert!(detachment(&attached, accepting.inherited_hooks.as_ref()).stays.is_some());
}

/// What is wanted where the hooks come from there.
fn inheriting(from: &str, value: &str) -> Wanted {
    let inherited = Inherited { from: from.to_owned(), value: value.to_owned() };
    Wanted { inherited_hooks: Some(inherited), ..wanted() }
}

#[test]
fn hooks_that_come_by_env_from_behind_our_entry_are_named_and_not_hidden() {
    let attached = attach(&litellm_helm(), &wanted());
    assert_eq!(startup_hooks(choose_container(&attached, None).unwrap()).refs().count(), 2, "our entry may hide some");
    let inherited = |value: &str| inheriting("envFrom", value);
    let text = attachment(&attached, &inherited("a:b")).unwrap_err().to_string();
    assert!(text.contains("set by envFrom") && text.contains("a:b,tokenbudget_agent:start"), "{text}");

    let both = inherited("a:b,tokenbudget_agent:start");
    let made_way = attach(&attached, &both);
    assert_eq!(hooks(&made_way), None, "theirs names the agent, too");
    assert!(difference(&made_way, &attachment(&made_way, &both).unwrap()).is_empty());
    let stays = |deployment: &Deployment, wanted: &Wanted| {
        detachment(deployment, wanted.inherited_hooks.as_ref()).stays.is_some()
    };
    assert!(stays(&attached, &both), "without our entry theirs counts, and needs the agent's file");
    assert!(!stays(&attached, &inherited("a:b")) && !stays(&attached, &wanted()));

    let theirs = set_env_by(&attached, STARTUP_HOOKS, "c:d,tokenbudget_agent:start", "kubectl-edit");
    assert_eq!(startup_hooks(choose_container(&theirs, None).unwrap()), Setting::Absent, "env is theirs");
}

#[test]
fn others_may_add_hooks_to_ours() {
    let attached = attach(&litellm_helm(), &wanted());
    let mutated = edit(&attached, |container| {
        let env = container.env.as_mut().unwrap();
        let hooks = env.iter_mut().find(|variable| variable.name == STARTUP_HOOKS).unwrap();
        hooks.value = Some("tokenbudget_agent:start,webhook:start".to_owned());
    });
    assert!(difference(&mutated, &attachment(&mutated, &wanted()).unwrap()).is_empty());
}

#[test]
fn what_somebody_took_out_or_what_changed_is_named() {
    let attached = attach(&litellm_helm(), &wanted());
    let made = attachment(&attached, &wanted()).unwrap();
    let without = drop_entry(&attached, STARTUP_HOOKS);
    let missing = difference(&without, &made).missing;
    assert_eq!(
        missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["env LITELLM_WORKER_STARTUP_HOOKS of container litellm"]
    );
    let changed = set_env_by(&attached, "TOKENBUDGET_CONTAINER", "other", "kubectl-edit");
    assert_eq!(difference(&changed, &made).missing.len(), 1);
    // The Redis is the container's own now.
    let less = attachment(&attached, &Wanted::default()).unwrap();
    let surplus = difference(&attached, &less).surplus;
    assert_eq!(
        surplus.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["env TOKENBUDGET_REDIS_CA of container litellm", "env TOKENBUDGET_REDIS_URL of container litellm"]
    );
    let surplus = super::super::Difference { surplus, missing: Vec::new() };
    assert!(surplus.names_another_ledger() && !difference(&without, &made).names_another_ledger());
    // Another container: everything moves.
    let moved = attachment(
        &attach(&componentized(), &wanted()),
        &Wanted { container: Some("collector".to_owned()), ..wanted() },
    );
    let difference = difference(&attach(&componentized(), &wanted()), &moved.unwrap());
    assert_eq!((difference.missing.len(), difference.surplus.len()), (9, 9));
}

#[test]
fn policy_names_fit_and_do_not_collide() {
    assert_eq!(policy_config_map_name("litellm"), "tokenbudget-litellm");
    assert_ne!(policy_config_map_name("agent"), AGENT_CONFIG_MAP);
    let long = "a".repeat(253);
    assert!(policy_config_map_name(&long).len() <= 253);
    assert_ne!(policy_config_map_name(&long), policy_config_map_name(&format!("{}b", "a".repeat(252))));
}
