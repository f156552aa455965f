//! What only a fleet does: creates thousands of replicated partitions, loses a broker, takes it back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::figures;
use super::measure::{Run, TOPIC, UNTIL_DONE};
use super::page_cache;
use crate::brokers::{Broker, Brokers};
use crate::load::{Admin, Layout, Limit, NewTopic, Pace, Replicas, Shape, Signals};
use crate::procfs::{Snapshot, Usage};

/// Longest wait for partitions to come up, to get other leaders, or to be in sync again.
const PATIENCE: Duration = Duration::from_secs(180);

/// Time between two looks at the metadata of one broker: what is waited for is known no more exactly. An answer about ten
/// thousand partitions costs a broker some milliseconds.
const LOOK: Duration = Duration::from_millis(50);

/// Shortest absence of a broker that is taken back: longer than `replica.lag.time.max.ms`, after which its leaders count it
/// as one that has been away for long.
const ABSENCE: Duration = Duration::from_secs(35);

/// Load before a broker is taken back: connections are made, and the schedule is kept.
const SETTLE: Duration = Duration::from_secs(3);

impl Run<'_> {
    /// Who leads each partition of a topic, as one broker knows it.
    pub(super) fn leaders(&self, topic: &str) -> Result<Vec<SocketAddr>> {
        let layout = self.admin()?.layout(&[topic.to_owned()])?;
        layout
            .leaders()
            .filter(|leaders| !leaders.is_empty())
            .with_context(|| format!("leaders of topic {topic}"))
    }

    /// Waits until all brokers know a leader of every partition with every replica in sync, and these leaders serve.
    pub(super) fn wait_until_whole(&self, topics: &[String]) -> Result<()> {
        let (deadline, members) = (Instant::now() + PATIENCE, self.members());
        self.wait_until_known(topics, &members, self.fleet.len(), None, deadline)?;
        self.wait_until_served(topics, self.fleet[0].address, deadline)
    }

    fn members(&self) -> Vec<SocketAddr> {
        self.fleet.iter().map(|broker| broker.address).collect()
    }

    /// Waits until all `members` know a leader, which is not `gone`, of every partition with so many replicas in sync.
    fn wait_until_known(
        &self,
        topics: &[String],
        members: &[SocketAddr],
        in_sync: usize,
        gone: Option<i32>,
        deadline: Instant,
    ) -> Result<()> {
        let all = topics.len() * self.row.partitions as usize;
        members.iter().try_for_each(|member| {
            until(*member, topics, deadline, |layout| match layout.ready(in_sync, gone) {
                ready if ready == all => Ok(()),
                ready => Err(format!("{ready} of {all} partitions have a leader and {in_sync} in sync")),
            })
        })
    }

    /// Waits until every leader, as the broker at `asked` knows them, acts as such.
    fn wait_until_served(&self, topics: &[String], asked: SocketAddr, deadline: Instant) -> Result<()> {
        for (leader, led) in Admin::connect(asked)?.layout(topics)?.led() {
            let mut admin = Admin::connect(leader)?;
            for (topic, partitions) in led {
                while let Err(error) = admin.leads(&topic, &partitions) {
                    ensure!(Instant::now() < deadline, "a leader of topic {topic} does not serve: {error:#}");
                    std::thread::sleep(LOOK);
                }
            }
        }
        Ok(())
    }

    /// Where the broker with this id is in the fleet, and its id.
    fn index_of(&self, id: i32, layout: &Layout) -> Result<usize> {
        let address = layout.brokers.get(&id).context("the controller is a broker that is there")?;
        self.fleet.iter().position(|broker| broker.address == *address).context("it is one of the fleet")
    }

    pub(super) fn many_partitions(&mut self, topics: u32, kills_controller: bool) -> Result<()> {
        let names: Vec<_> = (0..topics).map(|n| format!("{TOPIC}-{n}")).collect();
        let members = self.members();
        let before = self.snapshot()?;
        let started = Instant::now();
        self.order_topics(&names, self.row.durability)?;
        self.figures.insert("create_s", started.elapsed().as_secs_f64());
        let deadline = started + PATIENCE;
        self.wait_until_known(&names, &members, members.len(), None, deadline)?;
        self.figures.insert("created_s", started.elapsed().as_secs_f64());
        self.wait_until_served(&names, members[0], deadline)?;
        self.figures.insert("served_s", started.elapsed().as_secs_f64());
        let created = self.snapshot()?;
        std::thread::sleep(self.effort.measure);
        let after = self.snapshot()?;
        let (create, idle) = (Usage::between(&before, &created), Usage::between(&created, &after));
        let largest = self.fleet.iter().map(resident_mb).collect::<Result<Vec<_>>>()?;
        let largest = largest.into_iter().fold(0.0, f64::max);
        let empty = self.figures["empty_resident_mb"] * 1e6;
        let replicas = f64::from(topics * self.row.partitions) * members.len() as f64;
        let whole = Usage::between(&before, &after);
        self.figures.extend([
            ("create_cpu_s", create.user_seconds + create.system_seconds),
            ("resident_mb", idle.resident_bytes as f64 / 1e6),
            ("peak_resident_mb", idle.peak_resident_bytes as f64 / 1e6),
            ("resident_mb_per_broker", largest),
            ("resident_kb_per_partition", (idle.resident_bytes as f64 - empty) / 1e3 / replicas),
            ("idle_cpu_share", (idle.user_seconds + idle.system_seconds) / idle.seconds),
            ("other_share", whole.other_seconds / whole.seconds),
        ]);
        self.lose_one(&names, kills_controller)
    }

    /// Kills a broker and measures how long partitions are without a leader.
    fn lose_one(&mut self, names: &[String], controller: bool) -> Result<()> {
        let mut admin = self.admin()?;
        let (layout, leader) = (admin.layout(&[])?, admin.controller()?);
        let is_wanted = |id: &i32| (*id == leader) == controller;
        let victim = *layout.brokers.keys().find(|id| is_wanted(id)).context("a broker to kill")?;
        let index = self.index_of(victim, &layout)?;
        let killed = Instant::now();
        self.fleet[index].child.crash()?;
        let mut others = self.members();
        others.remove(index);
        let deadline = killed + PATIENCE;
        self.wait_until_known(names, &others, 1, Some(victim), deadline)?;
        self.figures.insert("failover_s", killed.elapsed().as_secs_f64());
        self.wait_until_served(names, others[0], deadline)?;
        self.figures.insert("failover_served_s", killed.elapsed().as_secs_f64());
        Ok(())
    }

    pub(super) fn catch_up(&mut self, fill: Shape, bytes: u64, live: Shape, rate: f64) -> Result<()> {
        let topics = [TOPIC.to_owned()];
        let away = self.fleet.len() - 1;
        self.create_led_by_others(away)?;
        self.wait_until_whole(&topics)?;
        let pace = Some(Pace::Rate(rate));
        let before = self.load(live, pace, self.effort.warm_up(), self.effort.measurement())?.run()?;
        let keys = ["before_p50_us", "before_p99_us", "before_p999_us", "before_max_us"];
        figures::latency(&mut self.figures, keys, before.latency);

        self.fleet[away].child.crash()?;
        let gone = Instant::now();
        let (others, full) = (self.members()[..away].to_vec(), self.fleet.len());
        let deadline = Instant::now() + PATIENCE;
        for other in &others {
            until(*other, &topics, deadline, |layout| match layout.ready(full, None) {
                0 => Ok(()),
                left => Err(format!("{left} partitions still have the broker that is gone in sync")),
            })?;
        }
        let missed = Limit { time: UNTIL_DONE, bytes: self.effort.scaled(bytes) };
        let mut load = self.load(fill, Some(Pace::Saturate), Limit::NONE, missed)?;
        load.target.pids.truncate(away);
        let filled = load.run()?;
        let missed = filled.produced.bytes as f64;
        self.figures.insert("fill_mb_per_s", missed / 1e6 / filled.usage.seconds);
        self.figures.insert("data_gb", missed / 1e9);
        page_cache::forget(&self.folder)?;
        page_cache::write_back(&self.folder)?;
        std::thread::sleep(ABSENCE.saturating_sub(gone.elapsed()));
        self.take_back(away, &others, live, rate, missed)
    }

    /// Creates the topic so that the broker `away` leads none of it: nothing of the load has to move when it goes.
    fn create_led_by_others(&self, away: usize) -> Result<()> {
        let mut admin = self.admin()?;
        let ids = admin.layout(&[])?.brokers;
        let id = |broker: &Broker| ids.iter().find(|(_, at)| **at == broker.address).map(|(id, _)| *id);
        let ids = self.fleet.iter().map(id).collect::<Option<Vec<_>>>().context("every broker has an id")?;
        let replicas = Replicas::Assigned(assignment(&ids, away, self.row.partitions));
        let config = Brokers::topic_config(self.side, self.row.durability);
        admin.create_topics(&[NewTopic { name: TOPIC, replicas, config }])
    }

    /// Starts the broker `away` under load and measures until it is in sync everywhere.
    fn take_back(
        &mut self,
        away: usize,
        others: &[SocketAddr],
        live: Shape,
        rate: f64,
        missed: f64,
    ) -> Result<()> {
        let signals = Arc::new(Signals::default());
        let without_end = Limit { time: UNTIL_DONE, bytes: u64::MAX };
        let mut load = self.load(live, Some(Pace::Rate(rate)), without_end, without_end)?;
        load.target.pids.truncate(away);
        load.signals = Some(Arc::clone(&signals));
        let load = std::thread::Builder::new().name("load".to_owned()).spawn(move || load.run())?;
        std::thread::sleep(SETTLE);
        let outcome = self.watch_return(away, others, &signals);
        // However that went, the load ends.
        signals.measure.store(true, Ordering::Relaxed);
        signals.end.store(true, Ordering::Relaxed);
        let Ok(measured) = load.join() else { bail!("the load panicked") };
        let Return { after: returned, usage, own_usage } = outcome?;
        let measured = measured?;
        let keys = ["catch_up_p50_us", "catch_up_p99_us", "catch_up_p999_us", "catch_up_max_us"];
        figures::latency(&mut self.figures, keys, measured.latency);
        let gb = missed / 1e9;
        let cpu = |usage: &Usage| usage.user_seconds + usage.system_seconds;
        let grown = self.figures.get("catch_up_p99_us").zip(self.figures.get("before_p99_us"));
        let grown = grown.map(|(now, before)| now / before);
        self.figures.extend(grown.map(|grown| ("catch_up_p99_growth", grown)));
        self.figures.extend([
            ("catch_up_s", returned.as_secs_f64()),
            ("catch_up_mb_per_s", gb * 1e3 / returned.as_secs_f64()),
            ("catch_up_cpu_s_per_gb", cpu(&usage) / gb),
            ("catch_up_leaders_cpu_s_per_gb", (cpu(&usage) - cpu(&own_usage)) / gb),
            ("catch_up_follower_cpu_s_per_gb", cpu(&own_usage) / gb),
            ("open_unanswered", measured.unanswered as f64),
            ("broker_share", cpu(&usage) / usage.seconds),
            ("client_share", usage.client_seconds / usage.seconds),
            ("other_share", usage.other_seconds / usage.seconds),
            ("resident_mb", usage.resident_bytes as f64 / 1e6),
            ("peak_resident_mb", usage.peak_resident_bytes as f64 / 1e6),
        ]);
        Ok(())
    }

    /// Starts the broker, has the load measure, and returns how long it took until all others know it in sync.
    fn watch_return(&mut self, away: usize, others: &[SocketAddr], signals: &Signals) -> Result<Return> {
        signals.measure.store(true, Ordering::Relaxed);
        let started = Instant::now();
        self.fleet[away] = self.brokers.spawn(&self.formatted[away])?;
        let own = [self.fleet[away].child.pid()];
        let (before, own_before) = (self.snapshot()?, Snapshot::take(&own)?);
        let deadline = started + PATIENCE;
        let returning = &mut self.fleet[away];
        while !Admin::connect(returning.address).and_then(|mut it| it.is_ready()).unwrap_or(false) {
            returning.child.ensure_running().context("coming back")?;
            ensure!(Instant::now() < deadline, "it does not answer after {} s", PATIENCE.as_secs());
            std::thread::sleep(LOOK);
        }
        self.figures.insert("catch_up_start_ms", started.elapsed().as_secs_f64() * 1e3);
        self.wait_until_known(&[TOPIC.to_owned()], others, self.fleet.len(), None, deadline)?;
        let returned = started.elapsed();
        let (after, own_after) = (self.snapshot()?, Snapshot::take(&own)?);
        let usage = Usage::between(&before, &after);
        Ok(Return { after: returned, usage, own_usage: Usage::between(&own_before, &own_after) })
    }
}

