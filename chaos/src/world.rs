//! Namespaces of this run's own: processes, mounts, network.
//!
//! The program starts itself again inside them. Brokers, bridge, links, firewall rules and mounted volumes belong to
//! the namespaces, so the kernel removes them all when the first process inside ends, for whatever reason, and that
//! one is killed when the program outside ends. What can outlive a run is its folder and its control group; both carry
//! the process id of the program outside, and the next run removes those of runs that are gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result, ensure};

/// Where named network namespaces are mounted; inside, a place of our own.
const NETNS: &str = "/run/netns";

/// Control groups that limit block devices (version 1); the only place where a disk can be made slow.
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// Starts this program again, with `arguments`, inside namespaces of its own; returns when it has ended.
///
/// # Errors
/// The namespaces cannot be made.
pub fn enter(arguments: &[String]) -> Result<ExitStatus> {
    ensure!(rustix::process::geteuid().is_root(), "namespaces and mounts need root");
    let program = std::env::current_exe().context("finding this program")?;
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(arguments)
        .status()
        .context("running setpriv and unshare (package util-linux)")
}

/// Prepares the namespaces from inside.
///
/// # Errors
/// The mount is refused.
pub fn prepare() -> Result<()> {
    fs::create_dir_all(NETNS).context(NETNS)?;
    let status =
        Command::new("mount").args(["-t", "tmpfs", "tmpfs", NETNS]).status().context("running mount")?;
    ensure!(status.success(), "mounting {NETNS}: {status}");
    Ok(())
}

/// The folder of the run that process `pid` drives.
pub fn folder_of(work_dir: &Path, pid: u32) -> PathBuf {
    work_dir.join(format!("run-{pid}"))
}

/// The control group of the broker `number` of the run that process `pid` drives; `None` where there is no such thing.
///
/// # Errors
/// It cannot be made.
pub fn control_group(pid: u32, number: usize) -> Result<Option<PathBuf>> {
    if !Path::new(BLKIO).join("blkio.throttle.write_bps_device").exists() {
        return Ok(None);
    }
    let path = Path::new(BLKIO).join(format!("{}{number}", group_prefix(pid)));
    fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(Some(path))
}

fn group_prefix(pid: u32) -> String {
    format!("millrace-chaos-{pid}-")
}

/// Removes what runs that are gone have left: their folders, unless they hold a finding, and their control groups.
///
/// # Errors
/// The work folder cannot be read.
pub fn remove_leftovers(work_dir: &Path) -> Result<()> {
    fs::create_dir_all(work_dir).with_context(|| work_dir.display().to_string())?;
    for entry in fs::read_dir(work_dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pid = name.strip_prefix("run-").and_then(|pid| pid.parse().ok());
        if pid.is_some_and(is_gone) && !path.join(KEPT).exists() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    let Ok(groups) = fs::read_dir(BLKIO) else { return Ok(()) };
    for entry in groups.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("millrace-chaos-").and_then(|rest| rest.split('-').next()?.parse().ok());
        if pid.is_some_and(is_gone) {
            // A group that still has processes stays; a later run tries again.
            let _ = fs::remove_dir(entry.path());
        }
    }
    Ok(())
}

/// Removes what the run of `pid` leaves behind once everything inside has ended.
pub fn remove_groups(pid: u32) {
    let Ok(groups) = fs::read_dir(BLKIO) else { return };
    for entry in groups.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&group_prefix(pid)) {
            // A group that still has processes stays; the next run tries again.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// File that marks a run's folder as one to keep.
pub const KEPT: &str = "finding.txt";

/// File in a run's folder that says what runs there at the moment, and how to repeat it.
pub const ROUND: &str = "round.txt";

/// Deals with the folder of a run that has ended: it goes if all went well, and it is kept otherwise. Says what ran
/// there last if nobody has said so yet: a program that is killed, or panics, cannot.
///
/// # Errors
/// It cannot be removed, or marked.
pub fn leave(folder: &Path, went_well: bool) -> Result<Option<String>> {
    if !folder.exists() || folder.join(KEPT).exists() {
        return Ok(None);
    }
    if went_well {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        return Ok(None);
    }
    fs::write(folder.join(KEPT), "").with_context(|| folder.display().to_string())?;
    Ok(Some(fs::read_to_string(folder.join(ROUND)).unwrap_or_default()))
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_ends_without_a_word_leaves_its_folder_and_how_to_repeat_it() {
        let work = std::env::temp_dir().join(format!("millrace-chaos-test-leave-{}", std::process::id()));
        let folder = folder_of(&work, 1);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(ROUND), "again: make chaos SEED=7").unwrap();
        assert_eq!(leave(&folder, false).unwrap().unwrap(), "again: make chaos SEED=7");
        assert_eq!(leave(&folder, false).unwrap(), None, "it is told once");
        assert_eq!(leave(&folder, true).unwrap(), None);
        assert!(folder.exists(), "what is marked stays");
        fs::remove_file(folder.join(KEPT)).unwrap();
        assert_eq!(leave(&folder, true).unwrap(), None);
        assert!(!folder.exists());
        fs::remove_dir_all(&work).unwrap();
    }

    #[test]
    fn leftovers_of_dead_runs_go_and_findings_and_live_runs_stay() {
        let work = std::env::temp_dir().join(format!("millrace-chaos-test-{}", std::process::id()));
        // Above the largest process id that Linux gives.
        let (dead, found, alive) = (4_194_305, 4_194_306, std::process::id());
        for pid in [dead, found, alive] {
            fs::create_dir_all(folder_of(&work, pid)).unwrap();
        }
        fs::write(folder_of(&work, found).join(KEPT), "").unwrap();
        remove_leftovers(&work).unwrap();
        assert!(!folder_of(&work, dead).exists());
        assert!(folder_of(&work, found).exists() && folder_of(&work, alive).exists());
        fs::remove_dir_all(&work).unwrap();
    }
}
