//! The identity of a data volume, and the right to use it.
//!
//! A volume is a directory that one broker writes to at a time. It is formatted once, for one cluster, and then has a
//! random uuid for ever: the uuid says whether data that a broker had before is still there, and the Raft node id
//! derives from it, so that a broker that lost its volume can never come back as the voter it was.
//!
//! Invariants: a volume is locked while a [`Volume`] lives; `meta.properties` is replaced as a whole and is on disk
//! before the identity in it is used. What else lies in the directory is the business of the modules that store it.

mod kept_space;
mod last_run;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
pub(crate) mod small;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_management::kafka_uuid;
use parking_lot::Mutex;
use uuid::Uuid;

#[cfg(test)]
pub(crate) use self::kept_space::kept_bytes;
pub use self::kept_space::{KeptSpace, Space, watch as watch_kept_space};
use self::last_run::LastRun;
#[cfg(any(test, feature = "historical-bugs"))]
use crate::bugs::{self, Bug};
use crate::metadata::image::BrokerId;

const META_FILE: &str = "meta.properties";
const META_TEMPORARY: &str = "meta.properties.tmp";
const LOCK_FILE: &str = ".lock";
const FORMAT_VERSION: &str = "1";

/// Names that may lie in a directory that was never formatted: file systems make the first, an interrupted format
/// the others.
const IGNORED: [&str; 3] = ["lost+found", LOCK_FILE, META_TEMPORARY];

/// Why a directory cannot be used as a data volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The operating system refuses to let us write.
    #[error(
        "cannot write to data directory {path}; it must belong to the user that the broker runs as, and its file system must not be mounted read-only"
    )]
    Unwritable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the volume open.
    #[error("data directory {path} is in use by another process; one broker can run on it at a time")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The volume was formatted for another cluster.
    #[error(
        "data directory {path} belongs to cluster {found}, but this broker is configured for cluster {expected}; \
         set cluster.id={found} to run that cluster, or give the broker an empty directory to join this one"
    )]
    ForeignCluster {
        /// The directory.
        path: PathBuf,
        /// Cluster id on the volume.
        found: String,
        /// Cluster id asked for.
        expected: String,
    },
    /// The format is newer than this program.
    #[error(
        "data directory {path} has format version {found:?}, but this broker reads version {FORMAT_VERSION}; \
         run the version of the broker that wrote it"
    )]
    UnknownVersion {
        /// The directory.
        path: PathBuf,
        /// What `meta.properties` says.
        found: String,
    },
    /// There are files, but not ours.
    #[error(
        "data directory {path} contains {entry:?} but no {META_FILE}, so it was not made by a broker; \
         use an empty directory"
    )]
    NotAVolume {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        entry: String,
    },
    /// `meta.properties` cannot be understood.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Any other failure of the file system.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl VolumeError {
    /// Whether only a change of the configuration or of the volume helps, so that trying again is pointless.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unwritable { .. } | Self::Locked { .. } | Self::Io { .. } => false,
            Self::ForeignCluster { .. }
            | Self::UnknownVersion { .. }
            | Self::NotAVolume { .. }
            | Self::Damaged { .. } => true,
        }
    }
}

/// An open, locked data volume.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    cluster_id: Uuid,
    volume_uuid: Uuid,
    broker_id: Mutex<Option<BrokerId>>,
    run: Mutex<LastRun>,
    /// Whether this run has lost something.
    failed: AtomicBool,
    kept_space: Arc<KeptSpace>,
    /// Held for its lock, which the operating system gives up when the file is closed, however the process ends.
    _lock: File,
}

impl Volume {
    /// Opens the volume in `directory`, formatting it for `cluster_id` if it is empty or absent.
    pub fn open_or_format(directory: &Path, cluster_id: Uuid) -> Result<Self, VolumeError> {
        fs::create_dir_all(directory).map_err(|source| cannot_write(directory, source))?;
        // Looked at before the lock file is made: nothing is written to a directory that is not ours.
        let formatted = is_formatted(directory)?;
        let lock = lock(directory)?;
        let kept_space = KeptSpace::new(directory);
        let identity = if formatted {
            read_identity(directory)?
        } else {
            let identity = Identity { cluster_id, volume_uuid: new_volume_uuid(), broker_id: None };
            write_identity(directory, &identity)?;
            tracing::info!(path = %directory.display(), volume = %identity.volume_uuid, "formatted data volume");
            identity
        };
        if identity.cluster_id != cluster_id {
            return Err(VolumeError::ForeignCluster {
                path: directory.to_owned(),
                found: kafka_uuid::format(identity.cluster_id),
                expected: kafka_uuid::format(cluster_id),
            });
        }
        let (boot_id, last) = (last_run::boot_id(), LastRun::read(directory));
        let run =
            if formatted { LastRun::following(last.as_ref(), boot_id) } else { LastRun::first(boot_id) };
        if run.lost_unsynced {
            tracing::warn!(
                path = %directory.display(),
                "the machine went down while a broker ran on this volume; what was not synced may be lost"
            );
        }
        if last.as_ref() != Some(&run) {
            let written = kept_space.with_room(|| run.write(directory));
            written.map_err(|source| cannot_write(directory, source))?;
        }
        Ok(Self {
            path: directory.to_owned(),
            cluster_id,
            volume_uuid: identity.volume_uuid,
            broker_id: Mutex::new(identity.broker_id),
            run: Mutex::new(run),
            failed: AtomicBool::new(false),
            kept_space: Arc::new(kept_space),
            _lock: lock,
        })
    }

