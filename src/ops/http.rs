//! Probes and metrics over HTTP.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::Metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What has to happen before this replica is ready. Clones are the same list. A replica that does not lead is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Readiness {
    /// Waits for all of these.
    #[must_use]
    pub fn waiting_for(what: &[&'static str]) -> Self {
        Self { pending: Arc::new(Mutex::new(what.iter().copied().collect())) }
    }

    /// One of them has happened.
    pub fn done(&self, what: &'static str) {
        self.lock().remove(what);
    }

    /// One of them is not so any more.
    pub fn pending(&self, what: &'static str) {
        self.lock().insert(what);
    }

    /// What is waited for.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/livez`, `/readyz` and `/metrics`.
pub fn router(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(metrics_text).with_state(metrics))
}

/// Listens at an address. `[::]` takes both families of addresses, unless the node has `net.ipv6.bindv6only` set; where the
/// kernel has no IPv6, it means `0.0.0.0`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Serves until `shutdown`, and then finishes what is under way.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let missing = readiness.missing();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", "))).into_response()
    }
}

async fn metrics_text(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_address_is_listened_on_with_or_without_ipv6() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if TcpListener::bind("[::1]:0").await.is_ok() {
            tokio::net::TcpStream::connect(("::1", port)).await.unwrap();
        }
        // That one is taken says so, in either family.
        assert!(listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await.is_err());
    }

    #[tokio::test]
    async fn probes_and_metrics() {
        let readiness = Readiness::waiting_for(&["CRD", "cache"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let router = router(Metrics::new(), readiness.clone());
        let server = tokio::spawn(serve(listener, router, async move { stopped.await.unwrap_or(()) }));

        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("waiting for: CRD, cache\n"), "{answer}");
        readiness.done("CRD");
        readiness.done("cache");
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        readiness.pending("cache");
        assert!(ask(address, "/readyz").await.ends_with("waiting for: cache\n"));
        let answer = ask(address, "/metrics").await;
        assert!(answer.contains(OPEN_METRICS) && answer.ends_with("# EOF\n"), "{answer}");

        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
