//! The admin thread: HTTP for whoever watches the node. It lives on a thread of its own, off the shards' cores if there are
//! more, and knows of the shards only what they publish ([`crate::shell::Board`]).
//!
//! - [`node`] asks the shards, and coalesces who asks. [`health`], [`metrics`] and [`status`] are what is answered.
//! - [`place`] is where it listens, and the file by which `whimbrel status` finds it.

#![forbid(unsafe_code)]

pub(crate) mod health;
mod metrics;
mod node;
pub(crate) mod place;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, oneshot};

pub(crate) use self::node::{About, Node};
use crate::aside::Aside;

/// Connections at a time; others wait to be accepted. With the thread's own few descriptors this stays below what is kept for
/// what is not a client's.
const CONNECTIONS_MAX: usize = 16;

/// How long a client has for the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// How long a connection lasts: whoever asks regularly connects again, whoever does not read gives its place back.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// When accepting failed, it is tried again after this time.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The paths that there are.
const PATHS: &str = "there are /metrics, /healthz, /readyz and /status\n";

/// The running thread.
pub(crate) struct Admin {
    /// The data directory, which says where it listens.
    data: PathBuf,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Serves on a bound socket until it is stopped, and says so in the data directory; on these cores, if any are named.
    pub(crate) fn start(listener: TcpListener, node: Node, aside: Aside) -> anyhow::Result<Admin> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build().context("make a runtime")?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener).context("watch a socket")?
        };
        let (data, address) = (node.about.data.clone(), node.about.admin);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            aside.step();
            runtime.block_on(async move {
                let node = Arc::new(node);
                tokio::spawn(accept(listener, router(node.clone())));
                tokio::spawn(async move { node.keep_asking().await });
                // That the sender is gone is the end as well.
                let _ = stopped.await;
            });
            // With the runtime all connections end.
        })?;
        match place::write(&data, address) {
            Err(error) if is_full(&error) => tracing::warn!(
                path = %data.display(), %address,
                "no space to write down where the admin thread listens: until the next start `whimbrel status` needs --admin ADDRESS"
            ),
            written => written?,
        }
        Ok(Admin { data, stop, thread })
    }

    /// Ends the thread and waits for its end, which nobody who is connected can delay.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow!("the admin thread panicked"))?;
        place::remove(&self.data)
    }
}

/// Whether it failed for want of space.
fn is_full(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
}

async fn accept(listener: tokio::net::TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((socket, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    converse(socket, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin thread cannot accept a connection; it goes on");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// One connection, until it ends or its time is over.
async fn converse(socket: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection of the admin thread broke"),
        Err(_) => tracing::debug!("a connection of the admin thread has lasted long enough"),
    }
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/metrics", get(answer_metrics))
        .route("/healthz", get(answer_health))
        .route("/readyz", get(answer_readiness))
        .route("/status", get(answer_status))
        .fallback(async || (StatusCode::NOT_FOUND, PATHS))
        .with_state(node)
}

async fn answer_metrics(State(node): State<Arc<Node>>) -> Response {
    let snapshots = node.ask().await;
    let text = metrics::encode(&node, snapshots);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn answer_health(State(node): State<Arc<Node>>) -> Response {
    let report = health::alive(&node.shards_seen().await, node.uptime());
    verdict(&report)
}

async fn answer_readiness(State(node): State<Arc<Node>>) -> Response {
    let report = health::ready(&node.shards_seen().await, node.uptime());
    verdict(&report)
}

fn verdict(report: &health::Report) -> Response {
    let code = if report.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, report)
}

async fn answer_status(State(node): State<Arc<Node>>) -> Response {
    let snapshots = node.ask().await;
    json(StatusCode::OK, &status::Status::of(&node, &snapshots))
}

fn json(code: StatusCode, value: &impl serde::Serialize) -> Response {
    let body = serde_json::to_string(value).expect("it has text for keys and no numbers that JSON lacks");
    (code, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response()
}
