//! Consumers that read from a replica in their own rack (KIP-392).

use crate::java::tool;
use crate::kcat::kcat;
use crate::support::{Fleet, FleetPlan, until};

const RECORDS: usize = 2_000;
/// Of all records together, bytes: more than everything else that the brokers say.
const PAYLOAD: u64 = 2_000_000;

const FETCHES: &str = r#"requests_total{api="Fetch"}"#;
const SENT: &str = r#"sent_bytes_total{listener="CLIENT"}"#;

#[test]
fn a_consumer_in_the_rack_of_a_follower_reads_everything_there() {
    let settings = vec!["replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector"];
    let racks = vec!["a", "b", "c"];
    let fleet = Fleet::start_as(FleetPlan { settings, racks, ..FleetPlan::of(3) });
    // To begin with, everyone speaks to the leader.
    let leader = fleet.address(0);
    let server = ["--bootstrap-server", &leader];
    let create = ["--create", "--topic", "near", "--replica-assignment", "0:1:2"];
    tool("org.apache.kafka.tools.TopicCommand", &[&server[..], &create].concat(), "");
    fleet.wait_until_known("near");
    let records: Vec<String> = (0..RECORDS).map(|number| format!("{number} {}", "x".repeat(1_000))).collect();
    kcat(&leader, &["-t", "near", "-P", "-X", "acks=all"], &(records.join("\n") + "\n"));
    until("the leader of rack a", || {
        kcat(&leader, &["-L", "-t", "near"], "").contains("leader 0").then_some(())
    });

    let with_java = |rack: &str| {
        let consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer";
        let (count, rack) = (RECORDS.to_string(), format!("client.rack={rack}"));
        let from = ["--topic", "near", "--partition", "0", "--offset", "earliest", "--max-messages", &count];
        let more = ["--command-property", &rack];
        tool(consumer, &[&server[..], &from, &more].concat(), "")
    };
    let with_librdkafka = |rack: &str| {
        kcat(&leader, &["-t", "near", "-C", "-e", "-q", "-X", &format!("client.rack={rack}")], "")
    };
    let told = || [0, 1, 2].map(|number| (fleet.metric(number, FETCHES), fleet.metric(number, SENT)));
    let is_read_at = |server: usize, rack: &str, read: &dyn Fn(&str) -> String| {
        let before = told();
        let read = read(rack);
        assert_eq!(read.lines().collect::<Vec<_>>(), records, "rack {rack}");
        let after = told();
        for (number, (before, after)) in before.iter().zip(&after).enumerate() {
            let (fetches, sent) = (after.0 - before.0, after.1 - before.1);
            let serves = fetches > 0 && sent > PAYLOAD;
            assert_eq!(serves, number == server, "rack {rack}, broker {number}: {fetches} fetches, {sent} B");
        }
    };
    is_read_at(0, "a", &with_java);
    is_read_at(1, "b", &with_java);
    is_read_at(2, "c", &with_librdkafka);
    is_read_at(0, "of nobody", &with_librdkafka);
}
