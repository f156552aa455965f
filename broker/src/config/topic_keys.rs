//! The keys of topics.

use super::registry::{KeyDef, Synonym};
use super::value::Check;
use super::value::Kind::{Boolean, Double, Int, List, Long, String};

const SEGMENTS: &str = "the record store does not work that way";
const SYNC: &str = "every acknowledged record is on disk already, see log.durability";
const LEVELS: &str = "each codec has a fixed level";
const TIERS: &str = "there is no tiered storage";

const CODECS: Check = Check::OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]);

const fn same(name: &'static str) -> Synonym {
    Synonym { name, factor: 1 }
}

const MINUTES: i64 = 60_000;
const HOURS: i64 = 60 * MINUTES;

/// Sorted by name.
pub(super) const TOPIC_KEYS: &[KeyDef] = &[
    KeyDef::new("cleanup.policy", List, "delete", "How old records go: delete drops them by age and size, compact keeps the last record of each key; both may be given.")
        .check(Check::ListOf(&["compact", "delete"]))
        .synonyms(&[same("log.cleanup.policy")]),
    KeyDef::new("compression.gzip.level", Int, "-1", "Level used when the broker compresses with gzip.")
        .check(Check::BetweenOrDefault(1, 9))
        .synonyms(&[same("compression.gzip.level")])
        .no_effect_yet(LEVELS),
    KeyDef::new("compression.lz4.level", Int, "9", "Level used when the broker compresses with lz4.")
        .check(Check::Between(1, 17))
        .synonyms(&[same("compression.lz4.level")])
        .no_effect_yet(LEVELS),
    KeyDef::new("compression.type", String, "producer", "Codec that batches are stored with; producer keeps them as they came.")
        .check(CODECS)
        .synonyms(&[same("compression.type")]),
    KeyDef::new("compression.zstd.level", Int, "3", "Level used when the broker compresses with zstd.")
        .check(Check::Between(-131_072, 22))
        .synonyms(&[same("compression.zstd.level")])
        .no_effect_yet(LEVELS),
    KeyDef::new("delete.retention.ms", Long, "86400000", "How long a tombstone stays readable in a compacted topic.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.cleaner.delete.retention.ms")]),
    KeyDef::new("file.delete.delay.ms", Long, "60000", "Delay before the files of a deleted log are removed.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.segment.delete.delay.ms")])
        .no_effect_yet(SEGMENTS),
    KeyDef::new("flush.messages", Long, "9223372036854775807", "Records after which the log is synced to disk.")
        .check(Check::AtLeast(1))
        .synonyms(&[same("log.flush.interval.messages")])
        .no_effect_yet(SYNC),
    KeyDef::new("flush.ms", Long, "9223372036854775807", "Time after which the log is synced to disk.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.flush.interval.ms"), same("log.flush.scheduler.interval.ms")])
        .no_effect_yet(SYNC),
    KeyDef::new("follower.replication.throttled.replicas", List, "", "Replicas that fetch no faster than follower.replication.throttled.rate while they are not in sync: partition:broker pairs, or * for all.")
        .check(Check::ThrottledReplicas),
    KeyDef::new("index.interval.bytes", Int, "4096", "Bytes of log between two index entries.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.index.interval.bytes")])
        .no_effect_yet(SEGMENTS),
    KeyDef::new("leader.replication.throttled.replicas", List, "", "Replicas that, while they lead, serve followers that are not in sync no faster than leader.replication.throttled.rate: partition:broker pairs, or * for all.")
        .check(Check::ThrottledReplicas),
    KeyDef::new("local.retention.bytes", Long, "-2", "Size of the part of a tiered log that stays on local disks; -2 means retention.bytes.")
        .check(Check::AtLeast(-2))
        .synonyms(&[same("log.local.retention.bytes")])
        .no_effect_yet(TIERS),
    KeyDef::new("local.retention.ms", Long, "-2", "Age of the part of a tiered log that stays on local disks; -2 means retention.ms.")
        .check(Check::AtLeast(-2))
        .synonyms(&[same("log.local.retention.ms")])
        .no_effect_yet(TIERS),
    KeyDef::new("log.durability", String, "fsync", "When a record counts as stored: fsync once it is on the disk, written once the operating system has it, which a power failure can undo: about a second of it, and at most 40 MiB of all topics of the broker together.")
        .check(Check::OneOf(&["fsync", "written"]))
        .synonyms(&[same("log.durability")]),
    KeyDef::new("max.compaction.lag.ms", Long, "9223372036854775807", "Longest time that a record may wait for compaction.")
        .check(Check::AtLeast(1))
        .synonyms(&[same("log.cleaner.max.compaction.lag.ms")]),
    KeyDef::new("max.message.bytes", Int, "1048588", "Largest record batch that is accepted, as compressed by the producer.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("message.max.bytes")]),
    KeyDef::new("message.timestamp.after.max.ms", Long, "3600000", "How far a record's timestamp may lie in the future.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.message.timestamp.after.max.ms")]),
    KeyDef::new("message.timestamp.before.max.ms", Long, "9223372036854775807", "How far a record's timestamp may lie in the past.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.message.timestamp.before.max.ms")]),
    KeyDef::new("message.timestamp.type", String, "CreateTime", "Whose clock dates a record: the producer's (CreateTime) or the broker's (LogAppendTime).")
        .check(Check::OneOf(&["CreateTime", "LogAppendTime"]))
        .synonyms(&[same("log.message.timestamp.type")]),
    KeyDef::new("min.cleanable.dirty.ratio", Double, "0.5", "Share of a log that must be uncompacted before compaction starts.")
        .check(Check::Ratio)
        .synonyms(&[same("log.cleaner.min.cleanable.ratio")]),
    KeyDef::new("min.compaction.lag.ms", Long, "0", "Time during which a record is left alone by compaction.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.cleaner.min.compaction.lag.ms")]),
    KeyDef::new("min.insync.replicas", Int, "1", "In-sync replicas without which a write with acks=all is refused.")
        .check(Check::AtLeast(1))
        .synonyms(&[same("min.insync.replicas")]),
    KeyDef::new("preallocate", Boolean, "false", "Whether files are allocated before they are filled.")
        .synonyms(&[same("log.preallocate")])
        .no_effect_yet(SEGMENTS),
    KeyDef::new("remote.log.copy.disable", Boolean, "false", "Whether a tiered topic stops copying to remote storage.").no_effect_yet(TIERS),
    KeyDef::new("remote.log.delete.on.disable", Boolean, "false", "Whether remote data goes when tiering is switched off.").no_effect_yet(TIERS),
    KeyDef::new("remote.storage.enable", Boolean, "false", "Whether the topic is tiered.")
        .check(Check::OnlyFalse("tiered storage is not available; leave it false"))
        .no_effect_yet(TIERS),
    KeyDef::new("retention.bytes", Long, "-1", "Size of a partition above which its oldest records go; -1 means no limit.")
        .synonyms(&[same("log.retention.bytes")]),
    KeyDef::new("retention.ms", Long, "604800000", "Age at which records go; -1 means never.")
        .check(Check::AtLeast(-1))
        .synonyms(&[
            same("log.retention.ms"),
            Synonym { name: "log.retention.minutes", factor: MINUTES },
            Synonym { name: "log.retention.hours", factor: HOURS },
        ]),
    KeyDef::new("segment.bytes", Int, "1073741824", "Largest batch set of one produce request for a partition. The record store has segments of its own.")
        .check(Check::AtLeast(1_048_576))
        .synonyms(&[same("log.segment.bytes")]),
    KeyDef::new("segment.index.bytes", Int, "10485760", "Size of a segment's index files.")
        .check(Check::AtLeast(4))
        .synonyms(&[same("log.index.size.max.bytes")])
        .no_effect_yet(SEGMENTS),
    KeyDef::new("segment.jitter.ms", Long, "0", "Random time taken off segment.ms, so that not all segments roll at once.")
        .check(Check::AtLeast(0))
        .synonyms(&[same("log.roll.jitter.ms"), Synonym { name: "log.roll.jitter.hours", factor: HOURS }])
        .no_effect_yet(SEGMENTS),
    KeyDef::new("segment.ms", Long, "604800000", "Age at which a segment is closed even if it is not full.")
        .check(Check::AtLeast(1))
        .no_effect_yet(SEGMENTS)
        .synonyms(&[same("log.roll.ms"), Synonym { name: "log.roll.hours", factor: HOURS }]),
    KeyDef::new("unclean.leader.election.enable", Boolean, "false", "Whether a replica that is not in sync may lead when no other can, at the price of lost records.")
        .synonyms(&[same("unclean.leader.election.enable")]),
];
