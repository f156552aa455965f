//! Rounds of load, faults and checks, each with a fleet of its own and a seed of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::checks::cluster::{ClusterView, judge_topics};
use crate::checks::replicas::{self, StoppedBroker};
use crate::checks::wait_until_converged;
use crate::client::Topic;
use crate::findings::Findings;
use crate::fleet::{DEADLINE, Fleet, FleetPlan, broker_folder, network};
use crate::nemesis::{Kind, Nemesis, Schedule, Shape};
use crate::workload::moves::Replicas;
use crate::workload::{Settled, Shared, Workload, WorkloadPlan};
use crate::world;

/// Partitions of the topic that acknowledges what is synced, and of the one that acknowledges what is written.
const FSYNC_PARTITIONS: i32 = 6;
const WRITTEN_PARTITIONS: i32 = 3;

/// Where and with what everything runs.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The broker to test; by default the one built beside this program.
    #[arg(long)]
    pub broker: Option<PathBuf>,
    /// Folder for volumes and logs; on a disk, not in memory.
    #[arg(long)]
    pub work_dir: PathBuf,
    /// Process id of the program outside the namespaces; set by itself.
    #[arg(long, hide = true)]
    pub inside: Option<u32>,
}

/// What the fleet and its topics are like.
#[derive(Clone, Debug, Args)]
pub struct Size {
    /// Brokers.
    #[arg(long, default_value_t = 3)]
    pub brokers: usize,
    /// Replicas of each partition.
    #[arg(long, default_value_t = 3)]
    pub replicas: usize,
}

/// Options of a run.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    size: Size,
    /// Seed of the first round; the next ones count up.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds, at least.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Rounds begin until this many minutes have passed.
    #[arg(long, default_value_t = 0.0)]
    minutes: f64,
    /// Seconds of each round during which there are faults.
    #[arg(long, default_value_t = 45)]
    seconds: u64,
    /// Kinds of faults to choose from, by default all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// A mistake of the past that all brokers make; they were built with the feature `historical-bugs`.
    #[arg(long)]
    historical_bug: Option<String>,
    /// Ends with the first round that finds something, which then is what was wanted: fails if none of the rounds does.
    #[arg(long)]
    until_found: bool,
    /// Prints the schedule of the first round and does nothing.
    #[arg(long)]
    dry: bool,
}

impl RunArgs {
    /// Where this runs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether there is something to do inside namespaces.
    pub fn is_dry(&self) -> bool {
        self.dry
    }

    fn shape(&self) -> Shape {
        Shape {
            brokers: self.size.brokers,
            replicas: self.size.replicas,
            partitions: (FSYNC_PARTITIONS + WRITTEN_PARTITIONS) as usize,
            length: Duration::from_secs(self.seconds),
            only: self.only.clone(),
        }
    }

    /// The schedule of a seed.
    pub fn schedule(&self, seed: u64) -> Schedule {
        Schedule::of(seed, &self.shape())
    }

    /// The schedule of the first round.
    pub fn first_schedule(&self) -> Schedule {
        self.schedule(self.seed)
    }

    fn repeat(&self, seed: u64) -> String {
        let only: Vec<String> = self
            .only
            .iter()
            .filter_map(|kind| {
                clap::ValueEnum::to_possible_value(kind).map(|value| value.get_name().to_owned())
            })
            .collect();
        let broker = self.place.broker.as_ref();
        let broker = broker.map_or_else(String::new, |broker| format!(" --broker {}", broker.display()));
        let bug = self.historical_bug.as_ref();
        let bug = bug.map_or_else(String::new, |bug| format!(" --historical-bug {bug}"));
        let only = if only.is_empty() { String::new() } else { format!(" --only {}", only.join(",")) };
        format!(
            "make chaos SEED={seed} CHAOS_ARGUMENTS=\"--brokers {} --replicas {} --seconds {}{only}{broker}{bug}\"",
            self.size.brokers, self.size.replicas, self.seconds
        )
    }
}

impl Place {
    /// The broker's program.
    ///
    /// # Errors
    /// There is none.
    pub fn program(&self) -> Result<PathBuf> {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.join("millrace-broker"));
        let program = self.broker.clone().or_else(beside).context("no broker is named")?;
        program.canonicalize().with_context(|| format!("no broker at {}", program.display()))
    }

    /// Process id that names this run.
    pub fn run(&self) -> u32 {
        self.inside.unwrap_or_else(std::process::id)
    }

    /// Folder of this run.
    pub fn folder(&self) -> PathBuf {
        world::folder_of(&self.work_dir, self.run())
    }
}

