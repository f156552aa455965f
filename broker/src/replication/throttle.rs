//! Throttled replication (KIP-73): how fast replicas that are not in sync may be filled, so that filling them leaves room
//! for clients.
//!
//! What replicas in sync get is not counted, as they get it in any case. (Kafka counts it; there a rate below what producers
//! write to throttled partitions fills nobody, for ever.)
//!
//! Pure: bytes and the time go in, the time to wait comes out. Which replicas are throttled is said by topics, how fast
//! by brokers; each side, leader and follower, has a rate and a list of its own.

use std::time::Duration;

use tokio::time::Instant;

use crate::metadata::image::BrokerId;

/// Time whose bytes may be sent at once after a quiet time.
const BURST: Duration = Duration::from_secs(1);

/// Time whose bytes go into one answer, unless a single batch is more: a second's worth at once would be felt.
const PORTION: Duration = Duration::from_millis(250);

/// Longest wait told: a rate may be raised meanwhile, and nobody who waits hears of that.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Longest time that one answer is paid for, whatever its size.
const LONGEST_DEBT: Duration = Duration::from_secs(3_600);

/// Seconds over which a [`Meter`] looks back.
const METER_SECONDS: usize = 10;

/// Bytes per second; `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleRates {
    /// To throttled replicas that fetch from here (`leader.replication.throttled.rate`).
    pub leader: u64,
    /// To throttled replicas here (`follower.replication.throttled.rate`).
    pub follower: u64,
}

impl Default for ThrottleRates {
    fn default() -> Self {
        Self { leader: u64::MAX, follower: u64::MAX }
    }
}

/// Replicas of one topic that are throttled on one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ThrottledReplicas {
    /// None.
    #[default]
    None,
    /// All (`*`).
    All,
    /// Partition and broker of each.
    Listed(Vec<(i32, BrokerId)>),
}

impl ThrottledReplicas {
    /// Reads a value of `leader.replication.throttled.replicas` or of its counterpart, which has been checked when it was
    /// set; what cannot be read is left out.
    pub fn parse(text: &str) -> Self {
        if text.trim() == "*" {
            return Self::All;
        }
        let pair = |element: &str| {
            let (partition, broker_id) = element.split_once(':')?;
            Some((partition.trim().parse().ok()?, broker_id.trim().parse().ok()?))
        };
        let listed: Vec<(i32, BrokerId)> = text.split(',').filter_map(pair).collect();
        if listed.is_empty() { Self::None } else { Self::Listed(listed) }
    }

    /// Whether the replica on `broker_id` is throttled. On the leader's side that is the leader's own one.
    pub fn contains(&self, partition: i32, broker_id: BrokerId) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Listed(listed) => listed.contains(&(partition, broker_id)),
        }
    }
}

/// A rate, and how far it has been used up.
#[derive(Debug)]
pub(super) struct Quota {
    rate: u64,
    /// What was sent is paid for at this time.
    paid_at: Option<Instant>,
}

impl Default for Quota {
    fn default() -> Self {
        Self { rate: u64::MAX, paid_at: None }
    }
}

impl Quota {
    /// Sets bytes per second; what is owed is paid at the new rate.
    pub(super) fn set_rate(&mut self, rate: u64, now: Instant) {
        if rate == self.rate {
            return;
        }
        let owed = self.paid_at.map_or(Duration::ZERO, |paid_at| paid_at.saturating_duration_since(now));
        let bytes = owed.as_secs_f64() * bytes(self.rate);
        (self.rate, self.paid_at) = (rate, None);
        if !owed.is_zero() {
            self.paid_at = Some(now + self.cost(bytes));
        }
    }

    /// Whether there is a limit.
    pub(super) fn is_limited(&self) -> bool {
        self.rate != u64::MAX
    }

    /// How long nothing more may be sent; `None` if it may. It is worth asking again then, not certain.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.is_limited() {
            return None;
        }
        if self.rate == 0 {
            return Some(LONGEST_WAIT);
        }
        let wait = self.paid_at?.saturating_duration_since(now);
        (!wait.is_zero()).then(|| wait.min(LONGEST_WAIT))
    }

    /// Most bytes that one answer should have.
    pub(super) fn portion(&self) -> usize {
        let portion = u128::from(self.rate) * PORTION.as_millis() / 1_000;
        usize::try_from(portion).unwrap_or(usize::MAX)
    }

    /// Takes note of bytes that were sent, allowed or not.
    pub(super) fn record(&mut self, sent: usize, now: Instant) {
        if !self.is_limited() || self.rate == 0 {
            return;
        }
        let credit_from = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid_at.map_or(credit_from, |paid_at| paid_at.max(credit_from));
        self.paid_at = Some(from + self.cost(bytes(sent as u64)));
    }

    fn cost(&self, bytes_sent: f64) -> Duration {
        let seconds = bytes_sent / bytes(self.rate);
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_DEBT).min(LONGEST_DEBT)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
fn bytes(number: u64) -> f64 {
    number as f64
}

