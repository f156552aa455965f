//! Answers of one connection, in the order of its requests.

use std::collections::VecDeque;
use std::future;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::ApiKey;
use tokio::time::Instant;

use super::output::Output;
use crate::api::{CloseReason, Outcome};
use crate::metrics::Metrics;

/// Most requests that have begun and wait for their answer; Java's producer sends 5 at most.
const MAX_WAITING: usize = 16;
/// Most bytes of requests that have begun and wait, if there is more than one.
const MAX_WAITING_LEN: usize = 32 << 20;

/// What has been answered and not been sent, and what has begun and not been answered.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) output: Output,
    waiting: VecDeque<Waiting>,
    waiting_len: usize,
    metrics: Metrics,
}

/// What is remembered of a request until it is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) key: ApiKey,
    /// Bytes of its frame.
    pub(super) len: usize,
    pub(super) since: Instant,
}

struct Waiting {
    request: Begun,
    answer: BoxFuture<'static, Outcome>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.request.fmt(f)
    }
}

impl Answers {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { output: Output::default(), waiting: VecDeque::new(), waiting_len: 0, metrics }
    }

    /// Whether nothing is waited for.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there is room for a request of `len` bytes beside those that wait.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.waiting.len() < MAX_WAITING && self.waiting_len + len <= MAX_WAITING_LEN
    }

    /// Takes the outcome of the request that began last.
    pub(super) fn add(&mut self, request: Begun, outcome: Outcome) -> Result<(), CloseReason> {
        let answer = match outcome {
            Outcome::Later(answer) => answer,
            outcome if self.is_settled() => return self.settle(request, outcome),
            // Its turn comes after those before it.
            outcome => future::ready(outcome).boxed(),
        };
        self.waiting_len += request.len;
        self.waiting.push_back(Waiting { request, answer });
        Ok(())
    }

    /// Waits until at least one more answer can be sent; for ever if nothing is waited for.
    ///
    /// Cancel-safe.
    pub(super) async fn settle_next(&mut self) -> Result<(), CloseReason> {
        let Some(first) = self.waiting.front_mut() else { return future::pending().await };
        let outcome = first.answer.as_mut().await;
        self.settle_first(outcome)?;
        // Answers that came with the same commit go out with it.
        while let Some(outcome) =
            self.waiting.front_mut().and_then(|next| next.answer.as_mut().now_or_never())
        {
            self.settle_first(outcome)?;
        }
        Ok(())
    }

    fn settle_first(&mut self, outcome: Outcome) -> Result<(), CloseReason> {
        let first = self.waiting.pop_front().expect("an outcome belongs to the first that waits");
        self.waiting_len -= first.request.len;
        self.settle(first.request, outcome)
    }

    fn settle(&mut self, request: Begun, outcome: Outcome) -> Result<(), CloseReason> {
        let elapsed: Duration = request.since.elapsed();
        match outcome {
            Outcome::Respond(pieces) => self.output.push(pieces),
            Outcome::Nothing => {}
            Outcome::Close(reason) => return Err(reason),
            Outcome::Later(_) => unreachable!("a later outcome is a final one"),
        }
        self.metrics.request(request.key, elapsed);
        Ok(())
    }
}