/// Runs all rounds; says whether all went well, or whether there was a finding where one is wanted. A round in which the
/// laboratory fails is the last one.
///
/// # Errors
/// The laboratory does not work, outside of any round.
pub async fn run(args: &RunArgs) -> Result<bool> {
    let start = Instant::now();
    let length = Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?;
    network::create_bridge().await?;
    let (mut totals, mut bad) = (Figures::default(), Vec::new());
    let mut rounds = 0;
    for seed in args.seed.. {
        let schedule = args.schedule(seed);
        eprintln!("seed {seed}: {} brokers, {} replicas\n{schedule}", args.size.brokers, args.size.replicas);
        let began = Instant::now();
        let folder = args.place.folder().join(format!("seed-{seed}"));
        let findings = Arc::new(Findings::default());
        let mut figures = Figures::default();
        let outcome = round(args, seed, &schedule, &folder, &findings, &mut figures).await;
        let report = Report {
            seed,
            schedule: &schedule,
            findings: findings.all(),
            failure: outcome.err(),
            folder: &folder,
            again: args.repeat(seed),
        };
        rounds += 1;
        let took = began.elapsed().as_secs();
        eprintln!("seed {seed}: {figures}, {} findings, {took} s", report.findings.len());
        totals.add(&figures);
        if report.is_good() || (args.until_found && report.failure.is_none()) {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        if args.until_found && !report.findings.is_empty() {
            let bug = args.historical_bug.as_deref().unwrap_or("something");
            let (count, some) = (report.findings.len(), report.findings.iter().take(3));
            let some: String = some.map(|finding| format!("\n  {finding}")).collect();
            writeln!(
                std::io::stdout(),
                "{bug}: found in round {rounds}, seed {seed}, {count} findings:{some}"
            )?;
            eprintln!("again: {}", report.again);
            return Ok(true);
        }
        if !report.is_good() {
            eprintln!("{report}");
            report.keep(&args.place.folder())?;
            bad.push(seed);
        }
        let is_last = rounds >= args.rounds && start.elapsed() >= length;
        if is_last || report.failure.is_some() {
            break;
        }
    }
    eprintln!("chaos: {rounds} rounds, {totals}; {} rounds with findings or a failure {bad:?}", bad.len());
    Ok(bad.is_empty() && !args.until_found)
}

/// What a round came to, and how to see it again.
struct Report<'a> {
    seed: u64,
    schedule: &'a Schedule,
    findings: Vec<String>,
    /// Why the laboratory did not get to the end.
    failure: Option<anyhow::Error>,
    folder: &'a Path,
    again: String,
}

impl Report<'_> {
    fn is_good(&self) -> bool {
        self.findings.is_empty() && self.failure.is_none()
    }

    /// Leaves everything of a bad round where it is, with this beside it.
    fn keep(&self, run: &Path) -> Result<()> {
        fs::create_dir_all(self.folder)?;
        fs::write(run.join(world::KEPT), "")?;
        fs::write(self.folder.join("findings.txt"), format!("{self}\nschedule:\n{}\n", self.schedule))?;
        Ok(())
    }
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.findings.is_empty() {
            writeln!(f, "FOUND with seed {}, about the brokers:\n{}", self.seed, self.findings.join("\n"))?;
        }
        if let Some(failure) = &self.failure {
            writeln!(
                f,
                "LABORATORY FAILED with seed {}, which says nothing about the brokers:\n{failure:#}",
                self.seed
            )?;
        }
        writeln!(f, "logs and volumes (images of ext4): {}", self.folder.display())?;
        write!(f, "again: {}", self.again)
    }
}

/// What a round was made of.
#[derive(Clone, Debug, Default)]
struct Figures {
    faults: usize,
    acknowledged: u64,
    passing: u64,
    read: u64,
    read_from_followers: u64,
    looks: u64,
    retries: u64,
    moves: u64,
    errors: BTreeMap<&'static str, u64>,
}

impl Figures {
    fn count(&mut self, shared: &Shared) {
        let counters = &shared.counters;
        self.acknowledged = shared.ledger.acknowledged_records();
        self.passing = counters.passing.load(Ordering::Relaxed);
        self.read = counters.read.load(Ordering::Relaxed);
        self.read_from_followers = counters.read_from_followers.load(Ordering::Relaxed);
        self.looks = counters.looks.load(Ordering::Relaxed);
        self.retries = counters.retries.load(Ordering::Relaxed);
        self.moves = counters.moves.load(Ordering::Relaxed);
        self.errors = counters.take_errors();
    }

