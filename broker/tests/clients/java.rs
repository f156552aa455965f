//! Apache Kafka's own command-line tools.

use std::process::Command;

use tempfile::TempDir;

use crate::run::{from_make, succeed};
use crate::support::{Broker, Fleet, FleetPlan, until};

/// One of the tools, which gets two minutes.
pub(crate) fn java(class: &str) -> Command {
    let libraries = format!("{}/*", from_make("MILLRACE_KAFKA_LIBS"));
    let mut command = Command::new("timeout");
    command.args(["120", "java", "-XX:TieredStopAtLevel=1", "-cp", &libraries, class]);
    command
}

pub(crate) fn tool(class: &str, arguments: &[&str], input: &str) -> String {
    succeed(java(class).args(arguments), input)
}

/// What a tool says, on both of its outputs; an error if it fails.
pub(crate) fn outcome(class: &str, arguments: &[&str]) -> Result<String, String> {
    let output = java(class).args(arguments).output().expect("java can be run");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(said) } else { Err(said) }
}

fn round_trip(bootstrap: &str, replicas: &str) {
    let topics = "org.apache.kafka.tools.TopicCommand";
    let server = ["--bootstrap-server", bootstrap];
    let with =
        |more: &[&str]| [&server[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let run = |class: &str, more: &[&str], input: &str| {
        let arguments = with(more);
        tool(class, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), input)
    };
    run(topics, &["--create", "--topic", "tools", "--partitions", "3", "--replication-factor", replicas], "");
    let described = run(topics, &["--describe", "--topic", "tools"], "");
    assert!(described.contains("PartitionCount: 3"), "{described}");
    run(topics, &["--alter", "--topic", "tools", "--partitions", "4"], "");
    assert!(run(topics, &["--list"], "").lines().any(|line| line == "tools"));

    let lines: String = (0..1000).map(|number| format!("line-{number}\n")).collect();
    let producer = "org.apache.kafka.tools.ConsoleProducer";
    run(producer, &["--topic", "tools", "--command-property", "acks=all"], &lines);
    let offsets = run("org.apache.kafka.tools.GetOffsetShell", &["--topic", "tools"], "");
    let total: i64 = offsets.lines().filter_map(|line| line.rsplit(':').next()?.parse::<i64>().ok()).sum();
    assert_eq!(total, 1000, "{offsets}");
    let mut read = 0;
    for line in offsets.lines() {
        let mut parts = line.rsplit(':');
        let count: usize = parts.next().unwrap().parse().unwrap();
        let partition = parts.next().unwrap();
        if count > 0 {
            let consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer";
            let (count_text, from) = (count.to_string(), ["--offset", "earliest", "--partition", partition]);
            let arguments = [&["--topic", "tools", "--max-messages", &count_text][..], &from].concat();
            let out = run(consumer, &arguments, "");
            read += out.lines().filter(|line| line.starts_with("line-")).count();
        }
    }
    assert_eq!(read, 1000);

    let alter = [
        "--entity-type",
        "topics",
        "--entity-name",
        "tools",
        "--alter",
        "--add-config",
        "retention.ms=60000",
    ];
    run("kafka.admin.ConfigCommand", &alter, "");
    let describe = ["--entity-type", "topics", "--entity-name", "tools", "--describe"];
    let described = run("kafka.admin.ConfigCommand", &describe, "");
    assert!(described.contains("retention.ms=60000"), "{described}");
    let versions = run("org.apache.kafka.tools.BrokerApiVersionsCommand", &[], "");
    assert!(versions.contains("Produce(0): 0 to 13"), "{versions}");
    run(topics, &["--delete", "--topic", "tools"], "");
    assert!(!run(topics, &["--list"], "").lines().any(|line| line == "tools"));
}

#[test]
fn console_tools_work_on_one_broker() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    round_trip(&broker.address, "1");
}

#[test]
fn console_tools_work_on_three_brokers() {
    let fleet = Fleet::start(3);
    round_trip(&fleet.bootstrap_servers(), "1");
}

