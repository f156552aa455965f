//! Compacts the logs of this broker in the background (`cleanup.policy=compact`, rules C1–C4).
//!
//! Each replica compacts its own log. A few threads take the log that needs it most, one log at a time, and rest when
//! none is due. No log is taken again before that rest is over: where few keys are written often, a log is dirty again
//! at once, and Apache Kafka would not look at it before its segment is full. Which log that is, and what stays of it, is decided in [`crate::storage::compaction`].
//!
//! A log that cannot be compacted, because stored bytes are damaged, is reported, counted and left alone until the
//! broker is restarted; it goes on taking records.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Partition, ReplicaManager};
use crate::metadata::image::TopicIdPartition;
use crate::metrics::CleanerMetrics;
use crate::storage::compaction::{Pace, choice::choose};
use crate::storage::{CompactionJob, CompactionReport, StorageError};

/// Longest sleep of a throttled thread before it looks whether it is to stop.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// What a [`LogCleaner`] needs.
#[derive(Clone)]
pub struct CleanerOptions {
    /// Logs compacted at a time (`log.cleaner.threads`).
    pub threads: usize,
    /// Rest when no log is due, and of each log after it was compacted (`log.cleaner.backoff.ms`).
    pub backoff: Duration,
    /// Memory for keys, of all threads together (`log.cleaner.dedupe.buffer.size`).
    pub dedupe_buffer_bytes: usize,
    /// Most bytes read and written in a second by all threads together (`log.cleaner.io.max.bytes.per.second`).
    pub io_max_bytes_per_second: f64,
    /// The time in milliseconds since 1970.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl std::fmt::Debug for CleanerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CleanerOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct LogCleaner {
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Inner {
    replicas: ReplicaManager,
    options: CleanerOptions,
    metrics: CleanerMetrics,
    throttle: Throttle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_progress: HashSet<TopicIdPartition>,
    uncleanable: HashSet<TopicIdPartition>,
    /// When logs were compacted last, if that is less than the back-off ago.
    done: HashMap<TopicIdPartition, Instant>,
}

impl LogCleaner {
    /// Starts the threads on the current runtime. [`stop`](Self::stop) ends them.
    pub fn start(replicas: ReplicaManager, options: CleanerOptions, metrics: CleanerMetrics) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let throttle = Throttle::new(options.io_max_bytes_per_second, stop.clone());
        let threads = options.threads;
        let inner = Arc::new(Inner { replicas, options, metrics, throttle, state: Mutex::default() });
        for _ in 0..threads {
            tasks.spawn(clean(Arc::clone(&inner), stop.clone()));
        }
        tasks.close();
        Self { stop, tasks }
    }