    fn add(&mut self, other: &Self) {
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.passing += other.passing;
        self.read += other.read;
        self.read_from_followers += other.read_from_followers;
        self.looks += other.looks;
        self.retries += other.retries;
        self.moves += other.moves;
        for (name, count) in &other.errors {
            *self.errors.entry(name).or_default() += count;
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} faults, {} reassignments, {} records acknowledged and {} in topics that come and go, {} read, {} of them \
             from followers, {} looks at the high watermark, {} retries, errors {:?}",
            self.faults,
            self.moves,
            self.acknowledged,
            self.passing,
            self.read,
            self.read_from_followers,
            self.looks,
            self.retries,
            self.errors
        )
    }
}

/// A fleet of its own under load and faults.
///
/// # Errors
/// The laboratory fails. What brokers do wrong is among `findings`.
async fn round(
    args: &RunArgs,
    seed: u64,
    schedule: &Schedule,
    folder: &Path,
    findings: &Arc<Findings>,
    figures: &mut Figures,
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let note = format!("seed {seed}\nagain: {}\n", args.repeat(seed));
    fs::write(args.place.folder().join(world::ROUND), note)?;
    let plan = FleetPlan {
        brokers: args.size.brokers,
        program: args.place.program()?,
        folder: folder.to_owned(),
        run: args.place.run(),
        settings: settings(),
        own_clocks: schedule.sets_clocks(),
        historical_bug: args.historical_bug.clone(),
        findings: Arc::clone(findings),
    };
    let mut fleet = Fleet::create(&plan).await.context("making the fleet")?;
    let outcome = hurt(args, seed, schedule, &mut fleet, findings, figures).await;
    let outcome = findings.take(outcome);
    // Also for a fleet that did not come up: what it wrote is looked at, and the next round needs its hosts.
    let read = find_panics(folder, fleet.len(), findings).context("reading logs");
    let torn_down = fleet.tear_down().await.context("tearing the fleet down");
    outcome.and(read).and(torn_down)
}

/// Starts the fleet and a workload, breaks things, and compares when all is healed.
async fn hurt(
    args: &RunArgs,
    seed: u64,
    schedule: &Schedule,
    fleet: &mut Fleet,
    findings: &Arc<Findings>,
    figures: &mut Figures,
) -> Result<()> {
    fleet.start().await.context("starting the fleet")?;
    let plan = workload_plan(args, seed, schedule);
    let mut workload = Workload::start(fleet.addresses(), &plan, Arc::clone(findings)).await?;
    let shared = Arc::clone(workload.shared());
    let outcome = async {
        figures.faults = Nemesis::new(fleet, Arc::clone(&shared)).run(schedule).await?;
        findings.take(settle(fleet, &mut workload).await)
    }
    .await;
    workload.stop().await;
    figures.count(&shared);
    let view = outcome?;
    end_brokers(fleet, seed).await?;
    if let Some(view) = view {
        match compare_volumes(fleet, &view, &shared).await {
            Ok(found) => found.into_iter().for_each(|finding| findings.find(finding)),
            Err(error) => findings.find(format!("reading the volumes: {error:#}")),
        }
    }
    Ok(())
}

/// Everything in service, everything acknowledged, everything in sync, everything read; then compares.
async fn settle(fleet: &mut Fleet, workload: &mut Workload) -> Result<ClusterView> {
    let ledger = Arc::clone(&workload.shared().ledger);
    for broker in fleet.brokers_mut() {
        // One that has ended by itself, which was told.
        broker.start()?;
    }
    let healed = Instant::now();
    let say = |what: &str| eprintln!("  {:6.2} s after healing: {what}", healed.elapsed().as_secs_f64());
    let what = "after all was healed";
    fleet.wait_until_in_service().await.context(what)?;
    say("all in service");
    let Settled { made, topics } = workload.settle(DEADLINE).await?;
    say("all acknowledged");
    let view = wait_until_converged(&fleet.addresses(), DEADLINE).await.context(what)?;
    say("all in sync");
    workload.read_to_the_end(DEADLINE).await.context(what)?;
    say("all read");
    for (place, made) in made.iter().enumerate() {
        let findings = ledger.partition(place).verify(made);
        findings.into_iter().for_each(|finding| ledger.find_in(place, Err(finding)));
    }
    judge_topics(&view, &topics).into_iter().for_each(|finding| ledger.find(finding));
    Ok(view)
}

/// Every other seed ends with a crash, the others in order.
async fn end_brokers(fleet: &mut Fleet, seed: u64) -> Result<()> {
    for broker in fleet.brokers_mut() {
        if !seed.is_multiple_of(2) {
            broker.terminate().await?;
        }
        broker.kill().await?;
    }
    Ok(())
}

