//! A model provider that speaks the OpenAI API and keeps exact books.
//!
//! Start it in-process with [`Provider::start`], or run the binary `provider`
//! and talk to it with [`Remote`].

mod answer;
mod api;
mod cli;
mod control;
mod ledger;
mod remote;
mod settings;
mod state;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use cli::Args;
pub use control::{Arrivals, PairTotals, Range, Series, Usage};
pub use ledger::{KEPT_ARRIVALS, KEPT_SLOTS, Seen, Totals};
pub use remote::Remote;
pub use settings::{Failures, Settings};

use crate::request::Endpoint;
use state::State;

/// The most bytes a request may have.
const MAX_BODY: usize = 64 << 20;

/// A provider that runs in this process until it is stopped or dropped.
#[derive(Debug)]
pub struct Provider {
    state: Arc<State>,
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Provider {
    /// Listens on `address` (port 0 takes a free one) and serves at once.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(address: SocketAddr, settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let listener = listener.tap_io(|stream| {
            // Without it a stream's chunks wait for the client's ACKs.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY");
            }
        });
        let state = Arc::new(State::new(settings));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let service = router(state.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                result = axum::serve(listener, service) => result,
                () = stopped.cancelled() => Ok(()),
            }
        });
        Ok(Self { state, address, stop, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://host:port`, without `/v1`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.state.settings()
    }

    /// Replaces the settings; requests under way keep the old ones.
    ///
    /// # Errors
    /// When the new ones do not make sense.
    pub fn set(&self, settings: Settings) -> Result<(), String> {
        settings.check()?;
        self.state.set(settings);
        Ok(())
    }

    /// What was admitted, as `GET /usage` tells it.
    #[must_use]
    pub fn usage(&self, range: &Range) -> Usage {
        control::usage(&self.state, range)
    }

    /// Single arrivals, as `GET /arrivals` tells them.
    #[must_use]
    pub fn arrivals(&self, range: &Range) -> Arrivals {
        control::arrivals(&self.state, range)
    }

    /// Forgets all usage.
    pub fn reset(&self) {
        self.state.reset();
    }

    /// Serves until the process ends or the listener fails.
    ///
    /// # Errors
    /// When serving fails.
    pub async fn wait(mut self) -> io::Result<()> {
        (&mut self.task).await.map_err(io::Error::other)?
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All routes: the API with and without `/v1`, and the rig's own.
fn router(state: Arc<State>) -> Router {
    let mut router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/models", get(api::models))
        .route("/v1/models", get(api::models))
        .route("/settings", get(control::get_settings).put(control::put_settings))
        .route("/usage", get(control::get_usage).delete(control::reset))
        .route("/usage/reset", post(control::reset))
        .route("/arrivals", get(control::get_arrivals));
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings, Endpoint::Responses] {
        let path = endpoint.path();
        for path in [path, path.trim_start_matches("/v1")] {
            let answer = move |state, headers, body| api::answer(endpoint, state, headers, body);
            router = router.route(path, post(answer));
        }
    }
    router.layer(DefaultBodyLimit::max(MAX_BODY)).with_state(state)
}