    /// Ends the compactions under way; what they have done stays. To be called before the logs are closed.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

async fn clean(inner: Arc<Inner>, stop: CancellationToken) {
    loop {
        let worker = Arc::clone(&inner);
        let worked = match crate::blocking::spawn_blocking(move || worker.clean_one()).await {
            Ok(worked) => worked,
            Err(error) => {
                // The log that it was about stays in progress, and so nobody takes it again.
                tracing::error!(%error, "a thread that compacts logs has ended");
                false
            }
        };
        let rest = if worked { Duration::ZERO } else { inner.options.backoff };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}

impl Inner {
    /// Compacts the log that needs it most. Returns whether there was one, and there may be another. Blocks.
    fn clean_one(&self) -> bool {
        let now_ms = (self.options.clock)();
        let Some(partition) = self.take_dirtiest(now_ms) else { return false };
        let worked = self.compact(&partition, now_ms);
        let mut state = self.state.lock();
        state.in_progress.remove(&partition.id());
        state.done.insert(partition.id(), Instant::now());
        worked
    }

    fn take_dirtiest(&self, now_ms: i64) -> Option<Arc<Partition>> {
        let partitions = self.replicas.online();
        let mut state = self.state.lock();
        let backoff = self.options.backoff;
        state.done.retain(|_, at| at.elapsed() < backoff);
        state.uncleanable.retain(|id| partitions.iter().any(|partition| partition.id() == *id));
        let (mut logs, mut max_lag_ms) = (Vec::new(), 0);
        for partition in partitions {
            let id = partition.id();
            let Some(settings) = partition.settings().log.compaction else { continue };
            if state.in_progress.contains(&id) || state.uncleanable.contains(&id) {
                continue;
            }
            let rests = state.done.contains_key(&id);
            match partition.log().dirt(partition.high_watermark(), now_ms) {
                Ok(dirt) => {
                    max_lag_ms = max_lag_ms.max(dirt.lag_ms(now_ms));
                    logs.extend((!rests).then_some((partition, dirt, settings)));
                }
                Err(StorageError::Gone | StorageError::Failed(_) | StorageError::Closed) => {}
                Err(error) => {
                    tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "looking what is to be compacted");
                }
            }
        }
        self.metrics.uncleanable_logs.set(i64::try_from(state.uncleanable.len()).unwrap_or(i64::MAX));
        self.metrics.max_dirty_lag_seconds.set(max_lag_ms / 1_000);
        let (partition, _) = choose(logs, now_ms)?;
        state.in_progress.insert(partition.id());
        Some(partition)
    }

    fn compact(&self, partition: &Partition, now_ms: i64) -> bool {
        let id = partition.id();
        // In this order: see `CompactionJob::producers`.
        let until = partition.high_watermark();
        let producers = partition.last_offsets_of_producers();
        let job = CompactionJob {
            until,
            now_ms,
            producers: &producers,
            aborted: &[],
            key_map_bytes: self.options.dedupe_buffer_bytes / self.options.threads.max(1),
            pace: &self.throttle,
        };
        let started = Instant::now();
        match partition.log().compact(&job) {
            Ok(report) => {
                self.count(&report);
                let CompactionReport { passes, first_dirty, read_bytes, written_bytes, .. } = report;
                let CompactionReport { removed_bytes, removed_records, interrupted, .. } = report;
                let millis = started.elapsed().as_millis();
                tracing::info!(
                    topic_id = %id.topic_id, partition = id.partition, passes, first_dirty, read_bytes,
                    written_bytes, removed_bytes, removed_records, interrupted, millis, "compacted log"
                );
                passes > 0 && !interrupted
            }
            Err(StorageError::Gone | StorageError::Failed(_) | StorageError::Closed) => false,
            Err(error @ (StorageError::Full { .. } | StorageError::Io { .. })) => {
                tracing::warn!(topic_id = %id.topic_id, partition = id.partition, %error, "compacting a log; it is tried again");
                false
            }
            Err(error) => {
                tracing::error!(
                    topic_id = %id.topic_id, partition = id.partition, %error,
                    "compacting a log; it is not tried again before a restart"
                );
                self.state.lock().uncleanable.insert(id);
                true
            }
        }
    }

    fn count(&self, report: &CompactionReport) {
        self.metrics.read.inc_by(report.read_bytes);
        self.metrics.written.inc_by(report.written_bytes);
        self.metrics.removed.inc_by(report.removed_bytes);
    }
}

/// Spreads reads and writes over time.
#[derive(Debug)]
struct Throttle {
    bytes_per_second: f64,
    /// When everything that was let through so far is paid for.
    paid: Mutex<Instant>,
    stop: CancellationToken,
}

impl Throttle {
    fn new(bytes_per_second: f64, stop: CancellationToken) -> Self {
        Self { bytes_per_second, paid: Mutex::new(Instant::now()), stop }
    }

    /// Books `bytes` at `now`; returns the time at which they may go.
    fn book(&self, now: Instant, bytes: u64) -> Instant {
        let cost = Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second.max(1.0));
        let mut paid = self.paid.lock();
        // Nothing is saved up for later.
        let at = (*paid).max(now);
        *paid = at + cost.unwrap_or(Duration::MAX).min(Duration::from_secs(3_600));
        at
    }
}

impl Pace for Throttle {
    fn wait(&self, bytes: u64) -> bool {
        let at = self.book(Instant::now(), bytes);
        loop {
            if self.stop.is_cancelled() {
                return false;
            }
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(LONGEST_SLEEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_lets_bytes_go_when_those_before_are_paid_for() {
        let throttle = Throttle::new(1_000.0, CancellationToken::new());
        let start = Instant::now() + Duration::from_secs(1);
        let second = Duration::from_secs(1);
        assert_eq!(throttle.book(start, 2_000), start);
        assert_eq!(throttle.book(start, 500), start + 2 * second);
        assert_eq!(throttle.book(start + 10 * second, 500), start + 10 * second, "nothing is saved up");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let throttle = Throttle::new(f64::MAX, CancellationToken::new());
        assert!((0..1_000).all(|_| throttle.wait(u64::MAX)));
        throttle.stop.cancel();
        assert!(!throttle.wait(1));
    }
}
