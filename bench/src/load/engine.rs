//! Runs a load: one loop over all connections.
//!
//! Phases: warm-up, measurement, and an end in which nothing new is sent and what is on its way is awaited. Throughput
//! counts the answers that arrived during the measurement. Latency counts the requests that were *due* during it, also
//! those that are answered later or never.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde::Serialize;

use super::batch::Requests;
use super::connection::Connection;
use super::consumer::{Consumer, Position};
use super::producer::{Producer, deal, share};
use super::schedule::Schedule;
use super::tally::{Awaited, Ledger, Tally, Throughput};
use super::{Limit, Shape, Target};
use crate::procfs::{Snapshot, Usage};
use crate::stats::Latency;

/// Longest silence of a broker while it has something to answer.
const SILENCE: Duration = Duration::from_secs(60);

/// Longest wait at the end for what is on its way.
const DRAIN: Duration = Duration::from_secs(10);

/// Below this the wait for the next request of an open loop is spent awake: timers are coarser than the schedule.
const AWAKE: Duration = Duration::from_millis(2);

/// One load against one broker.
#[derive(Debug)]
pub struct Load {
    /// Where to.
    pub target: Target,
    /// What requests hold.
    pub shape: Shape,
    /// Whether to produce, and how fast.
    pub produce: Option<Pace>,
    /// Whether to consume, and what.
    pub consume: Option<Consume>,
    /// Load that is not measured.
    pub warm_up: Limit,
    /// Load that is.
    pub measure: Limit,
    /// Whether waits for the next request of an open loop are slept through, as somebody else needs the core; it may
    /// leave some 50 µs late then, which counts as the broker's.
    pub rests: bool,
    /// Ends either before its limit is reached, if something else says when.
    pub signals: Option<Arc<Signals>>,
}

/// What another thread tells a load.
#[derive(Debug, Default)]
pub struct Signals {
    /// The warm-up is over.
    pub measure: AtomicBool,
    /// The measurement is over.
    pub end: AtomicBool,
}

/// How fast requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as answers come (closed loop).
    Saturate,
    /// This many a second over all connections, however the broker does (open loop).
    Rate(f64),
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Consume {
    /// Connections, to which partitions are dealt out.
    pub consumers: usize,
    /// Partitions in one request: all of a connection's, or 1 for one partition after the other.
    pub at_once: usize,
    /// Partition, offset of the first record and, unless it goes on for ever, the offset to stop before.
    pub partitions: Vec<(u32, i64, Option<i64>)>,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Acknowledged.
    pub produced: Throughput,
    /// Fetched.
    pub fetched: Throughput,
    /// Of produce requests; with a consumer beside them from a batch's due time to its arrival there; of fetch requests
    /// when nothing is produced.
    pub latency: Option<Latency>,
    /// Requests due during the measurement without an answer 10 s after its end; their time until then is in `latency`.
    pub unanswered: usize,
    /// CPU, memory, disk and time.
    pub usage: Usage,
}

impl Load {
    /// Runs the load to its end.
    ///
    /// # Errors
    /// A connection breaks, the broker refuses a request or falls silent for a minute.
    pub fn run(&self) -> Result<Measured> {
        Engine::new(self)?.run()
    }
}

#[derive(Debug)]
enum Role {
    Producer(Producer),
    Consumer(Consumer),
}

#[derive(Debug)]
struct Lane {
    connection: Connection,
    role: Role,
    /// Whether epoll tells when the socket takes more.
    watches_out: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measure,
    Drain,
}

struct Engine<'a> {
    load: &'a Load,
    epoll: rustix::fd::OwnedFd,
    lanes: Vec<Lane>,
    producers: usize,
    requests: Requests,
    ledger: Option<Ledger>,
    schedule: Option<Schedule>,
    tally: Tally,
    phase: Phase,
    phase_start: Instant,
    last_answer: Instant,
}