/// Bytes per second over the last seconds.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    began: Instant,
    /// Second of the newest bucket, counted from the beginning.
    newest: u64,
    /// By second, in a circle.
    buckets: [u64; METER_SECONDS],
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, newest: 0, buckets: [0; METER_SECONDS] }
    }

    pub(super) fn record(&mut self, bytes: u64, now: Instant) {
        self.advance(now);
        self.buckets[Self::bucket(self.newest)] += bytes;
    }

    /// Bytes per second since the beginning or over the last ten seconds, whichever is shorter.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        let mut current = self.clone();
        current.advance(now);
        let millis = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        // The newest second is not over yet.
        let seconds = METER_SECONDS as u64 - 1;
        let window = millis.min(seconds * 1_000 + millis % 1_000).max(1_000);
        let total: u64 = current.buckets.iter().sum();
        u64::try_from(u128::from(total) * 1_000 / u128::from(window)).unwrap_or(u64::MAX)
    }

    fn advance(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.began).as_secs();
        let passed = second.saturating_sub(self.newest).min(METER_SECONDS as u64);
        for step in 1..=passed {
            self.buckets[Self::bucket(second - passed + step)] = 0;
        }
        self.newest = self.newest.max(second);
    }

    fn bucket(second: u64) -> usize {
        usize::try_from(second % METER_SECONDS as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(rate: u64, now: Instant) -> Quota {
        let mut quota = Quota::default();
        quota.set_rate(rate, now);
        quota
    }

    /// Sends pieces of this size whenever that is allowed, for some seconds; returns the bytes.
    fn sent_in(seconds: u64, piece: usize, rate: u64) -> u64 {
        let start = Instant::now();
        let mut quota = limited(rate, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match quota.wait(now) {
                Some(wait) => now += wait,
                None => {
                    quota.record(piece, now);
                    sent += piece as u64;
                }
            }
        }
        sent
    }

    #[test]
    fn what_is_sent_keeps_to_the_rate_whatever_the_size_of_the_pieces() {
        for piece in [10, 1_000, 1_000_000] {
            let sent = sent_in(100, piece, 100_000);
            // One second's worth at the beginning, and the last piece as a whole.
            let most = 101 * 100_000 + piece as u64;
            assert!((99 * 100_000..=most).contains(&sent), "{sent} bytes in pieces of {piece}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits_and_with_none_at_all_everything_does() {
        let now = Instant::now();
        let mut quota = Quota::default();
        quota.record(usize::MAX, now);
        assert_eq!((quota.is_limited(), quota.wait(now)), (false, None));
        quota.set_rate(0, now);
        quota.record(1, now);
        assert_eq!(quota.wait(now + Duration::from_secs(100)), Some(LONGEST_WAIT));
    }

    #[test]
    fn what_is_owed_is_paid_at_a_new_rate() {
        let now = Instant::now();
        let mut quota = limited(1_000, now);
        quota.record(1_600, now);
        assert_eq!(quota.wait(now), Some(Duration::from_millis(600)));
        quota.set_rate(6_000, now);
        assert_eq!((quota.wait(now), quota.portion()), (Some(Duration::from_millis(100)), 1_500));
        quota.set_rate(u64::MAX, now);
        assert_eq!((quota.wait(now), quota.is_limited()), (None, false));
    }

    #[test]
    fn an_answer_of_any_size_at_any_rate_is_paid_for_some_day() {
        let now = Instant::now();
        let mut quota = limited(1, now);
        quota.record(usize::MAX, now);
        assert_eq!(quota.wait(now), Some(LONGEST_WAIT));
        assert_eq!(quota.wait(now + LONGEST_DEBT), None);
    }

    #[test]
    fn throttled_replicas_are_read_as_kafka_writes_them() {
        assert_eq!(ThrottledReplicas::parse(""), ThrottledReplicas::None);
        assert!(ThrottledReplicas::parse("*").contains(7, 9));
        let listed = ThrottledReplicas::parse("0:1,0:2, 3:1");
        let found = [(0, 1), (0, 2), (3, 1), (3, 2), (1, 0)].map(|(p, b)| listed.contains(p, b));
        assert_eq!(found, [true, true, true, false, false]);
    }

    #[test]
    fn a_meter_forgets_what_was_long_ago() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = Meter::new(start);
        assert_eq!(meter.rate(at(5)), 0);
        (0..100).for_each(|second| meter.record(500, at(second)));
        assert!((450..=560).contains(&meter.rate(at(99))), "{}", meter.rate(at(99)));
        assert_eq!(meter.rate(at(200)), 0);
        meter.record(9_000, at(200));
        assert_eq!(meter.rate(at(200)), 1_000);
    }
}
