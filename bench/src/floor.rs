//! `millrace-bench floor`: what this machine charges for the steps that no broker can do without.
//!
//! Each step is done by the simplest program that does it, pinned like a broker in a comparison, with its peer on the core
//! of the load. A broker's CPU above the sum of its steps is its own; below it there is nothing to gain but by doing fewer.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rustix::fs::{FallocateFlags, OFlags, fallocate, sendfile};
use rustix::time::{ClockId, clock_gettime};

use crate::children;

/// Bytes of a request with one record of 100 bytes, and of its answer.
const REQUEST: usize = 220;
const ANSWER: usize = 64;
/// Unit of direct I/O.
const BLOCK: usize = 4096;
/// Bytes that are sent from: more than the processor's caches hold.
const SOURCE: usize = 96 << 20;
/// Bytes of the file that is written to.
const TARGET: u64 = 64 << 20;

#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Folder for a file of 96 MiB, on the disk that brokers are to use. Default: that for temporary files.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Divides how often each step is done.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    shorter: u32,
}

/// What a step costs the core of the broker.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is done.
    pub name: &'static str,
    /// Seconds of CPU for each time, or each byte.
    pub cpu: f64,
    /// Seconds for each.
    pub wall: f64,
    /// Whether it is counted in bytes.
    pub by_bytes: bool,
}

impl FloorArgs {
    /// Measures all steps.
    ///
    /// # Errors
    /// There is only one core, or the folder is no place for a file.
    pub fn run(&self) -> Result<Vec<Step>> {
        let cores = children::two_cores()?;
        let folder = self.work_dir.clone().unwrap_or_else(std::env::temp_dir);
        let times = |full: u64| (full / u64::from(self.shorter)).max(1);
        // In a thread of its own, as it is pinned.
        let measure = move || -> Result<Vec<Step>> {
            children::pin(&[cores.0])?;
            let folder = tempfile::Builder::new().prefix("millrace-bench-").tempdir_in(folder)?;
            Ok(vec![
                switch(times(300_000))?,
                echo("request and answer over loopback, 1 in flight", cores.1, 1, times(200_000))?,
                echo("request and answer over loopback, 5 in flight", cores.1, 5, times(1_000_000))?,
                written(folder.path(), times(300_000))?,
                synced(folder.path(), times(20_000))?,
                sent("send of 1 MiB from memory over loopback", cores.1, times(6_000), None)?,
                sent(
                    "sendfile of 64 KiB over loopback",
                    cores.1,
                    times(6_000),
                    Some((folder.path(), 64 << 10)),
                )?,
                sent(
                    "sendfile of 1 MiB over loopback",
                    cores.1,
                    times(6_000),
                    Some((folder.path(), 1 << 20)),
                )?,
            ])
        };
        thread::scope(|scope| {
            scope.spawn(measure).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, cpu, wall, by_bytes } = self;
        if *by_bytes {
            write!(f, "{name}: {:.2} s of CPU per GB, {:.0} MB/s", cpu * 1e9, 1e-6 / wall)
        } else {
            write!(f, "{name}: {:.1} µs of CPU, {:.1} µs", cpu * 1e6, wall * 1e6)
        }
    }
}

/// Seconds of CPU of the calling thread.
fn thread_cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Does something `count` times, of which this thread bears all costs.
fn measure(
    name: &'static str,
    count: u64,
    by_bytes: Option<usize>,
    mut step: impl FnMut(u64) -> Result<()>,
) -> Result<Step> {
    let (began, cpu) = (Instant::now(), thread_cpu());
    (0..count).try_for_each(&mut step).with_context(|| name.to_owned())?;
    let all = (count * by_bytes.unwrap_or(1) as u64) as f64;
    let (cpu, wall) = ((thread_cpu() - cpu) / all, began.elapsed().as_secs_f64() / all);
    Ok(Step { name, cpu, wall, by_bytes: by_bytes.is_some() })
}

/// Two threads of one core hand a turn to each other.
fn switch(count: u64) -> Result<Step> {
    let (there, asked) = mpsc::sync_channel::<()>(1);
    let (back, answered) = mpsc::sync_channel::<()>(1);
    let other = thread::spawn(move || {
        while asked.recv().is_ok() && back.send(()).is_ok() {}
        thread_cpu()
    });
    let mut step = measure("there and back between two threads of a core", count, None, |_| {
        there.send(())?;
        Ok(answered.recv()?)
    })?;
    drop(there);
    let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    step.cpu += other / count as f64;
    Ok(step)
}

/// A connection over loopback, and a thread on another core that is at its other end.
fn connect<T: Send + 'static>(
    core: usize,
    peer: impl FnOnce(TcpStream) -> Result<T> + Send + 'static,
) -> Result<(TcpStream, thread::JoinHandle<Result<T>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let peer = thread::spawn(move || {
        children::pin(&[core])?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        peer(stream)
    });
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    Ok((stream, peer))
}

