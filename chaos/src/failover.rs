//! How long clients are without acknowledgements when a broker goes: a measurement, which asserts nothing.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::checks::wait_until_replicated;
use crate::client::Topic;
use crate::findings::Findings;
use crate::fleet::{DEADLINE, Fleet, FleetPlan, network, until};
use crate::run::{Place, Size};
use crate::workload::{Shared, Workload, WorkloadPlan};
use crate::world;

const PARTITIONS: usize = 12;

/// Time between two records of a partition: the resolution of what is measured.
const INTERVAL: Duration = Duration::from_millis(5);

/// Kafka's default `retry.backoff.ms`, after which its producer tries again.
const RETRY_BACKOFF: Duration = Duration::from_millis(100);

/// Longest wait for leaders to be spread evenly again.
const BALANCED_WITHIN: Duration = Duration::from_secs(30);

/// Gaps longer than this are told one by one.
const LONG: Duration = Duration::from_millis(500);

/// What happens to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// `kill -9` of a broker that is not the controller.
    Kill,
    /// `kill -9` of the controller.
    Controller,
    /// SIGSTOP of a broker that is not the controller, until others have taken over.
    Pause,
    /// An orderly stop, and a start.
    Restart,
}

/// Options of a measurement.
#[derive(Clone, Debug, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    size: Size,
    /// Times for each case.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// What happens; by default all of it in turn.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Leaves logs and volumes where they are.
    #[arg(long)]
    keep: bool,
    /// Lines of every broker's configuration, as key=value.
    #[arg(long)]
    set: Vec<String>,
}