async fn compare_volumes(fleet: &Fleet, view: &ClusterView, shared: &Arc<Shared>) -> Result<Vec<String>> {
    let directories: Vec<PathBuf> =
        (0..fleet.len()).map(|number| fleet.broker(number).disk().data_dir()).collect();
    let (view, shared) = (view.clone(), Arc::clone(shared));
    tokio::task::spawn_blocking(move || {
        let brokers: Result<Vec<_>> = directories
            .iter()
            .enumerate()
            .map(|(number, directory)| StoppedBroker::open(number, directory))
            .collect();
        let brokers = brokers?;
        let mut findings = replicas::compare(&brokers, &view, &shared.ledger)?;
        let passing = shared.passing.lock().unwrap_or_else(PoisonError::into_inner);
        findings.extend(replicas::look_for(&brokers, &view, &passing)?);
        Ok(findings)
    })
    .await?
}

fn find_panics(folder: &Path, brokers: usize, findings: &Findings) -> Result<()> {
    for number in 0..brokers {
        let path = broker_folder(folder, number).join("broker.log");
        let log = match fs::read(&path) {
            // It was never started.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            log => log.with_context(|| path.display().to_string())?,
        };
        for line in String::from_utf8_lossy(&log).lines().filter(|line| line.contains("panicked at")) {
            findings.find(format!("broker {number}: {line}"));
        }
    }
    Ok(())
}

fn settings() -> Vec<String> {
    // Times are shorter than the defaults, so that a round sees what follows from silence.
    [
        "broker.session.timeout.ms=3000",
        "broker.heartbeat.interval.ms=500",
        "controller.quorum.fetch.timeout.ms=1000",
        "replica.lag.time.max.ms=3000",
        "metadata.quorum.voter.replacement.delay.ms=5000",
        "log.retention.check.interval.ms=2000",
        "replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn workload_plan(args: &RunArgs, seed: u64, schedule: &Schedule) -> WorkloadPlan {
    let replicas = i16::try_from(args.size.replicas).unwrap_or(i16::MAX);
    let topic = |name: &str, partitions, durability: &str| Topic {
        name: name.to_owned(),
        partitions,
        replication_factor: replicas,
        config: vec![
            ("log.durability".to_owned(), durability.to_owned()),
            ("retention.ms".to_owned(), "-1".to_owned()),
            // A broker whose clock is behind would refuse what others date (P7).
            ("message.timestamp.after.max.ms".to_owned(), i64::MAX.to_string()),
            ("min.insync.replicas".to_owned(), args.size.replicas.div_ceil(2).to_string()),
        ],
    };
    let second = if schedule.written { ("written", "written") } else { ("fsync-too", "fsync") };
    WorkloadPlan {
        topics: vec![
            topic("fsync", FSYNC_PARTITIONS, "fsync"),
            topic(second.0, WRITTEN_PARTITIONS, second.1),
        ],
        producers: 3,
        interval: Duration::from_millis(40),
        max_records: 8,
        seed,
        retry_backoff: Duration::from_millis(50),
        deposed_patience: None,
        churn: Some(replicas),
        nearby: true,
        moves: Some(Replicas { least: args.size.replicas.div_ceil(2), most: args.size.replicas }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn report<'a>(
        folder: &'a Path,
        schedule: &'a Schedule,
        findings: &[&str],
        failure: Option<&str>,
    ) -> Report<'a> {
        Report {
            seed: 7,
            schedule,
            findings: findings.iter().map(|finding| (*finding).to_owned()).collect(),
            failure: failure.map(|why| anyhow::anyhow!(why.to_owned())),
            folder,
            again: "make chaos SEED=7".to_owned(),
        }
    }

    #[test]
    fn a_finding_and_a_failure_are_told_apart_and_both_are_kept_with_how_to_repeat_them() {
        let run = std::env::temp_dir().join(format!("millrace-chaos-test-report-{}", std::process::id()));
        let (folder, schedule) = (run.join("seed-7"), Schedule { steps: Vec::new(), written: false });
        let found = report(&folder, &schedule, &["broker 1 was asked to stop: exit status: 3"], None);
        let failed = report(&folder, &schedule, &[], Some("mount: not found"));
        assert!(report(&folder, &schedule, &[], None).is_good());
        for (report, says, says_not) in [(found, "FOUND", "FAILED"), (failed, "LABORATORY FAILED", "FOUND")] {
            assert!(!report.is_good());
            report.keep(&run).unwrap();
            let text = fs::read_to_string(folder.join("findings.txt")).unwrap();
            assert!(text.contains(says) && !text.contains(says_not), "{text}");
            for what in ["seed 7", "again: make chaos SEED=7", &folder.display().to_string()] {
                assert!(text.contains(what), "{what} is not in {text}");
            }
            assert!(run.join(world::KEPT).exists());
            fs::remove_dir_all(&run).unwrap();
        }
    }
}