/// How a broker came back.
struct Return {
    /// From its start until all others knew it in sync.
    after: Duration,
    /// Of all brokers meanwhile.
    usage: Usage,
    /// Its own.
    own_usage: Usage,
}

/// Asks the broker at `member` about `topics`, again and again, until `is_so` has nothing to object.
fn until(
    member: SocketAddr,
    topics: &[String],
    deadline: Instant,
    is_so: impl Fn(&Layout) -> Result<(), String>,
) -> Result<()> {
    let started = Instant::now();
    let mut admin = Admin::connect(member)?;
    while let Err(objection) = is_so(&admin.layout(topics)?) {
        ensure!(Instant::now() < deadline, "after {} s {objection}", started.elapsed().as_secs());
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn resident_mb(broker: &Broker) -> Result<f64> {
    let now = Snapshot::take(&[broker.child.pid()])?;
    Ok(Usage::between(&now, &now).resident_bytes as f64 / 1e6)
}

/// Replicas at all brokers `ids`, led in turn by those that are not number `away`, which comes last.
fn assignment(ids: &[i32], away: usize, partitions: u32) -> Vec<Vec<i32>> {
    let mut others = ids.to_vec();
    let last = others.remove(away);
    let one = |partition: u32| {
        let mut replicas = others.clone();
        replicas.rotate_left(partition as usize % others.len());
        replicas.push(last);
        replicas
    };
    (0..partitions).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_lead_in_turn_and_the_one_that_goes_comes_last() {
        let expected = [[1, 3, 2], [3, 1, 2], [1, 3, 2]];
        assert_eq!(assignment(&[1, 2, 3], 1, 3), expected);
    }
}