impl FailoverArgs {
    /// Where this runs.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// What one case came to.
#[derive(Debug, Default)]
struct Gaps {
    /// Partitions that the broker led.
    led: Vec<Duration>,
    /// The other ones.
    others: Vec<Duration>,
    /// All, while the broker came back.
    back: Vec<Duration>,
    /// Errors that producers were answered.
    errors: std::collections::BTreeMap<&'static str, u64>,
    /// Lost connections, and answers to try again.
    retries: u64,
}

/// Measures all cases and prints a table.
///
/// # Errors
/// The laboratory does not work, or a partition does not come back.
pub async fn run(args: &FailoverArgs) -> Result<bool> {
    network::create_bridge().await?;
    let folder = args.place.folder().join("failover");
    fs::create_dir_all(&folder)?;
    let findings = Arc::new(Findings::default());
    let plan = FleetPlan {
        brokers: args.size.brokers,
        program: args.place.program()?,
        folder: folder.clone(),
        run: args.place.run(),
        settings: args.set.clone(),
        own_clocks: false,
        historical_bug: None,
        findings: Arc::clone(&findings),
    };
    let mut fleet = Fleet::create(&plan).await?;
    fleet.start().await?;
    let mut workload =
        Workload::start(fleet.addresses(), &workload_plan(args), Arc::clone(&findings)).await?;
    let shared = Arc::clone(workload.shared());
    let cases = if args.cases.is_empty() { Case::value_variants() } else { &args.cases };
    let (mut rows, load_before) = (Vec::new(), load());
    for case in cases {
        let mut gaps = Gaps::default();
        for round in 0..args.rounds {
            eprintln!("{case:?} {} of {}", round + 1, args.rounds);
            one(*case, args, &mut fleet, &shared, &mut gaps).await.with_context(|| format!("{case:?}"))?;
        }
        rows.push((*case, gaps));
    }
    workload.settle(DEADLINE).await?;
    let records = shared.ledger.acknowledged_records();
    drop(workload.stop().await);
    fleet.tear_down().await?;
    if args.keep {
        fs::write(args.place.folder().join(world::KEPT), "")?;
        eprintln!("logs and volumes: {}", folder.display());
    }
    print(args, &rows, records, [&load_before, &load()])?;
    Ok(findings.all().is_empty())
}

async fn one(
    case: Case,
    args: &FailoverArgs,
    fleet: &mut Fleet,
    shared: &Shared,
    gaps: &mut Gaps,
) -> Result<()> {
    if args.size.replicas > 1 {
        wait_until_replicated(shared, DEADLINE).await?;
    }
    let balanced =
        until("leaders to be spread evenly", BALANCED_WITHIN, async || is_balanced(shared, fleet.len()))
            .await;
    if balanced.is_err() {
        eprintln!("  leaders are not spread evenly: {:?}", leaders(shared));
    }
    let controller = until("a controller", DEADLINE, async || fleet.controller().await).await?;
    let victim = match case {
        Case::Controller => controller,
        Case::Kill | Case::Pause | Case::Restart => (0..fleet.len())
            .filter(|number| *number != controller)
            .max_by_key(|n| led_by(shared, *n).len())
            .unwrap_or(0),
    };
    let led = led_by(shared, victim);
    let retries = shared.counters.retries.load(std::sync::atomic::Ordering::Relaxed);
    shared.counters.take_errors();
    take_gaps(shared);
    let before: Vec<u64> = acknowledged(shared);
    match case {
        Case::Kill | Case::Controller => fleet.broker_mut(victim).kill().await?,
        Case::Pause => fleet.broker(victim).signal(Signal::STOP)?,
        Case::Restart => fleet.broker_mut(victim).terminate().await?,
    }
    // A partition of one replica only comes back with its broker.
    if args.size.replicas > 1 {
        wait_for_all(shared, &before).await?;
    }
    sleep(Duration::from_secs(1)).await;
    if args.size.replicas > 1 {
        collect(shared, &led, gaps);
    }
    match case {
        Case::Pause => fleet.broker(victim).signal(Signal::CONT)?,
        Case::Kill | Case::Controller | Case::Restart => fleet.broker_mut(victim).start()?,
    }
    fleet.wait_until_in_service().await?;
    if args.size.replicas > 1 {
        wait_until_replicated(shared, DEADLINE).await?;
        // The time in which leaders move back counts too.
        let _ =
            until("leaders to move back", BALANCED_WITHIN, async || is_balanced(shared, fleet.len())).await;
        sleep(Duration::from_secs(1)).await;
        let back = take_gaps(shared);
        tell_long(shared, "while the broker came back", &back);
        gaps.back.extend(back);
    } else {
        wait_for_all(shared, &before).await?;
        collect(shared, &led, gaps);
    }
    for (name, count) in shared.counters.take_errors() {
        *gaps.errors.entry(name).or_default() += count;
    }
    gaps.retries += shared.counters.retries.load(std::sync::atomic::Ordering::Relaxed) - retries;
    Ok(())
}

/// Waits until every partition has acknowledged something after `before`, twice.
async fn wait_for_all(shared: &Shared, before: &[u64]) -> Result<()> {
    let mut from = before.to_vec();
    for _ in 0..2 {
        until("every partition to acknowledge again", DEADLINE, async || {
            let now = acknowledged(shared);
            now.iter().zip(&from).all(|(now, before)| now > before).then_some(())
        })
        .await
        .with_context(|| format!("{:?}", leaders(shared)))?;
        // What was on its way when the broker went may still have been acknowledged.
        sleep(Duration::from_millis(200)).await;
        from = acknowledged(shared);
    }
    Ok(())
}

fn acknowledged(shared: &Shared) -> Vec<u64> {
    (0..shared.ledger.len()).map(|place| shared.ledger.partition(place).acknowledged_records()).collect()
}

fn take_gaps(shared: &Shared) -> Vec<Duration> {
    let now = Instant::now();
    (0..shared.ledger.len()).map(|place| shared.ledger.partition(place).take_gap(now)).collect()
}

/// Tells long gaps one by one, with the time by which they had ended: logs of brokers say why.
fn tell_long(shared: &Shared, what: &str, gaps: &[Duration]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for (place, gap) in gaps.iter().enumerate().filter(|(_, gap)| **gap > LONG) {
        let name = shared.ledger.name(place);
        eprintln!(
            "  {name}: {} ms without an acknowledgement {what}, before unix time {now}",
            gap.as_millis()
        );
    }
}

fn collect(shared: &Shared, led: &[usize], gaps: &mut Gaps) {
    let all = take_gaps(shared);
    tell_long(shared, "when the broker went", &all);
    for (place, gap) in all.into_iter().enumerate() {
        if led.contains(&place) { gaps.led.push(gap) } else { gaps.others.push(gap) }
    }
}

fn leaders(shared: &Shared) -> Vec<Option<usize>> {
    (0..shared.ledger.len()).map(|place| shared.routes.current(place)?.leader).collect()
}

fn led_by(shared: &Shared, broker: usize) -> Vec<usize> {
    let leaders = leaders(shared);
    (0..leaders.len()).filter(|place| leaders[*place] == Some(broker)).collect()
}

fn is_balanced(shared: &Shared, brokers: usize) -> Option<()> {
    (0..brokers).all(|broker| led_by(shared, broker).len() == PARTITIONS / brokers).then_some(())
}

fn workload_plan(args: &FailoverArgs) -> WorkloadPlan {
    let replicas = i16::try_from(args.size.replicas).unwrap_or(i16::MAX);
    let topic = Topic {
        name: "failover".to_owned(),
        partitions: PARTITIONS as i32,
        replication_factor: replicas,
        config: vec![("min.insync.replicas".to_owned(), args.size.replicas.div_ceil(2).to_string())],
    };
    WorkloadPlan {
        topics: vec![topic],
        producers: 1,
        interval: INTERVAL,
        max_records: 1,
        seed: 1,
        retry_backoff: RETRY_BACKOFF,
        // What brokers do about one that is silent is measured, and not how long a client believes in it.
        deposed_patience: Some(RETRY_BACKOFF),
        churn: None,
        moves: None,
        nearby: false,
    }
}

/// The value below which half of them lie, and the largest.
fn median_and_worst(gaps: &[Duration]) -> String {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(worst)) => format!("{} / {}", median.as_millis(), worst.as_millis()),
        _ => "–".to_owned(),
    }
}

/// Processes that wanted to run over the last minute, on average; with this laboratory itself.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn print(args: &FailoverArgs, rows: &[(Case, Gaps)], records: u64, load: [&str; 2]) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "\nLongest time without an acknowledgement per partition, p50 / worst in ms. {} brokers, {PARTITIONS} partitions, \
         {} replicas, acks=all, a record every {} ms and partition, {} ms before a retry; {records} records; load of the \
         machine {} before, {} after.\n",
        args.size.brokers,
        args.size.replicas,
        INTERVAL.as_millis(),
        RETRY_BACKOFF.as_millis(),
        load[0],
        load[1],
    )?;
    writeln!(
        out,
        "| case | times | led by the broker | others | while it comes back | retries | errors answered |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for (case, gaps) in rows {
        writeln!(
            out,
            "| {case:?} | {} | {} | {} | {} | {} | {:?} |",
            args.rounds,
            median_and_worst(&gaps.led),
            median_and_worst(&gaps.others),
            median_and_worst(&gaps.back),
            gaps.retries,
            gaps.errors,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_worst_are_told_in_milliseconds() {
        let gaps: Vec<_> = [5, 1, 900].map(Duration::from_millis).to_vec();
        assert_eq!(median_and_worst(&gaps), "5 / 900");
        assert_eq!(median_and_worst(&[]), "–");
    }
}
