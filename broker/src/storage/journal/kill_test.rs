//! Processes that are killed (SIGKILL) while they use a store on real files, at random times and at each fail point.
//!
//! The child tells its parent over a pipe what it is about to append and what was acknowledged; the parent holds what
//! it finds afterwards against that.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command as Process, Stdio};

use millrace_protocol::records::BatchHeader;

use super::super::fail_point::{FailPoint, VARIABLE};
use super::*;
use crate::storage::conformance::Ends;
use crate::storage::{AppendBatch, PartitionLog, StateSnapshot, Wakes};

const CHILDS_VOLUME: &str = "MILLRACE_TEST_KILLED_VOLUME";
const CHILDS_DURABILITY: &str = "MILLRACE_TEST_KILLED_DURABILITY";
const CHILDS_CHECKPOINTS: &str = "MILLRACE_TEST_KILLED_CHECKPOINTS";

/// The first keeps everything, the others lose their beginnings all the time.
const LOGS: usize = 3;

/// Rounds of appends after which a child gives up: every fail point comes much earlier.
const MAX_ROUNDS: u64 = 2_000;

/// Two batches fill a frame, and six frames a segment.
fn small() -> JournalStoreOptions {
    JournalStoreOptions { segment_bytes: Some(32 << 10), tail_cache_bytes: 0, ..options() }
}

/// Which logs wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Fsync,
    Written,
    Mixed,
}

impl Mode {
    fn settings(self, number: usize) -> LogSettings {
        let written = self == Self::Written || (self == Self::Mixed && number > 0);
        let durability = if written { Durability::Written } else { Durability::Fsync };
        LogSettings { durability, ..kept_for_ever() }
    }
}

/// The batch that a child appends at `offset`; the parent checks that it is exactly that.
fn batch_for(number: usize, offset: i64) -> Bytes {
    let salt = usize::try_from(offset).unwrap() * 31 + number * 7;
    let size = if number == 0 { salt % 90 } else { salt % 900 };
    batch(1 + salt % 3, &vec![u8::try_from(salt % 251).unwrap(); size])
}

fn number(log: usize) -> i32 {
    i32::try_from(log).unwrap()
}

fn tell(word: &str, log: usize, value: i64) {
    writeln!(io::stdout(), "{word} {log} {value}").unwrap();
}

/// Prints each durable end of its log; runs on the writer's thread, before anything else can happen.
#[derive(Debug)]
struct Printer {
    log: usize,
    inner: Ends,
}

impl LogListener for Printer {
    fn durable_end_moved(&self, durable_end: i64, durable_bytes: u64) -> Wakes {
        tell("acknowledged", self.log, durable_end);
        self.inner.durable_end_moved(durable_end, durable_bytes)
    }

    fn store_failed(&self) {
        self.inner.store_failed();
    }
}

struct ChildsLog {
    log: Arc<dyn PartitionLog>,
    printer: Arc<Printer>,
}

fn open_logs(store: &Arc<dyn LogStore>, mode: Mode) -> Vec<ChildsLog> {
    let open = |log| {
        let printer = Arc::new(Printer { log, inner: Ends::default() });
        let listener: Arc<dyn LogListener> = Arc::clone(&printer) as Arc<dyn LogListener>;
        let opened = store.open(partition(number(log)), mode.settings(log), Arc::downgrade(&listener));
        let opened = opened.unwrap().log;
        let ends = opened.ends();
        printer.durable_end_moved(ends.durable_end, ends.durable_bytes).wake();
        tell("started", log, opened.ends().log_start);
        ChildsLog { log: opened, printer }
    };
    (0..LOGS).map(open).collect()
}

fn append(store: &Arc<dyn LogStore>, number: usize, log: &ChildsLog) {
    let offset = log.log.ends().log_end;
    let bytes = batch_for(number, offset);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let admission = runtime.block_on(store.admit(bytes.len())).unwrap();
    let header = BatchHeader { base_offset: offset, ..parse_header(&bytes).unwrap() };
    tell("sent", number, header.next_offset());
    log.log.append(AppendBatch { bytes, header }, Arc::new(admission)).unwrap();
}