/// Waits for bytes; that none come any more is an error.
fn receive(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let received = stream.read(buffer)?;
    ensure!(received > 0, "the other end has gone away");
    Ok(received)
}

fn echo(name: &'static str, core: usize, in_flight: u64, count: u64) -> Result<Step> {
    let (mut stream, peer) = connect(core, move |mut stream| {
        let (mut sent, mut answered, mut rest) = (0, 0, 0);
        let mut buffer = vec![0; 64 << 10];
        while answered < count {
            while sent < count && sent < answered + in_flight {
                stream.write_all(&[0; REQUEST])?;
                sent += 1;
            }
            rest += receive(&mut stream, &mut buffer)?;
            answered += (rest / ANSWER) as u64;
            rest %= ANSWER;
        }
        Ok(())
    })?;
    let (mut buffer, mut rest) = (vec![0; 64 << 10], 0);
    let step = measure(name, count, None, |_| {
        while rest < REQUEST {
            rest += receive(&mut stream, &mut buffer)?;
        }
        rest -= REQUEST;
        Ok(stream.write_all(&[0; ANSWER])?)
    });
    peer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    step
}

fn written(folder: &Path, count: u64) -> Result<Step> {
    let file = target(folder, OFlags::empty())?;
    measure("write of 4 KiB into the page cache", count, None, |n| {
        Ok(file.write_all_at(&[1; BLOCK], place(n))?)
    })
}

fn synced(folder: &Path, count: u64) -> Result<Step> {
    let file = target(folder, OFlags::DIRECT)?;
    let memory = vec![1; 2 * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    measure("direct write of 4 KiB and fdatasync", count, None, |n| {
        file.write_all_at(&memory[aligned..aligned + BLOCK], place(n))?;
        Ok(file.sync_data()?)
    })
}

/// Where the nth block goes.
fn place(n: u64) -> u64 {
    n * BLOCK as u64 % TARGET
}

/// A file whose blocks have been written before, as those of a recycled segment.
fn target(folder: &Path, flags: OFlags) -> Result<File> {
    let path = folder.join("target");
    let refused = || format!("{} takes no such file; --work-dir names a folder on a disk", folder.display());
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    fallocate(&file, FallocateFlags::empty(), 0, TARGET)?;
    (0..TARGET >> 20).try_for_each(|n| file.write_all_at(&vec![1; 1 << 20], n << 20))?;
    file.sync_all()?;
    let flags = i32::try_from(flags.bits()).context("flags of open(2) are an int")?;
    OpenOptions::new().write(true).custom_flags(flags).open(&path).with_context(refused)
}

/// Sends mebibytes from memory or, `chunk` bytes at a time, from a file that is in the page cache.
fn sent(name: &'static str, core: usize, count: u64, from: Option<(&Path, usize)>) -> Result<Step> {
    const MIB: usize = 1 << 20;
    let (mut stream, peer) = connect(core, |mut stream| {
        let mut buffer = vec![0; MIB];
        while stream.read(&mut buffer)? > 0 {}
        Ok(())
    })?;
    let source = vec![1; SOURCE];
    let at = |n: u64| (n as usize % (SOURCE / MIB)) * MIB;
    let step = match from {
        None => measure(name, count, Some(MIB), |n| Ok(stream.write_all(&source[at(n)..at(n) + MIB])?)),
        Some((folder, chunk)) => {
            let path = folder.join("source");
            std::fs::write(&path, &source)?;
            let file = File::open(&path)?;
            measure(name, count, Some(MIB), |n| {
                let (mut offset, end) = (at(n) as u64, (at(n) + MIB) as u64);
                while offset < end {
                    let length = chunk.min((end - offset) as usize);
                    sendfile(&stream, &file, Some(&mut offset), length)?;
                }
                Ok(())
            })
        }
    };
    drop(stream);
    peer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    step
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_goes_away_is_an_error_and_not_waited_for() {
        let error = receive(&mut std::io::empty(), &mut [0; 8]).unwrap_err();
        assert!(error.to_string().contains("gone away"), "{error}");
    }

    #[test]
    fn every_step_is_measured_and_costs_something() {
        // Not the folder for temporary files, which may be in memory.
        let work_dir = Some(std::env::current_dir().unwrap());
        let steps = FloorArgs { work_dir, shorter: 1_000 }.run().unwrap();
        assert_eq!(steps.len(), 8);
        for step in steps {
            assert!(step.cpu > 0.0 && step.wall > 0.0, "{step}");
        }
    }
}
