//! Rounds of load, faults and checks, each with a fleet of its own and a seed of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::checks::cluster::{ClusterView, judge_topics};
use crate::checks::replicas::{self, StoppedBroker};
use crate::checks::wait_until_converged;
use crate::client::Topic;
use crate::fleet::{DEADLINE, Fleet, FleetPlan, broker_folder, network};
use crate::nemesis::{Kind, Nemesis, Schedule, Shape};
use crate::workload::moves::Replicas;
use crate::workload::{Settled, Workload, WorkloadPlan};
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
        let only = if only.is_empty() { String::new() } else { format!(" --only {}", only.join(",")) };
        format!(
            "make chaos SEED={seed} CHAOS_ARGUMENTS=\"--brokers {} --replicas {} --seconds {}{only}\"",
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

/// Runs all rounds; says whether all went well.
///
/// # Errors
/// The laboratory itself does not work.
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
        let (figures, findings) = round(args, seed, &schedule).await?;
        rounds += 1;
        let took = began.elapsed().as_secs();
        eprintln!("seed {seed}: {figures}, {} findings, {took} s", findings.len());
        totals.add(&figures);
        if !findings.is_empty() {
            keep(args, seed, &schedule, &findings)?;
            bad.push(seed);
        }
        if rounds >= args.rounds && start.elapsed() >= length {
            break;
        }
    }
    eprintln!("chaos: {rounds} rounds, {totals}; {} rounds with findings {bad:?}", bad.len());
    Ok(bad.is_empty())
}

/// What a round was made of.
#[derive(Clone, Debug, Default)]
struct Figures {
    faults: usize,
    acknowledged: u64,
    read: u64,
    retries: u64,
    moves: u64,
    errors: BTreeMap<&'static str, u64>,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.read += other.read;
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
            "{} faults, {} reassignments, {} records acknowledged, {} read, {} retries, errors {:?}",
            self.faults, self.moves, self.acknowledged, self.read, self.retries, self.errors
        )
    }
}

