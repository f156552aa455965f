//! What the kernel counts for a process and for the machine, from `/proc`.
//!
//! Parsing is apart from reading. CPU time comes in clock ticks (10 ms on Linux): measure over a second or more.
//! `write_bytes` counts pages when they become dirty, or when they are submitted with O_DIRECT: what the process caused
//! to be written, without what the file system adds for itself.

use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Counters of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessCounters {
    /// Ticks in user mode, all threads, ended ones included.
    pub user_ticks: u64,
    /// Ticks in the kernel.
    pub system_ticks: u64,
    /// Bytes read from the disk.
    pub read_bytes: u64,
    /// Bytes written to the disk.
    pub write_bytes: u64,
    /// Resident memory now, in KiB.
    pub resident_kib: u64,
    /// Most resident memory so far, in KiB.
    pub peak_kib: u64,
}

impl std::iter::Sum for ProcessCounters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            user_ticks: sum.user_ticks + one.user_ticks,
            system_ticks: sum.system_ticks + one.system_ticks,
            read_bytes: sum.read_bytes + one.read_bytes,
            write_bytes: sum.write_bytes + one.write_bytes,
            resident_kib: sum.resident_kib + one.resident_kib,
            peak_kib: sum.peak_kib + one.peak_kib,
        })
    }
}

/// Counters of the machine at one time.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    at: Instant,
    machine_busy_ticks: u64,
    own: ProcessCounters,
    brokers: ProcessCounters,
}

impl Snapshot {
    /// Reads the counters of this process, of the machine and of the processes `brokers`, which are added up.
    ///
    /// # Errors
    /// A process is gone, or `/proc` cannot be read.
    pub fn take(brokers: &[u32]) -> Result<Self> {
        let machine_busy_ticks = parse_machine(&read("/proc/stat")?).context("/proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            machine_busy_ticks,
            own: process("self")?,
            brokers: brokers
                .iter()
                .map(|pid| process(&pid.to_string()))
                .sum::<Result<_>>()
                .context("reading the broker's counters")?,
        })
    }
}

/// What happened between two snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Wall clock.
    pub seconds: f64,
    /// Broker CPU in user mode; here and below that of all brokers of a fleet together.
    pub user_seconds: f64,
    /// Broker CPU in the kernel.
    pub system_seconds: f64,
    /// Bytes that the broker read from the disk.
    pub disk_read_bytes: u64,
    /// Bytes that the broker wrote to the disk.
    pub disk_write_bytes: u64,
    /// Broker's resident memory at the end, in bytes.
    pub resident_bytes: u64,
    /// Broker's largest resident memory since it started, in bytes.
    pub peak_resident_bytes: u64,
    /// Seconds of CPU of the load generator.
    pub client_seconds: f64,
    /// Seconds of CPU of everything else on the machine: what disturbed the measurement.
    pub other_seconds: f64,
}

impl Usage {
    /// What happened from `before` to `after`, which are of the same brokers.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Self {
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let seconds = |now: u64, then: u64| now.saturating_sub(then) as f64 * tick;
        let (b, a) = (before.brokers, after.brokers);
        let user_seconds = seconds(a.user_ticks, b.user_ticks);
        let system_seconds = seconds(a.system_ticks, b.system_ticks);
        let client_seconds = seconds(
            after.own.user_ticks + after.own.system_ticks,
            before.own.user_ticks + before.own.system_ticks,
        );
        let busy = seconds(after.machine_busy_ticks, before.machine_busy_ticks);
        Self {
            seconds: after.at.duration_since(before.at).as_secs_f64(),
            user_seconds,
            system_seconds,
            disk_read_bytes: a.read_bytes.saturating_sub(b.read_bytes),
            disk_write_bytes: a.write_bytes.saturating_sub(b.write_bytes),
            resident_bytes: a.resident_kib * 1024,
            peak_resident_bytes: a.peak_kib * 1024,
            client_seconds,
            other_seconds: (busy - user_seconds - system_seconds - client_seconds).max(0.0),
        }
    }

    /// Adds a stretch that came later: memory is the later one's.
    pub fn add(&mut self, later: &Self) {
        self.seconds += later.seconds;
        self.user_seconds += later.user_seconds;
        self.system_seconds += later.system_seconds;
        self.disk_read_bytes += later.disk_read_bytes;
        self.disk_write_bytes += later.disk_write_bytes;
        self.resident_bytes = later.resident_bytes;
        self.peak_resident_bytes = later.peak_resident_bytes;
        self.client_seconds += later.client_seconds;
        self.other_seconds += later.other_seconds;
    }
}

