//! Topics that brokers keep for themselves (Kafka's internal topics), and what they are made with.

use millrace_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};

use crate::config::{InternalTopicConfig, InternalTopicsConfig};

/// Committed offsets of consumer groups.
const OFFSETS: &str = "__consumer_offsets";

/// States of transactional producers.
const TRANSACTIONS: &str = "__transaction_state";

/// States of share groups.
const SHARE_GROUPS: &str = "__share_group_state";

/// Topics that the broker itself writes, and clients may not (P12).
pub(super) fn is_internal(name: &str) -> bool {
    matches!(name, OFFSETS | TRANSACTIONS | SHARE_GROUPS)
}

/// The topic in which coordinators of this type (`key_type` of FindCoordinator) keep their state.
pub(super) fn of_coordinator(key_type: i8) -> Option<&'static str> {
    match key_type {
        0 => Some(OFFSETS),
        1 => Some(TRANSACTIONS),
        _ => None,
    }
}

/// A topic that comes to be because a client needs it. Everything is left to the defaults of the cluster, except for
/// internal topics: those are compacted, and have as many partitions and replicas as their own settings say.
pub(super) fn new_topic(name: &str, config: &InternalTopicsConfig) -> CreatableTopic {
    match name {
        OFFSETS => internal(name, &config.offsets, &[("compression.type", "producer".to_owned())]),
        TRANSACTIONS => internal(
            name,
            &config.transactions,
            &[
                ("compression.type", "uncompressed".to_owned()),
                ("min.insync.replicas", config.transactions_min_isr.to_string()),
                ("unclean.leader.election.enable", "false".to_owned()),
            ],
        ),
        _ => CreatableTopic {
            name: name.into(),
            num_partitions: -1,
            replication_factor: -1,
            ..Default::default()
        },
    }
}

fn internal(name: &str, config: &InternalTopicConfig, others: &[(&str, String)]) -> CreatableTopic {
    let own = [("cleanup.policy", "compact".to_owned()), ("segment.bytes", config.segment_bytes.to_string())];
    let configs = own.iter().chain(others).map(|(name, value)| CreatableTopicConfig {
        name: (*name).into(),
        value: Some(value.as_str().into()),
        ..Default::default()
    });
    CreatableTopic {
        name: name.into(),
        num_partitions: config.partitions,
        replication_factor: config.replication_factor,
        configs: configs.collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerConfig;

    fn made(name: &str) -> (i32, i16, Vec<(String, String)>) {
        let settings = [
            "offsets.topic.num.partitions=7",
            "offsets.topic.replication.factor=2",
            "offsets.topic.segment.bytes=2000000",
            "transaction.state.log.num.partitions=8",
            "transaction.state.log.replication.factor=4",
            "transaction.state.log.segment.bytes=3000000",
            "transaction.state.log.min.isr=3",
        ];
        let settings = settings.map(str::to_owned);
        let config = BrokerConfig::dev_with(std::path::Path::new("/nowhere"), 0, &settings).expect("valid");
        let topic = new_topic(name, &config.internal_topics);
        let value = |it: &CreatableTopicConfig| it.value.as_ref().map(|value| value.as_str().to_owned());
        let configs =
            topic.configs.iter().map(|it| (it.name.as_str().to_owned(), value(it).unwrap_or_default()));
        let mut configs: Vec<_> = configs.collect();
        configs.sort();
        (topic.num_partitions, topic.replication_factor, configs)
    }

    fn owned<const N: usize>(configs: [(&str, &str); N]) -> Vec<(String, String)> {
        configs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn internal_topics_are_made_with_settings_of_their_own_and_others_with_the_clusters() {
        let offsets = owned([
            ("cleanup.policy", "compact"),
            ("compression.type", "producer"),
            ("segment.bytes", "2000000"),
        ]);
        assert_eq!(made(OFFSETS), (7, 2, offsets));
        let transactions = owned([
            ("cleanup.policy", "compact"),
            ("compression.type", "uncompressed"),
            ("min.insync.replicas", "3"),
            ("segment.bytes", "3000000"),
            ("unclean.leader.election.enable", "false"),
        ]);
        assert_eq!(made(TRANSACTIONS), (8, 4, transactions));
        assert_eq!(made("orders"), (-1, -1, Vec::new()));
    }

    #[test]
    fn coordinators_of_groups_and_transactions_have_a_topic_each() {
        assert_eq!([0, 1, 2].map(of_coordinator), [Some(OFFSETS), Some(TRANSACTIONS), None]);
        assert!([OFFSETS, TRANSACTIONS, SHARE_GROUPS].into_iter().all(is_internal));
        assert!(!is_internal("orders"));
    }
}
