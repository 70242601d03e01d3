//! `top`, `attach`, `check` and `completion` as they are run: the program itself, and an API server of a few answers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/litellm/fixtures/litellm-helm.yaml");
const LIST: &str = "/apis/tokenbudget.dev/v1alpha1/namespaces/llm/tokenbudgets";

/// An API server: what it answers to the n-th request (from 0) for a path; none: it never answers.
async fn server(name: &str, answer: fn(usize, &str) -> Option<(StatusCode, Value)>) -> PathBuf {
    let asked = Arc::new(AtomicUsize::new(0));
    let router = Router::new().fallback(move |uri: Uri| {
        let n = asked.fetch_add(1, Ordering::SeqCst);
        async move {
            match answer(n, uri.path()) {
                Some((status, body)) => (status, axum::Json(body)).into_response(),
                None => std::future::pending::<Response>().await,
            }
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let context = |name: &str, namespace: &str| json!({"name": name, "context": {"cluster": "c", "user": "u", "namespace": namespace}});
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "llm",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}], "contexts": [context("llm", "llm"), context("empty", "empty")]});
    file(&format!("{name}.kubeconfig"), &config.to_string())
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_tokenbudget"));
    // A backtrace would stand behind an error's text.
    program.kill_on_drop(true).stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    program
}

async fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().await.unwrap()
}

fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn budget(name: &str) -> Value {
    json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget", "metadata": {"name": name, "namespace": "llm"},
    "spec": {"targetRefs": [{"name": "litellm"}]},
    "status": {"target": "litellm", "replicas": "1/1",
        "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-11-24T12:00:00Z"}],
        "limits": [{"name": "gpt", "unit": "tokens", "budget": 1000, "spent": 250, "denied": 0, "pool": 500, "aside": 0,
            "safeShare": 500, "members": 1}],
        "pods": [{"pod": "p-1", "limit": "gpt", "unit": "tokens", "share": 500, "grant": 500, "spent": 250, "denied": 0,
            "workers": 1, "state": "Enforcing"}]}})
}

fn list(items: &[Value]) -> Option<(StatusCode, Value)> {
    let list =
        json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudgetList", "metadata": {}, "items": items});
    Some((StatusCode::OK, list))
}

fn status(code: StatusCode, reason: &str) -> Option<(StatusCode, Value)> {
    let body = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "message": reason,
        "code": code.as_u16()});
    Some((code, body))
}