#[test]
fn the_performance_producer_writes_with_every_codec() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let arguments = [
            "--topic",
            codec,
            "--num-records",
            "20000",
            "--record-size",
            "100",
            "--throughput",
            "-1",
            "--bootstrap-server",
            &broker.address,
            "--command-property",
            &format!("compression.type={codec}"),
        ];
        let summary = tool("org.apache.kafka.tools.ProducerPerformance", &arguments, "");
        assert!(summary.contains("20000 records sent"), "{summary}");
    }
}

#[test]
fn the_quorum_tool_shows_who_votes_and_how_far_everyone_is() {
    let fleet = Fleet::start_as(FleetPlan { first_voters: 3, ..FleetPlan::of(4) });
    let bootstrap = fleet.bootstrap_servers();
    let class = "org.apache.kafka.tools.MetadataQuorumCommand";
    let describe = |what: &str| tool(class, &["--bootstrap-server", &bootstrap, "describe", what], "");
    let status = describe("--status");
    let value = |key: &str| -> String {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().to_owned()
    };
    let leader: usize = value("LeaderId").parse().unwrap();
    let view = fleet.cluster(0).unwrap();
    assert_eq!(view["controllerId"], leader);
    assert!(value("HighWatermark").parse::<i64>().unwrap() > 4, "{status}");
    let entries = |key: &str| value(key).matches("\"id\"").count();
    assert_eq!((entries("CurrentVoters"), entries("CurrentObservers")), (3, 1), "{status}");

    let replication = describe("--replication");
    let roles: Vec<&str> =
        replication.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
    let count = |role: &str| roles.iter().filter(|other| **other == role).count();
    assert_eq!((count("Leader"), count("Follower"), count("Observer")), (1, 2, 1), "{replication}");
}

#[test]
fn the_leader_election_tool_elects_on_request() {
    let fleet_plan = FleetPlan {
        first_voters: 3,
        settings: vec!["auto.leader.rebalance.enable=false", "metadata.quorum.voters.count=3"],
        ..FleetPlan::of(5)
    };
    let mut fleet = Fleet::start_as(fleet_plan);
    let address = fleet.address(0);
    let topics = |more: &[&str]| {
        let arguments = [&["--bootstrap-server", &address][..], more].concat();
        tool("org.apache.kafka.tools.TopicCommand", &arguments, "")
    };
    topics(&["--create", "--topic", "elect", "--replica-assignment", "3:4,4:0"]);
    let leader_is = |partition: &str, leader: &str| {
        until("the leader to be the one that is expected", || {
            let described = topics(&["--describe", "--topic", "elect"]);
            let line = described.lines().find(|line| line.contains(&format!("Partition: {partition}")))?;
            line.contains(&format!("Leader: {leader}")).then_some(())
        });
    };
    let elect = |more: &[&str]| -> Result<String, String> {
        let class = "org.apache.kafka.tools.LeaderElectionCommand";
        outcome(class, &[&["--bootstrap-server", &address][..], more].concat())
    };
    let of_type = |election: &'static str, partition: &'static str| {
        elect(&["--election-type", election, "--topic", "elect", "--partition", partition])
    };
    let elected = elect(&["--election-type", "PREFERRED", "--all-topic-partitions"]);
    assert!(elected.is_ok(), "{elected:?}");
    let elected = of_type("PREFERRED", "0").unwrap();
    assert!(elected.contains("Valid replica already elected"), "{elected}");

    fleet.kill(4);
    leader_is("1", "0");
    let refused = of_type("PREFERRED", "1").unwrap_err();
    assert!(refused.contains("PreferredLeaderNotAvailableException"), "{refused}");
    // Broker 3 is in sync alone when it is killed, so nobody leads before somebody says that records may be lost.
    fleet.kill(3);
    leader_is("0", "none");
    let refused = of_type("UNCLEAN", "0").unwrap_err();
    assert!(refused.contains("EligibleLeadersNotAvailableException"), "{refused}");
    fleet.restart(4);
    fleet.wait_until_in_service();
    leader_is("0", "none");
    let elected = of_type("UNCLEAN", "0").unwrap();
    assert!(elected.contains("Successfully completed leader election (UNCLEAN)"), "{elected}");
    leader_is("0", "4");
}

const REASSIGN: &str = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";