    /// Cluster that the volume in `directory` was formatted for; `None` if it was not formatted yet.
    pub fn cluster_id_of(directory: &Path) -> Result<Option<Uuid>, VolumeError> {
        if !directory.exists() || !is_formatted(directory)? {
            return Ok(None);
        }
        Ok(Some(read_identity(directory)?.cluster_id))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Space of the volume that is for the broker alone. It is not kept before somebody looks at it.
    pub fn kept_space(&self) -> Arc<KeptSpace> {
        Arc::clone(&self.kept_space)
    }

    /// Cluster that the volume belongs to.
    pub fn cluster_id(&self) -> Uuid {
        self.cluster_id
    }

    /// Made when the volume was formatted; never changes.
    pub fn volume_uuid(&self) -> Uuid {
        self.volume_uuid
    }

    /// Node id of this volume in the metadata quorum: never 0, and never the same on two volumes.
    pub fn raft_node_id(&self) -> u64 {
        #[cfg(any(test, feature = "historical-bugs"))]
        if bugs::has(Bug::ReusesRaftId) {
            return bugs::raft_id_of_machine(&self.path);
        }
        raft_node_id(self.volume_uuid)
    }

    /// Kafka broker id that the quorum granted, if it has.
    pub fn broker_id(&self) -> Option<BrokerId> {
        *self.broker_id.lock()
    }

    /// Records the granted broker id; durable when this returns. Blocks on the disk if the id is new.
    pub fn set_broker_id(&self, broker_id: BrokerId) -> Result<(), VolumeError> {
        let mut stored = self.broker_id.lock();
        if *stored == Some(broker_id) {
            return Ok(());
        }
        let identity = Identity {
            cluster_id: self.cluster_id,
            volume_uuid: self.volume_uuid,
            broker_id: Some(broker_id),
        };
        self.kept_space.with_room(|| write_identity(&self.path, &identity))?;
        *stored = Some(broker_id);
        Ok(())
    }

    /// Whether an earlier run may have lost what it wrote and did not sync, and that was not reported yet.
    pub fn lost_unsynced(&self) -> bool {
        self.run.lock().lost_unsynced
    }

    /// The controller knows of the loss before this run, if there was one; remembered when this returns. Blocks on the disk
    /// if so.
    pub fn set_loss_reported(&self) -> Result<(), VolumeError> {
        let mut run = self.run.lock();
        if run.lost_unsynced && !self.failed.load(Ordering::Acquire) {
            self.replace_run(&mut run, LastRun::reported)?;
        }
        Ok(())
    }

    /// A write or sync of this run has failed: what was not synced may be lost, and the next run has to say so. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// The disk does not take that either.
    pub fn set_lost(&self) -> Result<(), VolumeError> {
        let mut run = self.run.lock();
        self.failed.store(true, Ordering::Release);
        self.replace_run(&mut run, LastRun::lost)
    }

    /// The broker has stopped in order and writes nothing any more: syncs everything and remembers that. Blocks on the
    /// disk.
    pub fn set_stopped(&self) -> Result<(), VolumeError> {
        let sync = || Ok(rustix::fs::syncfs(File::open(&self.path)?)?);
        sync().map_err(|source| cannot_write(&self.path, source))?;
        self.replace_run(&mut self.run.lock(), LastRun::stopped)
    }

    fn replace_run(&self, run: &mut LastRun, change: fn(&LastRun) -> LastRun) -> Result<(), VolumeError> {
        let changed = change(run);
        let written = self.kept_space.with_room(|| changed.write(&self.path));
        written.map_err(|source| cannot_write(&self.path, source))?;
        *run = changed;
        Ok(())
    }
}

fn raft_node_id(volume_uuid: Uuid) -> u64 {
    volume_uuid.as_u64_pair().0
}

fn new_volume_uuid() -> Uuid {
    loop {
        let candidate = Uuid::new_v4();
        // Kafka gives all-zero ids a meaning, and so do we.
        if raft_node_id(candidate) != 0 {
            return candidate;
        }
    }
}

#[derive(Debug)]
struct Identity {
    cluster_id: Uuid,
    volume_uuid: Uuid,
    broker_id: Option<BrokerId>,
}

fn is_formatted(directory: &Path) -> Result<bool, VolumeError> {
    let cannot_list = |source| VolumeError::Io { action: "list", path: directory.to_owned(), source };
    let mut stranger = None;
    for entry in fs::read_dir(directory).map_err(cannot_list)? {
        let name = entry.map_err(cannot_list)?.file_name().to_string_lossy().into_owned();
        if name == META_FILE {
            return Ok(true);
        }
        if !IGNORED.contains(&name.as_str()) {
            stranger = Some(name);
        }
    }
    match stranger {
        Some(entry) => Err(VolumeError::NotAVolume { path: directory.to_owned(), entry }),
        None => Ok(false),
    }
}

fn lock(directory: &Path) -> Result<File, VolumeError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| cannot_write(directory, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(VolumeError::Locked { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(VolumeError::Io { action: "lock", path, source }),
    }
}

fn read_identity(directory: &Path) -> Result<Identity, VolumeError> {
    let path = directory.join(META_FILE);
    let text = fs::read_to_string(&path).map_err(|source| VolumeError::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let value = |key: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let mut pairs = lines.filter_map(|line| line.split_once('='));
        pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    let damaged = |reason: &str| VolumeError::Damaged { path: path.clone(), reason: reason.to_owned() };
    let version = value("version").ok_or_else(|| damaged("it has no version"))?;
    if version != FORMAT_VERSION {
        return Err(VolumeError::UnknownVersion { path: directory.to_owned(), found: version });
    }
    let uuid = |key: &str| {
        let text = value(key).ok_or_else(|| damaged(&format!("it has no {key}")))?;
        kafka_uuid::parse(&text).ok_or_else(|| damaged(&format!("{key}={text} is not an id")))
    };
    let broker_id = value("node.id").map(|text| {
        let id = text.parse::<BrokerId>().ok().filter(|id| *id >= 0);
        id.ok_or_else(|| damaged(&format!("node.id={text} is not a broker id")))
    });
    let identity = Identity {
        cluster_id: uuid("cluster.id")?,
        volume_uuid: uuid("volume.uuid")?,
        broker_id: broker_id.transpose()?,
    };
    if raft_node_id(identity.volume_uuid) == 0 {
        return Err(damaged("volume.uuid is all zeros"));
    }
    Ok(identity)
}

/// Replaces `meta.properties` so that a crash leaves the old one or the new one.
fn write_identity(directory: &Path, identity: &Identity) -> Result<(), VolumeError> {
    let mut text = format!(
        "# Identity of this data volume. Do not edit, and do not copy to another volume.\n\
         version={FORMAT_VERSION}\ncluster.id={}\nvolume.uuid={}\n",
        kafka_uuid::format(identity.cluster_id),
        kafka_uuid::format(identity.volume_uuid)
    );
    if let Some(broker_id) = identity.broker_id {
        text.push_str(&format!("node.id={broker_id}\n"));
    }
    let write = || {
        let temporary = directory.join(META_TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, directory.join(META_FILE))?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| cannot_write(directory, source))
}

fn cannot_write(directory: &Path, source: io::Error) -> VolumeError {
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            VolumeError::Unwritable { path: directory.to_owned(), source }
        }
        _ => VolumeError::Io { action: "write to", path: directory.to_owned(), source },
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    const CLUSTER: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1122_3344_5566_7788);

    #[test]
    fn an_empty_directory_is_formatted_once_and_keeps_its_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let first = Volume::open_or_format(&path, CLUSTER).unwrap();
        let (uuid, node) = (first.volume_uuid(), first.raft_node_id());
        assert_eq!(first.broker_id(), None);
        first.set_broker_id(4).unwrap();
        drop(first);

        let again = Volume::open_or_format(&path, CLUSTER).unwrap();
        assert_eq!((again.volume_uuid(), again.raft_node_id(), again.broker_id()), (uuid, node, Some(4)));
        assert_ne!(node, 0);
        assert_eq!(Volume::cluster_id_of(&path).unwrap(), Some(CLUSTER));
    }

