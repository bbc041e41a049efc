//! What the admin thread knows of its node: what stands still, and what the shards answer when they are asked.
//!
//! Whoever asks gets what was published after it asked. Questions are [`ASK_GAP`] apart: one that comes too soon waits for the
//! next and shares it with all that wait, so that no crowd of readers makes the shards publish more often.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::health::Seen;
use crate::shell::{Board, Snapshot};

/// Shards publish at most so often.
const ASK_GAP: Duration = Duration::from_millis(100);

/// How often shards are asked though nobody wants to know, so that it is known when one last turned.
const ASK_ANYWAY: Duration = Duration::from_secs(1);

/// How long to wait for shards that do not answer, before what they said last is told.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// How often it is looked whether they have.
const ANSWER_STEP: Duration = Duration::from_millis(1);

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) segment_size: u32,
    pub(crate) started: Instant,
}

/// See the [module](self).
pub(crate) struct Node {
    pub(super) about: About,
    board: Arc<Board>,
    /// The newest question, and when it was asked. Only this thread takes it.
    asked: Mutex<Option<(Instant, u64)>>,
}

impl Node {
    pub(crate) fn new(about: About, board: Arc<Board>) -> Node {
        Node { about, board, asked: Mutex::new(None) }
    }

    pub(super) fn uptime(&self) -> Duration {
        self.about.started.elapsed()
    }

    /// What all shards publish from now on; of one that does not answer in time, what it published last.
    pub(super) async fn ask(&self) -> Vec<Snapshot> {
        let question = self.question().await;
        let until = Instant::now() + ANSWER_TIME;
        while !self.board.have_answered(question) && Instant::now() < until {
            tokio::time::sleep(ANSWER_STEP).await;
        }
        self.board.snapshots()
    }

    /// The number of a question that was asked since this was called.
    async fn question(&self) -> u64 {
        let came = Instant::now();
        loop {
            let next = {
                let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                match *asked {
                    Some((at, question)) if at >= came => return question,
                    Some((at, _)) if at.elapsed() < ASK_GAP => at + ASK_GAP,
                    _ => {
                        let at = Instant::now();
                        let question = self.board.ask();
                        *asked = Some((at, question));
                        return question;
                    }
                }
            };
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// How far each shard has come, and when it last turned.
    pub(super) async fn shards_seen(&self) -> Vec<Seen> {
        let snapshots = self.ask().await;
        let seen = |it: &Snapshot| Seen { stage: it.stage, ago: it.at.elapsed(), in_repair: it.now.in_repair };
        snapshots.iter().map(seen).collect()
    }

    /// Asks for ever.
    pub(super) async fn keep_asking(&self) {
        loop {
            self.question().await;
            tokio::time::sleep(ASK_ANYWAY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Arc<Node> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let about = About {
            data: PathBuf::new(),
            listen: address,
            admin: address,
            segment_size: 1 << 20,
            started: Instant::now(),
        };
        Arc::new(Node::new(about, Arc::new(Board::of_sleepers(2))))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn a_question_is_asked_after_it_was_wanted() {
        let node = node();
        block_on(async {
            let mut last = 0;
            for _ in 0..3 {
                let question = node.question().await;
                assert!(question > last, "an answer to an older question is no answer");
                last = question;
            }
        });
    }

    #[test]
    fn a_crowd_shares_its_questions() {
        let node = node();
        let begun = Instant::now();
        let asked = block_on(async {
            let first = node.question().await;
            let crowd: Vec<_> = (0..200)
                .map(|_| {
                    let node = node.clone();
                    tokio::spawn(async move { node.question().await })
                })
                .collect();
            let mut last = first;
            for one in crowd {
                last = last.max(one.await.unwrap());
            }
            last - first
        });
        let gaps = begun.elapsed().as_millis() / ASK_GAP.as_millis();
        assert!(asked >= 1 && u128::from(asked) <= gaps, "{asked} questions in {gaps} gaps");
    }
}