impl<'a> Engine<'a> {
    fn new(load: &'a Load) -> Result<Self> {
        let (target, shape) = (&load.target, &load.shape);
        let requests = Requests::build(&target.topic, target.partitions(), shape)?;
        let producers = if load.produce.is_some() { shape.connections } else { 0 };
        let dealt = deal(producers, &target.leaders);
        let served: BTreeSet<u32> = dealt.iter().flat_map(|(_, partitions)| partitions).copied().collect();
        ensure!(
            load.produce.is_none() || served.len() == target.leaders.len(),
            "{producers} connections are too few for the brokers that lead {} partitions",
            target.leaders.len()
        );
        let mut roles: Vec<(SocketAddr, Role)> = dealt
            .into_iter()
            .map(|(leader, partitions)| (leader, Role::Producer(Producer::new(partitions))))
            .collect();
        if let Some(consume) = &load.consume {
            let leader = *target.leaders.first().context("there is a partition to read")?;
            ensure!(target.leaders.iter().all(|it| *it == leader), "consumers read from one broker");
            let consumers = consumers(consume, &target.topic).into_iter();
            roles.extend(consumers.map(|consumer| (leader, Role::Consumer(consumer))));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut lanes = Vec::new();
        for (index, (leader, role)) in roles.into_iter().enumerate() {
            let connection = Connection::open(leader).context("connecting to the broker")?;
            epoll::add(&epoll, &connection, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            lanes.push(Lane { connection, role, watches_out: false });
        }
        let ledger = match (&load.produce, &load.consume) {
            (Some(_), Some(consume)) => Some(Ledger {
                records_per_batch: i64::try_from(requests.records)?,
                partitions: starts(consume, target.partitions()),
            }),
            _ => None,
        };
        let now = Instant::now();
        let schedule = match load.produce {
            Some(Pace::Rate(per_second)) => Some(Schedule::new(now, per_second)),
            _ => None,
        };
        Ok(Self {
            load,
            epoll,
            lanes,
            producers,
            requests,
            ledger,
            schedule,
            tally: Tally::default(),
            phase: Phase::WarmUp,
            phase_start: now,
            last_answer: now,
        })
    }

    fn run(mut self) -> Result<Measured> {
        let pids = &self.load.target.pids;
        let mut before = None;
        let mut outcome = None;
        let mut events = Vec::with_capacity(256);
        let mut frames = Vec::new();
        for index in 0..self.lanes.len() {
            self.fill(index)?;
        }
        loop {
            let now = Instant::now();
            match self.phase {
                Phase::WarmUp
                    if self.is_over(self.load.warm_up, now) || self.is_told(|signals| &signals.measure) =>
                {
                    before = Some(Snapshot::take(pids)?);
                    self.begin(Phase::Measure);
                    self.tally.window_start = Some(self.phase_start);
                }
                Phase::Measure
                    if self.is_over(self.load.measure, now)
                        || self.is_read()
                        || self.is_told(|signals| &signals.end) =>
                {
                    let after = Snapshot::take(pids)?;
                    self.tally.window_end = Some(Instant::now());
                    outcome = Some((self.tally.produced, self.tally.fetched, after));
                    self.begin(Phase::Drain);
                }
                Phase::Drain if self.is_drained() || now >= self.phase_start + DRAIN => break,
                _ => {}
            }
            ensure!(
                self.is_drained() || now < self.last_answer + SILENCE,
                "no answer from the broker for {} s",
                SILENCE.as_secs()
            );
            self.send_due()?;
            let timeout = self.timeout(Instant::now());
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)).or_else(
                |error| match error {
                    rustix::io::Errno::INTR => Ok(0),
                    error => Err(error),
                },
            )?;
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                let flags = event.flags; // copied: the struct is packed
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    self.lanes[index].connection.receive(&mut frames).context("reading answers")?;
                    for frame in frames.drain(..) {
                        self.answered(index, frame)?;
                    }
                }
                self.fill(index)?;
            }
        }
        let unanswered = self.count_unanswered();
        let before = before.context("the measurement began")?;
        let (produced, fetched, after) = outcome.context("the measurement ended")?;
        let usage = Usage::between(&before, &after);
        Ok(Measured { produced, fetched, latency: Latency::of(self.tally.latencies), unanswered, usage })
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_start = Instant::now();
        self.tally.produced = Throughput::default();
        self.tally.fetched = Throughput::default();
    }

    fn is_over(&self, limit: Limit, now: Instant) -> bool {
        now >= self.phase_start + limit.time
            || self.tally.produced.bytes + self.tally.fetched.bytes >= limit.bytes
    }

    fn is_told(&self, which: fn(&Signals) -> &AtomicBool) -> bool {
        self.load.signals.as_deref().is_some_and(|signals| which(signals).load(Ordering::Relaxed))
    }

    /// Whether consumers alone have come to the end.
    fn is_read(&self) -> bool {
        self.load.produce.is_none() && self.is_drained()
    }

    fn is_drained(&self) -> bool {
        self.ledger.as_ref().is_none_or(Ledger::is_empty)
            && self.lanes.iter().all(|lane| match &lane.role {
                Role::Producer(producer) => producer.in_flight().is_empty(),
                // With a producer beside it a consumer always waits for more.
                Role::Consumer(consumer) => self.ledger.is_some() || !consumer.is_waiting(),
            })
    }

    /// Zero while the next request is near, so that it leaves in time.
    fn timeout(&self, now: Instant) -> Timespec {
        let awake = if self.load.rests { Duration::ZERO } else { AWAKE };
        let wait = match &self.schedule {
            Some(schedule) if self.phase != Phase::Drain => {
                match schedule.due().saturating_duration_since(now) {
                    near if near < awake => Duration::ZERO,
                    far => far - awake,
                }
            }
            _ => Duration::from_millis(50),
        };
        Timespec { tv_sec: wait.as_secs().min(1) as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
    }

    /// Sends what the schedule says, on the connections in turn.
    fn send_due(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.phase == Phase::Drain {
            return Ok(());
        }
        while let Some((number, due)) = self.schedule.as_mut().and_then(|schedule| schedule.take(now)) {
            let index = (number % self.producers as u64) as usize;
            self.send(index, due);
            self.flush(index)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize, due: Instant) {
        let Lane { connection, role: Role::Producer(producer), .. } = &mut self.lanes[index] else { return };
        let sent = producer.send(due, &self.requests, connection);
        if let Some(ledger) = &mut self.ledger {
            ledger.sent(sent.partition, due);
        }
    }

    /// Sends what a connection may send now without a schedule, and what it still had to send.
    fn fill(&mut self, index: usize) -> Result<()> {
        let now = Instant::now();
        let ends = self.phase == Phase::Drain;
        let in_flight = match &mut self.lanes[index] {
            Lane { role: Role::Producer(producer), .. } => Some(producer.in_flight().len()),
            Lane { connection, role: Role::Consumer(consumer), .. } => {
                let wanted = !ends || self.ledger.as_ref().is_some_and(|ledger| !ledger.is_empty());
                if wanted && !consumer.is_waiting() {
                    consumer.send(now, connection)?;
                }
                None
            }
        };
        if let Some(in_flight) = in_flight
            && self.schedule.is_none()
            && !ends
        {
            for _ in in_flight..self.load.shape.in_flight {
                self.send(index, now);
            }
        }
        self.flush(index)
    }

    fn flush(&mut self, index: usize) -> Result<()> {
        let lane = &mut self.lanes[index];
        lane.connection.flush().context("sending requests")?;
        let watch_out = lane.connection.has_outgoing();
        if watch_out != lane.watches_out {
            let out = if watch_out { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &lane.connection, data, epoll::EventFlags::IN | out)?;
            lane.watches_out = watch_out;
        }
        Ok(())
    }

    fn answered(&mut self, index: usize, frame: Bytes) -> Result<()> {
        let now = Instant::now();
        self.last_answer = now;
        match &mut self.lanes[index].role {
            Role::Producer(producer) => {
                let sent = producer.answered(frame)?;
                self.tally.produced.requests += 1;
                self.tally.produced.records += self.requests.records;
                self.tally.produced.bytes += self.requests.batch_bytes;
                if self.ledger.is_none() {
                    self.tally.latency(sent.due, now);
                }
            }
            Role::Consumer(consumer) => {
                let fetched = consumer.answered(frame)?;
                self.tally.fetched.requests += 1;
                self.tally.fetched.records += fetched.records;
                self.tally.fetched.bytes += fetched.bytes;
                match &mut self.ledger {
                    None => self.tally.latency(fetched.sent, now),
                    Some(ledger) => {
                        for due in
                            fetched.next.iter().flat_map(|&(partition, next)| ledger.arrived(partition, next))
                        {
                            self.tally.latency(due, now);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn count_unanswered(&mut self) -> usize {
        let now = Instant::now();
        let before = self.tally.latencies.len();
        match &self.ledger {
            Some(ledger) => {
                let due: Vec<_> =
                    ledger.partitions.iter().flat_map(|awaited| awaited.due.iter().copied()).collect();
                due.into_iter().for_each(|due| self.tally.latency(due, now));
            }
            None => {
                for lane in &self.lanes {
                    if let Role::Producer(producer) = &lane.role {
                        producer.in_flight().iter().for_each(|sent| self.tally.latency(sent.due, now));
                    }
                }
            }
        }
        self.tally.latencies.len() - before
    }
}

fn consumers(consume: &Consume, topic: &str) -> Vec<Consumer> {
    let count = consume.consumers.min(consume.partitions.len());
    (0..count)
        .map(|index| {
            let mine = share(index, count, u32::try_from(consume.partitions.len()).unwrap_or(u32::MAX));
            let positions = mine.into_iter().map(|n| {
                let (partition, next, end) = consume.partitions[n as usize];
                Position { partition, next, end }
            });
            Consumer::new(topic, positions.collect(), consume.at_once)
        })
        .collect()
}

fn starts(consume: &Consume, partitions: u32) -> Vec<Awaited> {
    let mut starts = vec![Awaited::default(); partitions as usize];
    for &(partition, next, _) in &consume.partitions {
        starts[partition as usize].next = next;
    }
    starts
}