#[test]
fn the_reassignment_tool_moves_throttles_verifies_and_cancels() {
    let fleet = Fleet::start(3);
    let bootstrap = fleet.bootstrap_servers();
    let server = ["--bootstrap-server", &bootstrap];
    let topics =
        |more: &[&str]| tool("org.apache.kafka.tools.TopicCommand", &[&server[..], more].concat(), "");
    topics(&["--create", "--topic", "moves", "--replica-assignment", "0:1,1:2"]);
    let lines: String = (0..1000).map(|number| format!("line-{number}\n")).collect();
    let producer = "org.apache.kafka.tools.ConsoleProducer";
    tool(producer, &[&server[..], &["--topic", "moves", "--command-property", "acks=all"]].concat(), &lines);

    let directory = TempDir::new().unwrap();
    let file = |name: &str, replicas: [&str; 2]| {
        let path = directory.path().join(name);
        let [first, second] = replicas;
        let json = format!(
            r#"{{"version":1,"partitions":[{{"topic":"moves","partition":0,"replicas":{first}}},
               {{"topic":"moves","partition":1,"replicas":{second}}}]}}"#
        );
        std::fs::write(&path, json).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let reassign = |more: &[&str]| outcome(REASSIGN, &[&server[..], more].concat());
    let throttles = || {
        let configs = "kafka.admin.ConfigCommand";
        let of = |kind, name| {
            let arguments = ["--entity-type", kind, "--entity-name", name, "--describe"];
            tool(configs, &[&server[..], &arguments].concat(), "")
        };
        (
            of("brokers", "0").contains("replication.throttled.rate"),
            of("topics", "moves").contains("throttled"),
        )
    };

    // Another number of replicas in one, other brokers in both.
    let there = file("there.json", ["[2,1]", "[0]"]);
    let started =
        reassign(&["--reassignment-json-file", &there, "--execute", "--throttle", "10000000"]).unwrap();
    assert!(
        started.contains("Successfully started partition reassignments for moves-0,moves-1"),
        "{started}"
    );
    assert_eq!(throttles(), (true, true));
    let verified = until("the reassignments to be complete", || {
        let said =
            reassign(&["--reassignment-json-file", &there, "--verify", "--preserve-throttles"]).unwrap();
        (said.matches("is completed").count() == 2).then_some(said)
    });
    assert!(!verified.contains("still in progress"), "{verified}");
    let verified = reassign(&["--reassignment-json-file", &there, "--verify"]).unwrap();
    assert!(verified.contains("Clearing broker-level throttles"), "{verified}");
    assert_eq!(throttles(), (false, false));
    let described = topics(&["--describe", "--topic", "moves"]);
    assert!(described.contains("Replicas: 2,1") && described.contains("Replicas: 0\t"), "{described}");

    // Nothing gets through, so that there is something to cancel.
    let back = file("back.json", ["[0,1]", "[1,2]"]);
    reassign(&["--reassignment-json-file", &back, "--execute", "--throttle", "0"]).unwrap();
    let listed = reassign(&["--list"]).unwrap();
    assert!(listed.contains("moves-0: replicas: 0,1,2. adding: 0. removing: 2."), "{listed}");
    assert!(listed.contains("moves-1: replicas: 1,2,0. adding: 1,2. removing: 0."), "{listed}");
    let refused = reassign(&["--reassignment-json-file", &back, "--execute"]).unwrap_err();
    assert!(refused.contains("there is an existing partition assignment"), "{refused}");
    let cancelled = reassign(&["--reassignment-json-file", &back, "--cancel"]).unwrap();
    assert!(
        cancelled.contains("Successfully cancelled partition reassignments for: moves-0,moves-1"),
        "{cancelled}"
    );
    assert!(reassign(&["--list"]).unwrap().contains("No partition reassignments found"));
    assert_eq!(throttles(), (false, false));
    let described = topics(&["--describe", "--topic", "moves"]);
    assert!(described.contains("Replicas: 1,2") && described.contains("Replicas: 0\t"), "{described}");

    let offsets =
        tool("org.apache.kafka.tools.GetOffsetShell", &[&server[..], &["--topic", "moves"]].concat(), "");
    let total: i64 = offsets.lines().filter_map(|line| line.rsplit(':').next()?.parse::<i64>().ok()).sum();
    assert_eq!(total, 1000, "{offsets}");
}