fn usual(_: usize, path: &str) -> Option<(StatusCode, Value)> {
    match path {
        LIST => list(&[budget("b"), budget("a")]),
        "/apis/tokenbudget.dev/v1alpha1/tokenbudgets" => list(&[budget("everywhere")]),
        "/apis/tokenbudget.dev/v1alpha1/namespaces/empty/tokenbudgets" => list(&[]),
        "/apis/tokenbudget.dev/v1alpha1/namespaces/llm/tokenbudgets/one" => Some((StatusCode::OK, budget("one"))),
        "/apis/apps/v1/namespaces/llm/deployments/llm-litellm" => {
            let deployment: Value = serde_saphyr::from_str(&std::fs::read_to_string(FIXTURE).unwrap()).unwrap();
            Some((StatusCode::OK, deployment))
        }
        _ => status(StatusCode::NOT_FOUND, "NotFound"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_reads_what_was_asked_for_and_prints_it_plainly() {
    let config = server("usual", usual).await;
    let config = config.to_str().unwrap();
    let top = async |more: &[&str]| {
        let (code, out, errors) = texts(&run(&[&["top", "--kubeconfig", config, "--once"], more].concat()).await);
        assert_eq!(code, Some(0), "{errors}");
        out
    };
    let one = |name: &str| {
        format!(
            "llm/{name}  Enforce  1/1 pods of litellm  Ready\n\n  gpt  [#############{dashes}{blanks}]  25 %  250 of 1,000 tokens per minute\n  \
             pool 500  denied 0  safe share 500  members 1\n    POD {head}SHARE  GRANT  SPENT  DENIED  STATE\n    \
             p-1  [###############--------------|]    500    500    250       0  Enforcing\n",
            dashes = "-".repeat(12),
            blanks = " ".repeat(25),
            head = " ".repeat(35),
        )
    };
    let legend = "\n# spent in the last 60 s   - granted, not spent   | share\n";
    assert_eq!(top(&[]).await, one("a") + "\n" + &one("b") + legend);
    assert_eq!(top(&["one"]).await, one("one") + legend);
    assert_eq!(top(&["-A"]).await, one("everywhere") + legend);
    let empty = "There are no TokenBudgets in namespace empty; -A shows those of all namespaces.\n";
    assert_eq!(top(&["--context", "empty"]).await, empty);
    assert_eq!(top(&["-n", "empty"]).await, empty);

    let items: Value = serde_json::from_str(&top(&["-o", "json"]).await).unwrap();
    let names: Vec<&Value> = items["items"].as_array().unwrap().iter().map(|item| &item["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(items["items"][0]["limits"][0]["safeShare"], 500);
    assert_eq!((&items["items"][0]["ready"], &items["items"][0]["pods"][0]["grant"]), (&json!("True"), &json!(500)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_api_server_ends_at_the_deadline() {
    let config = server("silent", |_, _| None).await;
    let started = Instant::now();
    let output = run(&["top", "--kubeconfig", config.to_str().unwrap(), "--request-timeout", "300ms"]).await;
    let (code, out, errors) = texts(&output);
    assert_eq!(
        (code, out.as_str(), errors.as_str()),
        (Some(1), "", "Error: the API server did not answer within 300ms\n")
    );
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_the_resource_says_how_to_install_it() {
    let config = server("missing", |_, _| status(StatusCode::NOT_FOUND, "NotFound")).await;
    let (code, _, errors) = texts(&run(&["top", "--kubeconfig", config.to_str().unwrap()]).await);
    assert_eq!(code, Some(1));
    assert!(errors.contains("tokenbudget crd | kubectl apply -f -"), "{errors}");
    let (code, _, errors) = texts(&run(&["top", "--kubeconfig", "/none/config"]).await);
    assert_eq!(code, Some(1));
    assert!(errors.contains("no Kubernetes API server") && errors.contains("/none/config"), "{errors}");
    let nobody = std::fs::read_to_string(&config).unwrap().replace("http://127.0.0.1:", "http://127.0.0.1:9/");
    let nobody = file("nobody.kubeconfig", &nobody);
    let (code, _, errors) = texts(&run(&["top", "--kubeconfig", nobody.to_str().unwrap()]).await);
    assert_eq!((code, errors.as_str()), (Some(1), "Error: the API server: Connection refused (os error 111)\n"));
}

/// The second reading fails, those after it do not.
fn stumbles(n: usize, _: &str) -> Option<(StatusCode, Value)> {
    if n == 1 { status(StatusCode::FORBIDDEN, "Forbidden") } else { list(&[budget("a")]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_goes_on_over_a_failed_reading_until_it_is_told_to_end() {
    use tokio::io::{AsyncBufReadExt, BufReader};

    let config = server("stumbles", stumbles).await;
    let arguments = ["top", "--interval", "500ms", "--kubeconfig", config.to_str().unwrap()];
    let mut child = program().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut pictures, mut troubles) = (0, 0);
    while pictures < 3 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.unwrap().unwrap().unwrap();
        assert!(!line.contains('\x1b'), "{line}");
        pictures += usize::from(line.starts_with("llm/a  Enforce"));
        troubles += usize::from(line.contains("Forbidden") && line.ends_with("these figures were read 0 s ago"));
    }
    assert_eq!(troubles, 1);
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_prints_the_same_from_a_file_and_from_the_cluster() {
    let config = server("attach", usual).await;
    for print in ["helm", "kustomize", "yaml"] {
        let from_file = texts(&run(&["attach", "--print", print, "-f", FIXTURE]).await);
        let cluster =
            ["attach", "--print", print, "--deployment", "llm-litellm", "--kubeconfig", config.to_str().unwrap()];
        let from_cluster = texts(&run(&cluster).await);
        assert_eq!(from_file.0, Some(0), "{}", from_file.2);
        assert!(from_file.1.contains("tokenbudget-llm-litellm"), "{}", from_file.1);
        assert_eq!(from_file, from_cluster);
    }
    let (code, _, errors) = texts(&run(&["attach", "-f", FIXTURE, "--container", "x"]).await);
    assert_eq!(code, Some(1));
    assert!(errors.contains("it has litellm: correct --container"), "{errors}");
    let (code, _, errors) = texts(&run(&["attach", "-f", FIXTURE, "--deployment", "other"]).await);
    assert_eq!(code, Some(1));
    assert!(errors.contains("has the Deployments llm-litellm"), "{errors}");
    let (_, out, _) = texts(&run(&["attach", "-f", FIXTURE, "--redis-secret", "r/url", "-n", "other"]).await);
    let patch: Value = serde_saphyr::from_str(&out).unwrap();
    assert_eq!(patch["metadata"], json!({"name": "llm-litellm", "namespace": "other"}));
    let env = patch["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(
        env.iter().any(|variable| variable["valueFrom"]["secretKeyRef"] == json!({"name": "r", "key": "url"})),
        "{env:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_exits_with_0_1_or_2() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/examples/minimal.yaml");
    let budget = "apiVersion: tokenbudget.dev/v1alpha1\nkind: TokenBudget\nmetadata: {name: b}\nspec: {targetRef: {name: litellm}}\n";
    let wrong = file("wrong.yaml", budget);
    let wrong = wrong.to_str().unwrap();
    let (code, out, _) = texts(&run(&["check", example]).await);
    assert_eq!((code, out.lines().last()), (Some(0), Some("1 TokenBudget, no problems")));
    let (code, out, _) = texts(&run(&["check", example, wrong, "-n", "ns"]).await);
    assert_eq!(code, Some(1));
    let said = format!("{wrong}: TokenBudget ns/b: spec.targetRef: no such field; did you mean targetRefs?\n");
    assert!(out.contains(&said), "{out}");
    let (code, out, errors) = texts(&run(&["check", "/none.yaml", wrong, "-o", "json"]).await);
    assert_eq!(code, Some(2));
    assert!(errors.starts_with("/none.yaml: "), "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["findings"][0]["severity"], "problem");
    assert_eq!(report["findings"][0]["field"], "spec.targetRefs");

    let mut piped = program();
    let mut child = piped.args(["check", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), budget.as_bytes()).await.unwrap();
    let (code, out, _) = texts(&child.wait_with_output().await.unwrap());
    assert_eq!(code, Some(1));
    assert!(out.starts_with("-: TokenBudget default/b: "), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_file_is_kubectls_plugin() {
    let link = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kubectl-tokenbudget");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tokenbudget"), &link).unwrap();
    let help = Command::new(&link).arg("--help").output().await.unwrap();
    let (code, out, _) = texts(&help);
    assert_eq!(code, Some(0));
    assert!(out.contains("Usage: kubectl tokenbudget <COMMAND>"), "{out}");
    let script = Command::new(&link).args(["completion", "bash"]).output().await.unwrap();
    assert!(texts(&script).1.contains("kubectl-tokenbudget"));
}