    #[test]
    fn a_volume_of_another_cluster_is_refused_and_both_ids_are_named() {
        let directory = tempfile::tempdir().unwrap();
        drop(Volume::open_or_format(directory.path(), CLUSTER).unwrap());
        let other = Uuid::from_u128(7);
        let error = Volume::open_or_format(directory.path(), other).unwrap_err();
        assert!(error.is_final());
        let message = error.to_string();
        assert!(
            message.contains(&kafka_uuid::format(CLUSTER)) && message.contains(&kafka_uuid::format(other)),
            "{message}"
        );
        assert!(Volume::open_or_format(directory.path(), CLUSTER).is_ok(), "the refusal changed the volume");
    }

    #[test]
    fn a_volume_whose_run_left_no_trace_has_lost_what_was_not_synced_until_that_was_reported() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Volume::open_or_format(directory.path(), CLUSTER).unwrap();
        assert!(!open().lost_unsynced(), "it was formatted just now");
        assert!(!open().lost_unsynced(), "the process was killed");
        fs::remove_file(directory.path().join(last_run::RUN_FILE)).unwrap();
        assert!(open().lost_unsynced());
        let volume = open();
        assert!(volume.lost_unsynced(), "nobody knows yet");
        volume.set_loss_reported().unwrap();
        assert!(!volume.lost_unsynced());
        drop(volume);
        assert!(!open().lost_unsynced());
    }

    #[test]
    fn a_loss_of_this_run_is_for_the_next_one_to_report() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Volume::open_or_format(directory.path(), CLUSTER).unwrap();
        let volume = open();
        volume.set_lost().unwrap();
        volume.set_loss_reported().unwrap();
        drop(volume);
        let next = open();
        assert!(next.lost_unsynced());
        next.set_loss_reported().unwrap();
        drop(next);
        assert!(!open().lost_unsynced());
    }

    #[test]
    fn an_orderly_stop_is_on_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volume = Volume::open_or_format(directory.path(), CLUSTER).unwrap();
        volume.set_stopped().unwrap();
        let text = fs::read_to_string(directory.path().join(last_run::RUN_FILE)).unwrap();
        assert!(text.contains("stopped=true"), "{text}");
        drop(volume);
        let _started = Volume::open_or_format(directory.path(), CLUSTER).unwrap();
        let text = fs::read_to_string(directory.path().join(last_run::RUN_FILE)).unwrap();
        assert!(text.contains("stopped=false"), "{text}");
    }

    #[test]
    fn a_broker_id_and_an_orderly_stop_have_room_when_others_have_taken_the_rest() {
        let Some(mounted) = small::SmallVolume::mount(96) else { return };
        let volume = Volume::open_or_format(&mounted.path().join("data"), CLUSTER).unwrap();
        for write in [|volume: &Volume| volume.set_broker_id(4), Volume::set_stopped] {
            volume.kept_space().look().unwrap();
            mounted.fill();
            write(&volume).unwrap();
            mounted.make_room();
        }
    }

    #[test]
    fn a_volume_in_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _held = Volume::open_or_format(directory.path(), CLUSTER).unwrap();
        let error = Volume::open_or_format(directory.path(), CLUSTER).unwrap_err();
        assert!(matches!(error, VolumeError::Locked { .. }), "{error}");
    }

    #[test]
    fn a_directory_with_other_files_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("thesis.txt"), "precious").unwrap();
        let error = Volume::open_or_format(directory.path(), CLUSTER).unwrap_err();
        assert!(matches!(&error, VolumeError::NotAVolume { entry, .. } if entry == "thesis.txt"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_lost_and_found_of_a_file_system_and_an_interrupted_format_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("lost+found")).unwrap();
        fs::write(directory.path().join(META_TEMPORARY), "version=").unwrap();
        assert!(Volume::open_or_format(directory.path(), CLUSTER).is_ok());
    }

    #[test]
    fn a_newer_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(META_FILE), "version=2\n").unwrap();
        let error = Volume::open_or_format(directory.path(), CLUSTER).unwrap_err();
        assert!(matches!(&error, VolumeError::UnknownVersion { found, .. } if found == "2"), "{error}");
    }

    #[test]
    fn damaged_identities_are_errors_not_new_volumes() {
        for text in ["", "version=1\n", "version=1\ncluster.id=abc\nvolume.uuid=x\n"] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(META_FILE), text).unwrap();
            let error = Volume::open_or_format(directory.path(), CLUSTER).unwrap_err();
            assert!(matches!(error, VolumeError::Damaged { .. }), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        fs::write(&path, "").unwrap();
        assert!(matches!(Volume::open_or_format(&path, CLUSTER), Err(VolumeError::Io { .. })));
    }
}
