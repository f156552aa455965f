//! One volume per broker: a file system of its own in a file, so that it can be full, slow, hung, or lose its power.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::process::Pid;

use super::shell::run;

/// Size of a volume. The file is sparse: it takes what is written.
const SIZE: &str = "3G";

/// What lets go of a mounted file system without writing anything that was not synced (FS_IOC_SHUTDOWN with
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`): what loss of power does.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys; \
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// A broker's volume.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount_point: PathBuf,
    /// Limits the processes in it.
    control_group: Option<PathBuf>,
}

impl Disk {
    /// Makes a volume in `folder` and mounts it.
    ///
    /// # Errors
    /// The system's tools fail.
    pub async fn create(folder: &Path, control_group: Option<PathBuf>) -> Result<Self> {
        let disk =
            Self { image: folder.join("volume.img"), mount_point: folder.join("volume"), control_group };
        fs::create_dir_all(&disk.mount_point)?;
        run(&["truncate", "-s", SIZE, path(&disk.image)?]).await?;
        // No room kept for root, which brokers here are: full means full.
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", path(&disk.image)?]).await?;
        disk.mount().await?;
        Ok(disk)
    }

    /// Where the broker keeps its data. Not all of the volume: what fills it up lies beside.
    pub fn data_dir(&self) -> PathBuf {
        self.mount_point.join("data")
    }

    async fn mount(&self) -> Result<()> {
        run(&["mount", "-o", "loop", path(&self.image)?, path(&self.mount_point)?]).await.map(drop)
    }

    /// Writes back and lets go of the volume; its broker has ended.
    ///
    /// # Errors
    /// It is still in use.
    pub async fn unmount(&self) -> Result<()> {
        run(&["umount", path(&self.mount_point)?]).await.map(drop)
    }

    /// From now on nothing can be read or written, and what was not synced is lost.
    ///
    /// # Errors
    /// The system call fails.
    pub async fn lose_power(&self) -> Result<()> {
        run(&["python3", "-c", SHUT_DOWN, path(&self.mount_point)?]).await.map(drop)
    }

    /// Mounts the volume again after it lost its power; its broker has ended.
    ///
    /// # Errors
    /// The file system cannot be recovered.
    pub async fn power_on(&self) -> Result<()> {
        self.unmount().await?;
        self.mount().await
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// The volume cannot be measured.
    pub async fn fill(&self) -> Result<()> {
        let free = run(&["stat", "-f", "-c", "%a %S", path(&self.mount_point)?]).await?;
        let numbers: Vec<u64> = free.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let bytes: u64 = numbers.iter().product();
        let filler = self.filler();
        // The broker writes meanwhile: what was free a moment ago may not be any more.
        for share in [100, 99, 95, 90] {
            let length = (bytes / 100 * share).to_string();
            if run(&["fallocate", "-l", &length, path(&filler)?]).await.is_ok() {
                break;
            }
        }
        Ok(())
    }

    /// Gives the room back for good: a loss of power does not take it again.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::File::open(&self.mount_point)?.sync_all().context("making room on a volume")
    }

    fn filler(&self) -> PathBuf {
        self.mount_point.join("filler")
    }

    /// Every write waits from now on.
    ///
    /// # Errors
    /// `fsfreeze` fails.
    pub async fn freeze(&self) -> Result<()> {
        run(&["fsfreeze", "--freeze", path(&self.mount_point)?]).await.map(drop)
    }

    /// Lets writes go on.
    ///
    /// # Errors
    /// `fsfreeze` fails.
    pub async fn thaw(&self) -> Result<()> {
        run(&["fsfreeze", "--unfreeze", path(&self.mount_point)?]).await.map(drop)
    }

    /// Whether this machine can make disks slow.
    pub fn can_be_slow(&self) -> bool {
        self.control_group.is_some()
    }

    /// Limits what the broker reads and writes per second; 0 lifts the limit.
    ///
    /// # Errors
    /// There is no control group for it.
    pub fn limit(&self, kilobytes: u32) -> Result<()> {
        let group = self.control_group.as_ref().context("block devices cannot be limited on this machine")?;
        let device = fs::metadata(&self.mount_point)?.dev();
        let limit = format!(
            "{}:{} {}",
            rustix::fs::major(device),
            rustix::fs::minor(device),
            u64::from(kilobytes) * 1024
        );
        for file in ["blkio.throttle.write_bps_device", "blkio.throttle.read_bps_device"] {
            fs::write(group.join(file), &limit).with_context(|| format!("{file}: {limit}"))?;
        }
        Ok(())
    }

    /// Puts a process under the limits.
    ///
    /// # Errors
    /// The process is gone.
    pub fn adopt(&self, pid: Pid) -> Result<()> {
        let Some(group) = &self.control_group else { return Ok(()) };
        fs::write(group.join("cgroup.procs"), pid.to_string()).context("cgroup.procs")
    }

    /// Loses everything on the volume; its broker has ended.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn wipe(&self) -> Result<()> {
        fs::remove_dir_all(self.data_dir()).context("wiping a volume")
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