fn checkpoint(store: &Arc<dyn LogStore>, logs: &[ChildsLog], round: u64) {
    let entry = |(log, opened): (usize, &ChildsLog)| {
        let offset = opened.log.ends().durable_end;
        let state = Some(StateSnapshot { offset, bytes: Bytes::from_static(b"producers") });
        CheckpointEntry { partition: partition(number(log)), state }
    };
    store.checkpoint(logs.iter().enumerate().map(entry).collect(), round).unwrap();
}

#[test]
#[ignore = "run by the other tests of this file, as a process of its own"]
fn child_that_is_killed() {
    let Some(volume) = std::env::var_os(CHILDS_VOLUME) else { return };
    let mode = match std::env::var(CHILDS_DURABILITY).unwrap().as_str() {
        "Fsync" => Mode::Fsync,
        "Written" => Mode::Written,
        "Mixed" => Mode::Mixed,
        other => panic!("{other}"),
    };
    let open = || -> Arc<dyn LogStore> {
        Arc::new(JournalStore::open(Path::new(&volume), VOLUME, small()).unwrap())
    };
    let checkpoints = std::env::var(CHILDS_CHECKPOINTS).unwrap() == "true";
    let mut store = open();
    let mut logs = open_logs(&store, mode);
    for round in 1..=MAX_ROUNDS {
        // While the first log rests, segments die as a whole; otherwise little is left in them and has to be moved.
        let resting = usize::from(round % 80 >= 40);
        for (number, log) in logs.iter().enumerate().skip(resting) {
            append(&store, number, log);
        }
        // A few commits may be under way at any time.
        if round % 3 == 0 {
            for log in &logs {
                assert!(log.printer.inner.wait(log.log.ends().log_end), "the store has failed");
            }
        }
        if round % 12 == 0 {
            for (number, log) in logs.iter().enumerate().skip(1) {
                let log_start = log.log.ends().durable_end - 3;
                tell("starts", number, log_start.max(0));
                log.log.set_log_start(log_start.max(0)).unwrap();
                tell("started", number, log_start.max(0));
            }
        }
        if checkpoints && round % 36 == 0 {
            checkpoint(&store, &logs, round);
        }
        if round % 100 == 0 {
            store.close();
            store = open();
            logs = open_logs(&store, mode);
        }
    }
}

/// What a parent knows of a log from what its children said.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    sent: i64,
    acknowledged: i64,
    starts: i64,
    started: i64,
}

/// What a child said before it died.
#[derive(Debug, Default)]
struct Said {
    words: Vec<(String, usize, i64)>,
    reached: Option<String>,
}

struct Parent {
    volume: TempDir,
    mode: Mode,
    /// Whether the next child makes checkpoints.
    checkpoints: bool,
    known: [Known; LOGS],
}

impl Parent {
    fn new(mode: Mode) -> Self {
        Self { volume: tempfile::tempdir().unwrap(), mode, checkpoints: true, known: Default::default() }
    }

    fn spawn(&self, fail_point: Option<(FailPoint, u32)>) -> (Child, std::thread::JoinHandle<Said>) {
        let module = module_path!().split_once("::").unwrap().1;
        let mut command = Process::new(std::env::current_exe().unwrap());
        command
            .args([&format!("{module}::child_that_is_killed"), "--exact", "--ignored", "--nocapture"])
            .env(CHILDS_VOLUME, self.volume.path())
            .env(CHILDS_DURABILITY, format!("{:?}", self.mode))
            .env(CHILDS_CHECKPOINTS, self.checkpoints.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some((point, visit)) = fail_point {
            command.env(VARIABLE, format!("{point:?}:{visit}"));
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let mut said = Said::default();
            for line in lines.map_while(Result::ok) {
                match line.split(' ').collect::<Vec<_>>()[..] {
                    ["reached", point] => said.reached = Some(point.to_owned()),
                    [word @ ("sent" | "acknowledged" | "starts" | "started"), log, value] => {
                        said.words.push((word.to_owned(), log.parse().unwrap(), value.parse().unwrap()));
                    }
                    _ => {}
                }
            }
            said
        });
        (child, reader)
    }

