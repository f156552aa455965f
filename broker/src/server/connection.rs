//! One client connection, from its first byte to its last.
//!
//! Reads what the socket has, begins every whole request that may begin, collects answers, and writes them together.

use std::future;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use millrace_protocol::frame::{FrameError, RequestFrame};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::answers::{Answers, Begun};
use super::input::Input;
use super::{Handler, ServerContext};
use crate::api::{ClientConnection, CloseReason};
use crate::metrics::ListenerMetrics;

/// Answers are written when this many bytes have come together, even if there are more requests to begin.
const WRITE_LEN: usize = 64 << 10;

pub(super) struct Connection<H> {
    stream: TcpStream,
    client: ClientConnection,
    handler: H,
    context: ServerContext,
    metrics: ListenerMetrics,
    input: Input,
    /// A whole request that may not begin yet.
    held: Option<Received>,
    answers: Answers,
}

/// A request whose header has been read.
struct Received {
    frame: RequestFrame,
    len: usize,
    since: Instant,
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// The client has closed it.
    ByClient,
    /// The broker stops.
    Stopping,
    /// Nothing came, or nothing went, for `connections.max.idle.ms`.
    Idle,
    /// The bytes are no request.
    Frame(FrameError),
    /// A request without an answer.
    Request(CloseReason),
    /// The socket failed.
    Io(io::Error),
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(
        stream: TcpStream,
        client: ClientConnection,
        handler: H,
        context: ServerContext,
        metrics: ListenerMetrics,
    ) -> Self {
        let input = Input::new(context.limits.max_request_bytes);
        let answers = Answers::new(context.metrics.clone());
        Self { stream, client, handler, context, metrics, input, held: None, answers }
    }

    /// Serves the client until either side ends it.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.stream.set_nodelay(true) {
            tracing::debug!(%error, "setting TCP_NODELAY");
        }
        let end = loop {
            if let Err(end) = self.step().await {
                break end;
            }
        };
        // What was answered before the end still goes out, in a bounded time.
        if !matches!(end, End::Io(_) | End::Idle) {
            let _ = timeout(self.context.stop_grace, self.flush()).await;
        }
        self.report(&end);
    }

    /// Does what can be done with what is there, then waits for something to happen.
    async fn step(&mut self) -> Result<(), End> {
        self.begin_requests().await?;
        self.flush().await?;
        if self.input.ended && self.answers.is_settled() {
            return Err(End::ByClient);
        }
        let may_read = self.held.is_none() && !self.input.ended;
        let max_idle = self.context.limits.max_idle.filter(|_| self.answers.is_settled());
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => self.finish().await,
            settled = self.answers.settle_next(), if !self.answers.is_settled() => settled.map_err(End::Request),
            read = self.input.read(&mut self.stream), if may_read => {
                let len = read.map_err(End::Io)?;
                self.metrics.received.inc_by(u64::try_from(len).unwrap_or(0));
                Ok(())
            }
            () = idle(max_idle) => Err(End::Idle),
        }
    }

    /// Begins every request that is there and may begin.
    async fn begin_requests(&mut self) -> Result<(), End> {
        while !self.context.stop.is_cancelled() {
            let Some(received) = self.next_request()? else { break };
            if !self.may_begin(&received) {
                self.held = Some(received);
                break;
            }
            self.begin(received).await?;
            if self.answers.output.len() >= WRITE_LEN {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn next_request(&mut self) -> Result<Option<Received>, End> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(frame) = self.input.next_frame().map_err(End::Frame)? else { return Ok(None) };
        let len = frame.len();
        let frame = RequestFrame::parse(frame).map_err(End::Frame)?;
        Ok(Some(Received { frame, len, since: Instant::now() }))
    }

    fn may_begin(&self, received: &Received) -> bool {
        self.answers.is_settled()
            || (self.handler.may_overlap(received.frame.key) && self.answers.has_room(received.len))
    }

    async fn begin(&mut self, received: Received) -> Result<(), End> {
        let Received { frame, len, since } = received;
        let request = Begun { key: frame.key, len, since };
        tracing::debug!(
            api_key = frame.key.name(),
            api_version = frame.version,
            correlation_id = frame.correlation_id,
            client_id = frame.client_id.as_deref(),
            "request"
        );
        let mut handling = pin!(self.handler.handle(&mut self.client, frame));
        let outcome = match futures::poll!(handling.as_mut()) {
            Poll::Ready(outcome) => outcome,
            // What has been answered before does not wait with a request that has to.
            Poll::Pending => loop {
                flush(&mut self.stream, &mut self.answers, &self.metrics, &self.context).await?;
                tokio::select! {
                    biased;
                    outcome = &mut handling => break outcome,
                    settled = self.answers.settle_next() => settled.map_err(End::Request)?,
                    () = overdue(&self.context) => return Err(End::Stopping),
                }
            },
        };
        self.answers.add(request, outcome).map_err(End::Request)
    }

    /// The broker stops: requests that have begun are answered, no other begins.
    async fn finish(&mut self) -> Result<(), End> {
        let answers = &mut self.answers;
        let settle_all = async {
            while !answers.is_settled() {
                answers.settle_next().await.map_err(End::Request)?;
            }
            Ok(())
        };
        timeout(self.context.stop_grace, settle_all).await.unwrap_or(Ok(()))?;
        Err(End::Stopping)
    }

    async fn flush(&mut self) -> Result<(), End> {
        flush(&mut self.stream, &mut self.answers, &self.metrics, &self.context).await
    }

    /// Logs the end where it is unexpected.
    fn report(&self, end: &End) {
        let software = self.client.software.as_ref().map(|software| software.name.as_str());
        self.context.metrics.connection_closed(end.label());
        match end {
            End::ByClient | End::Stopping | End::Idle => {
                tracing::debug!(reason = end.label(), "connection closed")
            }
            End::Io(error) => tracing::debug!(%error, "connection lost"),
            End::Frame(error) => {
                let error = with_source(error);
                tracing::warn!(error, software, "closing a connection: what came is no request");
            }
            End::Request(reason @ CloseReason::Unanswerable { .. }) => {
                tracing::error!(error = %reason, software, "closing a connection");
            }
            End::Request(reason) => tracing::warn!(error = %reason, software, "closing a connection"),
        }
    }
}

/// Writes everything that has been answered.
async fn flush(
    stream: &mut TcpStream,
    answers: &mut Answers,
    metrics: &ListenerMetrics,
    context: &ServerContext,
) -> Result<(), End> {
    while !answers.output.is_empty() {
        tokio::select! {
            biased;
            written = answers.output.write_some(stream) => {
                let len = written.map_err(End::Io)?;
                metrics.sent.inc_by(u64::try_from(len).unwrap_or(0));
            }
            () = overdue(context) => return Err(End::Stopping),
            () = idle(context.limits.max_idle) => return Err(End::Idle),
        }
    }
    Ok(())
}

/// Resolves when a broker that stops has waited long enough.
async fn overdue(context: &ServerContext) {
    context.stop.cancelled().await;
    sleep(context.stop_grace).await;
}

async fn idle(max_idle: Option<Duration>) {
    match max_idle {
        Some(max_idle) => sleep(max_idle).await,
        None => future::pending().await,
    }
}

/// The message of an error with that of its cause, which says what byte is wrong.
fn with_source(error: &FrameError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl End {
    fn label(&self) -> &'static str {
        match self {
            Self::ByClient => "by_client",
            Self::Stopping => "stopping",
            Self::Idle => "idle",
            Self::Frame(_) => "frame",
            Self::Request(reason) => reason.label(),
            Self::Io(_) => "io",
        }
    }
}
