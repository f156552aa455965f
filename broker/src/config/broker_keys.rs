//! The keys of a broker's configuration file.

use super::registry::KeyDef;
use super::value::Check::{self, AtLeast, Between, BetweenOrDefault, ListOf, NotEmpty, OneOf, Ratio};
use super::value::Kind::{Boolean, Double, Int, List, Long, Short, String};

const SEGMENTS: &str = "the record store does not work that way";
const SYNC: &str = "every acknowledged record is on disk already, see log.durability";
const LEVELS: &str = "each codec has a fixed level";
const CLEANER_IO: &str = "a compaction reads and writes in pieces of a fixed size";
const GROUPS: &str = "there is no group coordinator yet";
const TRANSACTIONS: &str = "there is no transaction coordinator yet";
const TIERS: &str = "there is no tiered storage";

const FOREVER: &str = "9223372036854775807";
const NO_LIMIT: &str = "2147483647";
const CODECS: Check = OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]);

/// Sorted by name.
pub(super) const BROKER_KEYS: &[KeyDef] = &[
    KeyDef::unset("advertised.listeners", List, "Addresses that clients are told to connect to, one for each listener; without it those of listeners."),
    KeyDef::new("auto.create.topics.enable", Boolean, "true", "Whether a topic comes to be when a client asks for its metadata and allows it."),
    KeyDef::new("auto.leader.rebalance.enable", Boolean, "true", "Whether the first assigned replica of a partition leads again by itself once it is in sync."),
    KeyDef::new("auto.replica.rebalance.enable", Boolean, "false", "Whether replicas and leaders are spread anew by themselves when brokers are further apart than replica.imbalance.percentage; a new broker is filled that way. On request that is done in any case."),
    KeyDef::new("broker.heartbeat.interval.ms", Int, "2000", "Time between two heartbeats to the controller.").check(AtLeast(1)),
    KeyDef::unset("broker.rack", String, "Rack or zone of this broker; replicas of a partition are spread over racks."),
    KeyDef::new("broker.session.timeout.ms", Int, "9000", "Silence after which the controller takes this broker out of service.").check(AtLeast(1)),
    KeyDef::unset("cluster.id", String, "Id of the cluster: a uuid in 22 characters of URL-safe base64. A volume of another cluster is refused.").check(NotEmpty),
    KeyDef::new("compression.gzip.level", Int, "-1", "Level used when the broker compresses with gzip.").check(BetweenOrDefault(1, 9)).dynamic().no_effect_yet(LEVELS),
    KeyDef::new("compression.lz4.level", Int, "9", "Level used when the broker compresses with lz4.").check(Between(1, 17)).dynamic().no_effect_yet(LEVELS),
    KeyDef::new("compression.type", String, "producer", "Codec that batches are stored with; producer keeps them as they came.").check(CODECS).dynamic(),
    KeyDef::new("compression.zstd.level", Int, "3", "Level used when the broker compresses with zstd.").check(Between(-131_072, 22)).dynamic().no_effect_yet(LEVELS),
    KeyDef::new("connections.max.idle.ms", Long, "600000", "Time after which a connection without traffic is closed; negative means never."),
    KeyDef::new("controlled.shutdown.enable", Boolean, "true", "Whether a broker that is asked to stop first hands its leaderships over."),
    KeyDef::unset("controller.quorum.bootstrap.servers", List, "Fleet listeners of brokers that can be asked for the metadata quorum, as host:port."),
    KeyDef::new("controller.quorum.fetch.timeout.ms", Int, "2000", "Silence of the metadata quorum's leader after which this broker, if it votes, calls an election; up to half as much again, at random. A leader whose process is gone is noticed at once.").check(Between(200, 600_000)),
    KeyDef::new("default.replication.factor", Short, "1", "Replicas of a topic whose creator left it open.").check(AtLeast(1)),
    KeyDef::new("delete.topic.enable", Boolean, "true", "Whether clients may delete topics."),
    KeyDef::new("fetch.max.bytes", Int, "57671680", "Most record bytes in the answer to one fetch, whatever the client asks for.").check(AtLeast(1024)),
    KeyDef::new("follower.replication.throttled.rate", Long, FOREVER, "Bytes per second in which this broker fills throttled replicas that are not in sync, together.").check(AtLeast(0)).dynamic(),
    KeyDef::new("group.consumer.assignors", List, "uniform,range", "Assignors of the consumer group protocol, the default one first.").no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.heartbeat.interval.ms", Int, "5000", "Heartbeat interval told to members of consumer groups.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.max.heartbeat.interval.ms", Int, "15000", "Largest heartbeat interval a group may ask for.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.max.session.timeout.ms", Int, "60000", "Largest session timeout a group may ask for.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.max.size", Int, NO_LIMIT, "Most members of one consumer group.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.migration.policy", String, "bidirectional", "Which ways groups may change between the classic and the consumer protocol.")
        .check(OneOf(&["disabled", "downgrade", "upgrade", "bidirectional"]))
        .no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.min.heartbeat.interval.ms", Int, "5000", "Smallest heartbeat interval a group may ask for.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.min.session.timeout.ms", Int, "45000", "Smallest session timeout a group may ask for.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.consumer.session.timeout.ms", Int, "45000", "Silence after which a member of a consumer group is removed.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.coordinator.rebalance.protocols", List, "classic,consumer,streams", "Group protocols that are spoken.")
        .check(ListOf(&["classic", "consumer", "share", "streams"]))
        .no_effect_yet(GROUPS),
    KeyDef::new("group.initial.rebalance.delay.ms", Int, "3000", "How long an empty classic group waits for more members before its first rebalance.").no_effect_yet(GROUPS),
    KeyDef::new("group.max.session.timeout.ms", Int, "1800000", "Largest session timeout of members of classic groups.").no_effect_yet(GROUPS),
    KeyDef::new("group.max.size", Int, NO_LIMIT, "Most members of one classic group.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("group.min.session.timeout.ms", Int, "6000", "Smallest session timeout of members of classic groups.").no_effect_yet(GROUPS),
    KeyDef::unset("health.listener", String, "Address, as host:port, of the plain HTTP server for probes and metrics; without it there is none."),
    KeyDef::new("inter.broker.listener.name", String, "FLEET", "Listener that brokers use among themselves.").check(NotEmpty),
    // Kafka: 300 s. A broker that was restarted is in sync after seconds, and until it leads again the others carry its
    // load; a look costs one pass over the partitions, and nothing is written when there is nothing to do.
    KeyDef::new("leader.imbalance.check.interval.seconds", Long, "10", "How often it is looked for partitions whose first assigned replica is in sync and does not lead; some hundreds of them get it back at a time.").check(Between(1, 86_400)),
    KeyDef::new("leader.replication.throttled.rate", Long, FOREVER, "Bytes per second that this broker sends to followers of throttled replicas that are not in sync, together.").check(AtLeast(0)).dynamic(),
    KeyDef::new("listener.security.protocol.map", List, "PLAINTEXT:PLAINTEXT,SSL:SSL", "How each listener is secured: NAME:PLAINTEXT or NAME:SSL."),
    KeyDef::unset("listeners", List, "Addresses to listen on, as NAME://host:port; an empty host means all of them.").check(NotEmpty),
    KeyDef::new("log.cleaner.backoff.ms", Long, "15000", "Rest of a compaction thread when no log is due, and of a log that has just been compacted.").check(AtLeast(0)),
    KeyDef::new("log.cleaner.dedupe.buffer.size", Long, "134217728", "Memory for the keys of the logs that are being compacted, over all threads; a log with more keys is gone through several times.").check(AtLeast(1)),
    KeyDef::new("log.cleaner.delete.retention.ms", Long, "86400000", "How long a tombstone stays readable in a compacted topic.").check(AtLeast(0)).dynamic(),
    KeyDef::new("log.cleaner.enable", Boolean, "true", "Whether logs are compacted whose policy says so."),
    KeyDef::new("log.cleaner.io.buffer.load.factor", Double, "0.9", "How full the memory for keys may become.").no_effect_yet(CLEANER_IO),
    KeyDef::new("log.cleaner.io.buffer.size", Int, "524288", "Memory for reads and writes of compactions, over all threads.").check(AtLeast(0)).no_effect_yet(CLEANER_IO),
    KeyDef::new("log.cleaner.io.max.bytes.per.second", Double, "1.7976931348623157E308", "Most bytes that compactions read and write in a second, over all threads."),
    KeyDef::new("log.cleaner.max.compaction.lag.ms", Long, FOREVER, "Longest time that a record may wait for compaction.").check(AtLeast(1)).dynamic(),
    KeyDef::new("log.cleaner.min.cleanable.ratio", Double, "0.5", "Share of a log that must be uncompacted before compaction starts.").check(Ratio).dynamic(),
    KeyDef::new("log.cleaner.min.compaction.lag.ms", Long, "0", "Time during which a record is left alone by compaction.").check(AtLeast(0)).dynamic(),
    KeyDef::new("log.cleaner.threads", Int, "1", "Logs that are compacted at a time.").check(Between(0, 64)),
    KeyDef::new("log.cleanup.policy", List, "delete", "How old records go: delete drops them by age and size, compact keeps the last record of each key, or both.").check(ListOf(&["compact", "delete"])).dynamic(),
    KeyDef::unset("log.dirs", List, "The data volume: exactly one directory.").check(NotEmpty),
    KeyDef::new("log.durability", String, "fsync", "When a record counts as stored: fsync once it is on the disk, written once the operating system has it, which a power failure can undo: about a second of it, and at most 40 MiB of all topics together.").check(OneOf(&["fsync", "written"])).dynamic(),
    KeyDef::new("log.flush.interval.messages", Long, FOREVER, "Records after which a log is synced to disk.").check(AtLeast(1)).dynamic().no_effect_yet(SYNC),
    KeyDef::unset("log.flush.interval.ms", Long, "Time after which a log is synced to disk.").dynamic().no_effect_yet(SYNC),
    KeyDef::new("log.flush.scheduler.interval.ms", Long, FOREVER, "How often it is checked whether a log needs a sync.").no_effect_yet(SYNC),
    KeyDef::new("log.index.interval.bytes", Int, "4096", "Bytes of log between two index entries.").check(AtLeast(0)).dynamic().no_effect_yet(SEGMENTS),
    KeyDef::new("log.index.size.max.bytes", Int, "10485760", "Size of a segment's index files.").check(AtLeast(4)).dynamic().no_effect_yet(SEGMENTS),
    KeyDef::unset("log.journal.segment.bytes", Long, "Size of the files of the record store, which all partitions share; no record batch can be larger. Without it a 256th of the volume, from 16 to 256 MiB. A change counts for files made after it.").check(Between(4_194_304, 1_073_741_824)),
    KeyDef::new("log.journal.tail.cache.bytes", Long, "100663296", "Most bytes of the newest records that are kept in memory, over all partitions and for ten seconds: consumers that are no farther behind are served without the disk.").check(Between(0, 1_099_511_627_776)),
    KeyDef::new("log.local.retention.bytes", Long, "-2", "Size of the part of a tiered log that stays on local disks.").check(AtLeast(-2)).dynamic().no_effect_yet(TIERS),
    KeyDef::new("log.local.retention.ms", Long, "-2", "Age of the part of a tiered log that stays on local disks.").check(AtLeast(-2)).dynamic().no_effect_yet(TIERS),
    KeyDef::new("log.message.timestamp.after.max.ms", Long, "3600000", "How far a record's timestamp may lie in the future.").check(AtLeast(0)).dynamic(),
    KeyDef::new("log.message.timestamp.before.max.ms", Long, FOREVER, "How far a record's timestamp may lie in the past.").check(AtLeast(0)).dynamic(),
    KeyDef::new("log.message.timestamp.type", String, "CreateTime", "Whose clock dates a record: CreateTime or LogAppendTime.").check(OneOf(&["CreateTime", "LogAppendTime"])).dynamic(),
    KeyDef::new("log.preallocate", Boolean, "false", "Whether files are allocated before they are filled.").dynamic().no_effect_yet(SEGMENTS),
    KeyDef::new("log.retention.bytes", Long, "-1", "Size of a partition above which its oldest records go; -1 means no limit.").dynamic(),
    KeyDef::new("log.retention.check.interval.ms", Long, "300000", "How often it is checked which records are due to go.").check(AtLeast(1)),
    KeyDef::new("log.retention.hours", Int, "168", "Age in hours at which records go, where neither minutes nor milliseconds are set."),
    KeyDef::unset("log.retention.minutes", Int, "Age in minutes at which records go, where milliseconds are not set."),
    KeyDef::unset("log.retention.ms", Long, "Age in milliseconds at which records go; -1 means never.").check(AtLeast(-1)).dynamic(),
    KeyDef::new("log.roll.hours", Int, "168", "Age in hours at which a segment is closed.").check(AtLeast(1)).no_effect_yet(SEGMENTS),
    KeyDef::new("log.roll.jitter.hours", Int, "0", "Random time in hours taken off the age at which a segment is closed.").check(AtLeast(0)).no_effect_yet(SEGMENTS),
    KeyDef::unset("log.roll.jitter.ms", Long, "Random time in milliseconds taken off the age at which a segment is closed.").check(AtLeast(0)).dynamic().no_effect_yet(SEGMENTS),
    KeyDef::unset("log.roll.ms", Long, "Age in milliseconds at which a segment is closed.").check(AtLeast(1)).dynamic().no_effect_yet(SEGMENTS),
    KeyDef::new("log.segment.bytes", Int, "1073741824", "Largest batch set of one produce request for a partition. The record store has segments of its own.").check(AtLeast(1_048_576)).dynamic(),
    KeyDef::new("log.segment.delete.delay.ms", Long, "60000", "Delay before the files of a deleted log are removed.").check(AtLeast(0)).dynamic().no_effect_yet(SEGMENTS),
    KeyDef::new("max.connections", Int, NO_LIMIT, "Most client connections at a time, over all listeners; a further one is closed.").check(AtLeast(0)),
    KeyDef::new("max.connections.per.ip", Int, NO_LIMIT, "Most client connections at a time from one address.").check(AtLeast(0)),
    KeyDef::new("max.request.partition.size.limit", Int, "2000", "Most partitions in the answer to one DescribeTopicPartitions.").check(AtLeast(1)),
    KeyDef::new("message.max.bytes", Int, "1048588", "Largest record batch that is accepted, as compressed by the producer.").check(AtLeast(0)).dynamic(),
    KeyDef::new("metadata.log.snapshot.interval.entries", Int, "5000", "Entries of the metadata log after which it is written as a snapshot and its beginning dropped.").check(Between(10, 10_000_000)),
    KeyDef::new("metadata.quorum.voter.replacement.delay.ms", Long, "300000", "How long a broker with a vote in the metadata quorum may be out of service before another broker gets its vote.").check(AtLeast(0)),
    KeyDef::new("metadata.quorum.voters.count", Int, "0", "Brokers that vote in the metadata quorum: 1, 3, 5 or 7; 0 means three, and five from five brokers on.").check(Between(0, 7)),
    KeyDef::new("min.insync.replicas", Int, "1", "In-sync replicas without which a write with acks=all is refused.").check(AtLeast(1)).dynamic(),
    KeyDef::unset("node.id", Int, "Broker id that this broker asks for; the metadata quorum grants it.").check(AtLeast(0)),
    KeyDef::new("num.partitions", Int, "1", "Partitions of a topic whose creator left it open.").check(AtLeast(1)),
    KeyDef::new("offset.metadata.max.bytes", Int, "4096", "Longest text that may be stored with a committed offset.").no_effect_yet(GROUPS),
    KeyDef::new("offsets.commit.timeout.ms", Int, "5000", "How long an offset commit may wait for replicas.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("offsets.retention.check.interval.ms", Long, "600000", "How often it is checked which committed offsets are due to go.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("offsets.retention.minutes", Int, "10080", "How long committed offsets outlive their group.").check(AtLeast(1)).no_effect_yet(GROUPS),
    KeyDef::new("offsets.topic.num.partitions", Int, "50", "Partitions of the topic of committed offsets.").check(AtLeast(1)),
    KeyDef::new("offsets.topic.replication.factor", Short, "3", "Replicas of the topic of committed offsets.").check(AtLeast(1)),
    KeyDef::new("offsets.topic.segment.bytes", Int, "104857600", "Segment size of the topic of committed offsets.").check(AtLeast(1_048_576)),
    KeyDef::new("producer.id.expiration.ms", Int, "86400000", "Idle time after which a producer's sequence numbers are forgotten.").check(AtLeast(1)),
    KeyDef::new("replica.fetch.response.max.bytes", Int, "10485760", "Most bytes that a follower fetches at once; a larger batch is fetched alone.").check(AtLeast(1)),
    KeyDef::new("replica.fetch.wait.max.ms", Int, "500", "How long a follower's fetch waits for new records.").check(AtLeast(1)),
    KeyDef::new("replica.imbalance.percentage", Int, "10", "How far the replicas, bytes and leaders of a broker may be off the mean before the balancer moves any.").check(Between(1, 100)),
    KeyDef::new("replica.lag.time.max.ms", Long, "30000", "How long a follower may lag before it leaves the in-sync replicas. The wait of followers' fetches must be shorter.").check(AtLeast(1)),
    KeyDef::new("replica.rebalance.moves.max", Int, "50", "Partitions that the balancer moves at a time.").check(AtLeast(1)),
    KeyDef::new("replica.rebalance.moves.per.broker.max", Int, "5", "Replicas that the balancer fills a broker with at a time.").check(AtLeast(1)),
    KeyDef::new("replica.rebalance.produce.p99.goal.ms", Int, "100", "Time within which brokers are to answer 99 of 100 produce requests while the balancer moves partitions; it slows down when one takes longer.").check(AtLeast(1)),
    KeyDef::new("replica.rebalance.rate.max", Long, "134217728", "Most bytes per second at which a leader fills the replicas that the balancer moves.").check(AtLeast(1)),
    KeyDef::new("replica.rebalance.rate.min", Long, "1048576", "Bytes per second at which a leader fills the replicas that the balancer moves even if clients wait longer than they should.").check(AtLeast(1)),
    KeyDef::new("replica.selector.class", String, "", "Which replica consumers read from: empty for the leader, org.apache.kafka.common.replica.RackAwareReplicaSelector for an in-sync one in their own rack.").check(OneOf(&["", "org.apache.kafka.common.replica.RackAwareReplicaSelector"])),
    KeyDef::new("request.timeout.ms", Int, "30000", "How long this broker waits for the controller's answer.").check(AtLeast(1)),
    KeyDef::new("socket.listen.backlog.size", Int, "50", "Connections that may wait to be accepted on a listener.").check(AtLeast(1)),
    KeyDef::new("socket.request.max.bytes", Int, "104857600", "Largest request; a connection that announces a larger one is closed.").check(AtLeast(1)),
    KeyDef::new("transaction.abort.timed.out.transaction.cleanup.interval.ms", Int, "10000", "How often it is checked which transactions took too long.").check(AtLeast(1)).no_effect_yet(TRANSACTIONS),
    KeyDef::new("transaction.max.timeout.ms", Int, "900000", "Longest transaction timeout that a producer may ask for.").check(AtLeast(1)).no_effect_yet(TRANSACTIONS),
    KeyDef::new("transaction.partition.verification.enable", Boolean, "true", "Whether it is checked that a partition belongs to the producer's transaction.").no_effect_yet(TRANSACTIONS),
    KeyDef::new("transaction.remove.expired.transaction.cleanup.interval.ms", Int, "3600000", "How often it is checked which transactional ids are due to go.").check(AtLeast(1)).no_effect_yet(TRANSACTIONS),
    KeyDef::new("transaction.state.log.min.isr", Int, "2", "min.insync.replicas of the transaction topic.").check(AtLeast(1)),
    KeyDef::new("transaction.state.log.num.partitions", Int, "50", "Partitions of the transaction topic.").check(AtLeast(1)),
    KeyDef::new("transaction.state.log.replication.factor", Short, "3", "Replicas of the transaction topic.").check(AtLeast(1)),
    KeyDef::new("transaction.state.log.segment.bytes", Int, "104857600", "Segment size of the transaction topic.").check(AtLeast(1_048_576)),
    KeyDef::new("transactional.id.expiration.ms", Int, "604800000", "Idle time after which a transactional id is forgotten.").check(AtLeast(1)).no_effect_yet(TRANSACTIONS),
    KeyDef::new("unclean.leader.election.enable", Boolean, "false", "Whether a replica that is not in sync may lead when no other can, at the price of lost records.").dynamic(),
];

/// Keys of Apache Kafka that have no counterpart here, and why.
pub(super) const REFUSED_KEYS: &[(&str, &str)] = &[
    ("authorizer.class.name", "there is no authorization yet, and no Java to load a class with"),
    ("broker.id", "use node.id"),
    (
        "controller.listener.names",
        "every broker takes part in the metadata quorum over inter.broker.listener.name",
    ),
    (
        "controller.quorum.voters",
        "use controller.quorum.bootstrap.servers; who votes is recorded in the quorum itself",
    ),
    (
        "leader.imbalance.per.broker.percentage",
        "preferred leaders come back whatever their share, see auto.leader.rebalance.enable",
    ),
    ("log.dir", "use log.dirs, with one directory"),
    ("metadata.log.dir", "metadata lives on the data volume, see log.dirs"),
    ("num.io.threads", "threads follow the number of processors"),
    ("num.network.threads", "threads follow the number of processors"),
    ("num.recovery.threads.per.data.dir", "threads follow the number of processors"),
    ("num.replica.fetchers", "threads follow the number of processors"),
    ("process.roles", "every broker takes part in the metadata quorum; remove it"),
    (
        "security.inter.broker.protocol",
        "set inter.broker.listener.name, and its protocol in listener.security.protocol.map",
    ),
    ("zookeeper.connect", "there is no ZooKeeper; brokers keep the metadata themselves"),
];