    fn note(&mut self, words: Vec<(String, usize, i64)>) {
        for (word, log, value) in words {
            let known = &mut self.known[log];
            let field = match word.as_str() {
                "sent" => &mut known.sent,
                "acknowledged" => &mut known.acknowledged,
                "starts" => &mut known.starts,
                _ => &mut known.started,
            };
            *field = value.max(*field);
        }
    }

    /// Lets a child die after a while, but not before it has made the volume's folders: without them nothing can be looked at.
    fn kill_after(&mut self, life: Duration) {
        let (mut child, reader) = self.spawn(None);
        let started = Instant::now();
        let made = |part: &str| self.volume.path().join(part).is_dir();
        while started.elapsed() < life || !(made("journal") && made("index")) {
            assert!(started.elapsed() < Duration::from_secs(60), "the child makes no volume");
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        self.note(reader.join().unwrap().words);
    }

    /// Lets a child die at a fail point, which it must reach.
    fn kill_at(&mut self, point: FailPoint, visit: u32) {
        let (mut child, reader) = self.spawn(Some((point, visit)));
        let said = reader.join().unwrap();
        let status = child.wait().unwrap();
        let reached = said.reached == Some(format!("{point:?}"));
        assert!(reached, "{point:?}:{visit} {:?} was not reached: {status}", self.mode);
        assert_eq!(status.signal(), Some(9), "{point:?}:{visit} {:?}: {status}", self.mode);
        self.note(said.words);
    }

    /// Opens a copy of the volume, so that the next child finds what the last one left, and looks at everything in it.
    fn check(&mut self) {
        let copy = tempfile::tempdir().unwrap();
        for part in ["journal", "index"] {
            fs::create_dir(copy.path().join(part)).unwrap();
            copy_files(&self.volume.path().join(part), &copy.path().join(part)).unwrap();
        }
        // Twice: recovery has written, and what it wrote must stand a start too.
        for _ in 0..2 {
            let opened = JournalStore::open(copy.path(), VOLUME, small());
            let store: Arc<dyn LogStore> =
                Arc::new(opened.unwrap_or_else(|error| panic!("{self:?}: {error}")));
            for log in 0..LOGS {
                self.check_log(log, &store);
            }
            store.close();
        }
    }

    fn check_log(&mut self, log: usize, store: &Arc<dyn LogStore>) {
        let opened = try_open(store, number(log), self.mode.settings(log)).unwrap();
        let known = self.known[log];
        let ends = opened.log.ends();
        let what = format!("log {log}, {:?}: {known:?}, {ends:?}", self.mode);
        assert!(ends.durable_end >= known.acknowledged, "acknowledged records are lost: {what}");
        assert!(ends.durable_end <= known.sent, "records that nobody sent: {what}");
        assert_eq!(ends.durable_end, ends.log_end, "{what}");
        assert!((known.started..=known.starts.max(known.started)).contains(&ends.log_start), "{what}");
        assert!(opened.state.as_ref().is_none_or(|state| state.offset <= ends.durable_end), "{what}");
        let found = opened.read_all(ends.log_start);
        let mut next = found.first().map_or(ends.durable_end, |first| first.base_offset);
        assert!(next <= ends.log_start, "records are missing at the start: {what}");
        for header in found {
            assert_eq!(header.base_offset, next, "{what}");
            let expected = parse_header(&batch_for(log, next)).unwrap();
            assert_eq!(
                (header.crc, header.next_offset()),
                (expected.crc, next + expected.next_offset()),
                "{what}"
            );
            next = header.next_offset();
        }
        assert_eq!(next, ends.durable_end, "records are missing at the end: {what}");
        // What survived is what the next child goes on from, and what was not there must not come back.
        let now = ends.durable_end;
        self.known[log] =
            Known { sent: now, acknowledged: now, starts: ends.log_start, started: ends.log_start };
    }
}

impl std::fmt::Debug for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parent").field("mode", &self.mode).field("known", &self.known).finish_non_exhaustive()
    }
}

