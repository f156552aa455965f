//! Topics that brokers keep for themselves.

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::FindCoordinatorRequest;
use tempfile::TempDir;

use crate::java::tool;
use crate::support::{Broker, ask, until};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

#[test]
fn the_topic_of_a_coordinator_comes_to_be_when_it_is_first_asked_for() {
    let directory = TempDir::new().unwrap();
    let broker = Broker::dev_with(directory.path(), &["offsets.topic.num.partitions=5"]);
    let server = ["--bootstrap-server", &broker.address];
    assert_eq!(tool(TOPICS, &[&server[..], &["--list"]].concat(), "").trim(), "");
    for (key_type, topic, partitions) in [(0, "__consumer_offsets", 5), (1, "__transaction_state", 50)] {
        let coordinator_keys = vec!["key".into()];
        let request = FindCoordinatorRequest { key_type, coordinator_keys, ..Default::default() };
        let answer = ask(&broker.address, 4, &request);
        let error = answer.coordinators[0].error_code;
        assert_eq!(error, ErrorCode::CoordinatorNotAvailable.code(), "clients ask again");
        let described = until("the topic", || {
            let topics = tool(TOPICS, &[&server[..], &["--list"]].concat(), "");
            let describe = ["--describe", "--topic", topic];
            topics
                .lines()
                .any(|line| line == topic)
                .then(|| tool(TOPICS, &[&server[..], &describe].concat(), ""))
        });
        assert!(
            described.contains(&format!("PartitionCount: {partitions}\tReplicationFactor: 1\t")),
            "{described}"
        );
        assert!(described.contains("cleanup.policy=compact"), "{described}");
        assert!(described.contains("segment.bytes=104857600"), "{described}");
    }
    let without = ["--list", "--exclude-internal"];
    assert_eq!(tool(TOPICS, &[&server[..], &without].concat(), "").trim(), "", "they are known as internal");
}