fn process(pid: &str) -> Result<ProcessCounters> {
    let mut counters = ProcessCounters::default();
    (counters.user_ticks, counters.system_ticks) =
        parse_stat(&read(&format!("/proc/{pid}/stat"))?).context("/proc/PID/stat")?;
    let io = read(&format!("/proc/{pid}/io"))?;
    counters.read_bytes = field(&io, "read_bytes").context("/proc/PID/io")?;
    counters.write_bytes = field(&io, "write_bytes").context("/proc/PID/io")?;
    let status = read(&format!("/proc/{pid}/status"))?;
    counters.resident_kib = field(&status, "VmRSS").context("/proc/PID/status")?;
    counters.peak_kib = field(&status, "VmHWM").context("/proc/PID/status")?;
    Ok(counters)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.to_owned())
}

/// User and system ticks of `/proc/PID/stat`. The command's name is in parentheses and may itself have some.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11); // state is field 3, utime field 14
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Busy ticks of `/proc/stat`, over all cores. Idle time and waiting for the disk are not busy; the time of
/// guests is already in user time.
fn parse_machine(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().take(8).map(|t| t.parse().ok()).collect::<Option<_>>()?;
    let all: u64 = ticks.iter().sum();
    Some(all - ticks.get(3)? - ticks.get(4)?)
}

/// The number behind `name:`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_follow_a_name_with_parentheses_and_blanks() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 5 0 0 0 321 123 7 8 20 0 9 0 100 1 2\n";
        assert_eq!(parse_stat(text), Some((321, 123)));
        assert_eq!(parse_stat("42 (cut) S 1"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let io = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(field(io, "write_bytes"), Some(4096));
        assert_eq!(field("VmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n", "VmRSS"), Some(1024));
        assert_eq!(field(io, "bytes"), None);
    }

    #[test]
    fn idle_and_waiting_for_the_disk_are_not_busy() {
        let text = "cpu  10 1 5 100 20 2 3 4 9 9\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_machine(text), Some(25));
    }

    #[test]
    fn usage_is_the_difference_and_memory_the_later_value() {
        let tick = rustix::param::clock_ticks_per_second();
        let at = Instant::now();
        let counters = |n: u64| ProcessCounters {
            user_ticks: n * tick,
            system_ticks: 2 * n * tick,
            read_bytes: n,
            write_bytes: 10 * n,
            resident_kib: n,
            peak_kib: n,
        };
        let before = Snapshot { at, machine_busy_ticks: 0, own: counters(0), brokers: counters(1) };
        let after = Snapshot { at, machine_busy_ticks: 20 * tick, own: counters(1), brokers: counters(3) };
        let usage = Usage::between(&before, &after);
        assert_eq!((usage.user_seconds, usage.system_seconds, usage.disk_write_bytes), (2.0, 4.0, 20));
        assert_eq!((usage.client_seconds, usage.other_seconds, usage.resident_bytes), (3.0, 11.0, 3072));
    }

    #[test]
    fn the_own_process_can_be_read() {
        let snapshot = Snapshot::take(&[std::process::id()]).unwrap();
        assert!(snapshot.brokers.resident_kib > 0);
    }

    #[test]
    fn counters_of_several_brokers_are_added_up() {
        let one = ProcessCounters {
            user_ticks: 1,
            system_ticks: 2,
            read_bytes: 3,
            write_bytes: 4,
            resident_kib: 5,
            peak_kib: 6,
        };
        let sum = [one, one, one].into_iter().map(Ok).sum::<Result<ProcessCounters>>().unwrap();
        assert_eq!((sum.user_ticks, sum.system_ticks, sum.read_bytes), (3, 6, 9));
        assert_eq!((sum.write_bytes, sum.resident_kib, sum.peak_kib), (12, 15, 18));
    }
}