async fn round(args: &RunArgs, seed: u64, schedule: &Schedule) -> Result<(Figures, Vec<String>)> {
    let folder = args.place.folder().join(format!("seed-{seed}"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut fleet = Fleet::start(&FleetPlan {
        brokers: args.size.brokers,
        program: args.place.program()?,
        folder: folder.clone(),
        run: args.place.run(),
        settings: settings(),
        own_clocks: schedule.sets_clocks(),
    })
    .await
    .context("starting the fleet")?;
    let plan = workload_plan(args, seed, schedule);
    let mut workload = Workload::start(fleet.addresses(), &plan).await.context("starting the workload")?;
    let ledger = Arc::clone(&workload.shared().ledger);
    let nemesis = Nemesis::new(&mut fleet, Arc::clone(workload.shared()));
    let faults = nemesis.run(schedule).await?;
    // From here on what does not work is the brokers' fault.
    let view = match settle(&mut fleet, &mut workload, schedule).await {
        Ok(view) => Some(view),
        Err(error) => {
            ledger.find(format!("{error:#}"));
            None
        }
    };
    let shared = workload.stop().await;
    end_brokers(&mut fleet, seed, &ledger).await?;
    if let Some(view) = view {
        match compare_volumes(&fleet, &view, &shared.ledger).await {
            Ok(findings) => findings.into_iter().for_each(|finding| ledger.find(finding)),
            Err(error) => ledger.find(format!("reading the volumes: {error:#}")),
        }
    }
    find_panics(&folder, fleet.len(), &ledger)?;
    fleet.tear_down().await?;
    let figures = Figures {
        faults,
        acknowledged: ledger.acknowledged_records(),
        read: shared.counters.read.load(Ordering::Relaxed),
        retries: shared.counters.retries.load(Ordering::Relaxed),
        moves: shared.counters.moves.load(Ordering::Relaxed),
        errors: shared.counters.take_errors(),
    };
    let findings = ledger.findings();
    if findings.is_empty() {
        fs::remove_dir_all(&folder)?;
    }
    Ok((figures, findings))
}

/// Everything in service, everything acknowledged, everything in sync, everything read; then compares.
async fn settle(fleet: &mut Fleet, workload: &mut Workload, schedule: &Schedule) -> Result<ClusterView> {
    let ledger = Arc::clone(&workload.shared().ledger);
    for broker in fleet.brokers_mut() {
        let ended = broker.has_ended()?;
        if let Some(status) = ended {
            let what = format!("broker {} ended by itself: {status}", broker.number());
            if schedule.breaks_disks() {
                eprintln!("  {what}; a disk was slow, hung or broken, so it is started again");
            } else {
                ledger.find(what);
            }
        }
        if !broker.is_running() {
            broker.start()?;
        }
    }
    let healed = Instant::now();
    let say = |what: &str| eprintln!("  {:6.2} s after healing: {what}", healed.elapsed().as_secs_f64());
    fleet.wait_until_in_service().await.context("after all was healed")?;
    say("all in service");
    let Settled { made, topics } = workload.settle(DEADLINE).await?;
    say("all acknowledged");
    let view = wait_until_converged(&fleet.addresses(), DEADLINE).await.context("after all was healed")?;
    say("all in sync");
    workload.read_to_the_end(DEADLINE).await.context("after all was healed")?;
    say("all read");
    for (place, made) in made.iter().enumerate() {
        let findings = ledger.partition(place).verify(made);
        findings.into_iter().for_each(|finding| ledger.find_in(place, Err(finding)));
    }
    judge_topics(&view, &topics).into_iter().for_each(|finding| ledger.find(finding));
    Ok(view)
}

/// Every other seed ends with a crash, the others in order.
async fn end_brokers(fleet: &mut Fleet, seed: u64, ledger: &crate::workload::ledger::Ledger) -> Result<()> {
    for broker in fleet.brokers_mut() {
        if !seed.is_multiple_of(2)
            && let Err(error) = broker.terminate().await
        {
            ledger.find(format!("{error:#}"));
        }
        broker.kill().await?;
    }
    Ok(())
}

async fn compare_volumes(
    fleet: &Fleet,
    view: &ClusterView,
    ledger: &Arc<crate::workload::ledger::Ledger>,
) -> Result<Vec<String>> {
    let directories: Vec<PathBuf> =
        (0..fleet.len()).map(|number| fleet.broker(number).disk().data_dir()).collect();
    let (view, ledger) = (view.clone(), Arc::clone(ledger));
    tokio::task::spawn_blocking(move || {
        let brokers: Result<Vec<_>> = directories
            .iter()
            .enumerate()
            .map(|(number, directory)| StoppedBroker::open(number, directory))
            .collect();
        replicas::compare(&brokers?, &view, &ledger)
    })
    .await?
}

fn find_panics(folder: &Path, brokers: usize, ledger: &crate::workload::ledger::Ledger) -> Result<()> {
    for number in 0..brokers {
        let path = broker_folder(folder, number).join("broker.log");
        let log = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for line in log.lines().filter(|line| line.contains("panicked at")) {
            ledger.find(format!("broker {number}: {line}"));
        }
    }
    Ok(())
}

fn settings() -> Vec<String> {
    // Shorter than the defaults, so that a round sees what follows from silence.
    [
        "broker.session.timeout.ms=3000",
        "broker.heartbeat.interval.ms=500",
        "controller.quorum.fetch.timeout.ms=1000",
        "replica.lag.time.max.ms=3000",
        "metadata.quorum.voter.replacement.delay.ms=5000",
        "log.retention.check.interval.ms=2000",
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
        moves: Some(Replicas { least: args.size.replicas.div_ceil(2), most: args.size.replicas }),
    }
}

/// Leaves everything of a bad round where it is, with a note of what was found and how to see it again.
fn keep(args: &RunArgs, seed: u64, schedule: &Schedule, findings: &[String]) -> Result<()> {
    let folder = args.place.folder();
    let text =
        format!("seed {seed}\n{schedule}\n\n{}\n\nagain: {}\n", findings.join("\n"), args.repeat(seed));
    fs::write(folder.join(format!("seed-{seed}")).join("findings.txt"), &text)?;
    fs::write(folder.join(world::KEPT), "")?;
    eprintln!(
        "FOUND with seed {seed}:\n{}\nlogs and volumes (images of ext4): {}\nagain: {}",
        findings.join("\n"),
        folder.join(format!("seed-{seed}")).display(),
        args.repeat(seed)
    );
    Ok(())
}
