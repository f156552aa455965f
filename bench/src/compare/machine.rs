//! Facts about the machine that figures depend on. No name, address or path of it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// What a result says about where it was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Cores online.
    pub cores: usize,
    /// As the CPU names itself.
    pub cpu: String,
    /// Kernel release.
    pub kernel: String,
    /// Memory, in GB.
    pub memory_gb: f64,
    /// Of the folder that brokers write to.
    pub file_system: String,
}

/// `f_type` of statfs(2).
const FILE_SYSTEMS: [(i64, &str); 5] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x794c_7630, "overlayfs"),
    (TMPFS, "tmpfs"),
];
const TMPFS: i64 = 0x0102_1994;

impl Machine {
    /// Looks at this machine and at the folder that brokers will write to.
    ///
    /// # Errors
    /// `/proc` or the folder cannot be read.
    pub fn look(work_dir: &Path) -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let kib: f64 = value(&meminfo, "MemTotal")
            .and_then(|text| text.strip_suffix(" kB")?.parse().ok())
            .unwrap_or(0.0);
        Ok(Self {
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            cpu: value(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            kernel: kernel.trim().to_owned(),
            memory_gb: (kib * 1024.0 / 1e8).round() / 10.0,
            file_system: file_system(work_dir)?,
        })
    }
}

/// Refuses a folder in memory, and one on a disk that is nearly full.
///
/// # Errors
/// Measuring there makes no sense.
pub fn check_folder(folder: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statfs(folder).with_context(|| folder.display().to_string())?;
    let shown = folder.display();
    ensure!(
        file_system(folder)? != "tmpfs",
        "{shown} is in memory (tmpfs), give a folder on a disk with --work-dir"
    );
    let free = stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize)?);
    ensure!(
        free >= needed,
        "{shown} has {} GB free, {} GB are needed: give another folder with --work-dir",
        free >> 30,
        needed >> 30
    );
    Ok(())
}

fn file_system(folder: &Path) -> Result<String> {
    let stat = rustix::fs::statfs(folder).with_context(|| folder.display().to_string())?;
    let magic = stat.f_type;
    let known = FILE_SYSTEMS.iter().find(|(number, _)| *number == magic);
    Ok(known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned()))
}

/// The text behind `key` and a colon.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn values_stand_behind_their_key() {
        let text = "MemTotal:       100 kB\nMemFree: 5 kB\nmodel name\t: A CPU: fast\n";
        assert_eq!(value(text, "MemFree"), Some("5 kB"));
        assert_eq!(value(text, "model name"), Some("A CPU: fast"));
        assert_eq!(value(text, "Mem"), None);
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_folder(folder.path(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("--work-dir"), "{error}");
    }
}