#[test]
fn acknowledged_records_survive_kill_9() {
    let mut parent = Parent::new(Mode::Mixed);
    // On a busy machine a child gets less done before it dies, so it takes more of them.
    for round in 0..60_u64 {
        parent.kill_after(Duration::from_millis(120 + (round * 7_919) % 250));
        parent.check();
        if round >= 9 && parent.known.iter().all(|known| known.acknowledged > 100) {
            return;
        }
    }
    panic!("the children got nowhere: {:?}", parent.known);
}

/// Kills children at one point at different visits, one after the other on the same volume.
fn kill_at(point: FailPoint, visits: &[u32]) {
    for mode in [Mode::Fsync, Mode::Written] {
        let mut parent = Parent::new(mode);
        for visit in visits {
            parent.kill_at(point, *visit);
            parent.check();
        }
    }
}

/// Kills a child where it leaves much to replay, and then starts at `point`, one after the other.
fn kill_in_recovery_at(point: FailPoint, visits: &[u32]) {
    for mode in [Mode::Fsync, Mode::Written] {
        let mut parent = Parent::new(mode);
        for visit in visits {
            // The index is not flushed after that, so the moves are left to be replayed.
            parent.kill_at(FailPoint::MoveIndexed, 2);
            parent.kill_at(point, 1);
            parent.check();
            // Without a checkpoint every frame of this child is left to be replayed, however many batches each took.
            parent.checkpoints = false;
            parent.kill_at(FailPoint::Written, 30);
            parent.checkpoints = true;
            parent.kill_at(point, *visit);
            parent.check();
            parent.kill_at(point, 1);
            parent.check();
        }
    }
}

macro_rules! killed_at {
    ($kill:ident: $($name:ident $point:ident $visits:expr;)+) => {
        $(
            #[test]
            fn $name() {
                $kill(FailPoint::$point, &$visits);
            }
        )+
    };
}

killed_at! { kill_at:
    a_kill_before_a_write_loses_nothing BeforeWrite [1, 2, 40, 90];
    a_kill_between_write_and_sync_loses_nothing Written [1, 2, 40, 90];
    a_kill_between_sync_and_acknowledgement_loses_nothing Synced [1, 2, 40, 90];
    a_kill_before_the_index_hears_of_a_frame_loses_nothing Published [1, 30];
    a_kill_after_a_segment_file_was_made_loses_nothing FileMade [1, 2, 3];
    a_kill_before_the_first_write_to_a_recycled_segment_loses_nothing RecycledTaken [1, 4];
    a_kill_after_the_first_write_to_a_recycled_segment_loses_nothing RecycledWritten [1, 4];
    a_kill_before_moved_runs_are_synced_loses_nothing MoveWritten [1, 3];
    a_kill_before_moved_runs_are_indexed_loses_nothing MoveSynced [1, 3];
    a_kill_after_moved_runs_are_indexed_loses_nothing MoveIndexed [1, 3];
    a_kill_before_the_index_is_flushed_loses_nothing BeforeFlush [1, 4];
    a_kill_after_the_index_is_flushed_loses_nothing Flushed [1, 4];
    a_kill_before_segments_are_retired_loses_nothing Retiring [1, 3];
    a_kill_after_a_surplus_file_was_deleted_loses_nothing FileRemoved [1, 4];
    a_kill_before_an_orderly_end_is_noted_loses_nothing Ending [1, 2];
    a_kill_after_an_orderly_end_was_noted_loses_nothing Ended [1, 2];
}

killed_at! { kill_in_recovery_at:
    a_kill_while_replaying_loses_nothing Replaying [1, 2, 20];
    a_kill_after_replaying_loses_nothing Replayed [1];
    a_kill_after_a_start_was_noted_loses_nothing Started [1];
}
