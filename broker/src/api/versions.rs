//! Which requests are served, in which versions: the one table.
//!
//! The versions are those of Apache Kafka 4.3 (its answer to ApiVersions without `unstable.api.versions.enable`).

use std::ops::RangeInclusive;

use millrace_protocol::ApiKey;
use millrace_protocol::messages::api_versions_response::ApiVersion;

/// The requests that clients can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SupportedApi {
    /// Key 0.
    Produce,
    /// Key 1.
    Fetch,
    /// Key 2.
    ListOffsets,
    /// Key 3.
    Metadata,
    /// Key 10.
    FindCoordinator,
    /// Key 18.
    ApiVersions,
    /// Key 19.
    CreateTopics,
    /// Key 20.
    DeleteTopics,
    /// Key 21.
    DeleteRecords,
    /// Key 22.
    InitProducerId,
    /// Key 23.
    OffsetForLeaderEpoch,
    /// Key 32.
    DescribeConfigs,
    /// Key 35.
    DescribeLogDirs,
    /// Key 37.
    CreatePartitions,
    /// Key 43.
    ElectLeaders,
    /// Key 44.
    IncrementalAlterConfigs,
    /// Key 45.
    AlterPartitionReassignments,
    /// Key 46.
    ListPartitionReassignments,
    /// Key 55.
    DescribeQuorum,
    /// Key 60.
    DescribeCluster,
    /// Key 75.
    DescribeTopicPartitions,
}

/// A row of the table.
#[derive(Debug)]
pub struct ServedApi {
    /// Which request.
    pub api: SupportedApi,
    /// Its key on the wire.
    pub key: ApiKey,
    /// Versions that clients are told.
    advertised: (i16, i16),
    /// First version that is in fact taken, where that differs.
    accepted_from: i16,
}

const fn served(api: SupportedApi, key: ApiKey, min: i16, max: i16) -> ServedApi {
    ServedApi { api, key, advertised: (min, max), accepted_from: min }
}

/// Every request that is served, by key.
pub const SERVED: &[ServedApi] = &[
    // Told from 0 and taken from 3: librdkafka derives what a broker can do from the range it is told (KAFKA-18659).
    ServedApi { api: SupportedApi::Produce, key: ApiKey::Produce, advertised: (0, 13), accepted_from: 3 },
    served(SupportedApi::Fetch, ApiKey::Fetch, 4, 18),
    served(SupportedApi::ListOffsets, ApiKey::ListOffsets, 1, 11),
    served(SupportedApi::Metadata, ApiKey::Metadata, 0, 13),
    served(SupportedApi::FindCoordinator, ApiKey::FindCoordinator, 0, 6),
    served(SupportedApi::ApiVersions, ApiKey::ApiVersions, 0, 4),
    served(SupportedApi::CreateTopics, ApiKey::CreateTopics, 2, 7),
    served(SupportedApi::DeleteTopics, ApiKey::DeleteTopics, 1, 6),
    served(SupportedApi::DeleteRecords, ApiKey::DeleteRecords, 0, 2),
    // Version 6 is unstable in Kafka 4.3.
    served(SupportedApi::InitProducerId, ApiKey::InitProducerId, 0, 5),
    served(SupportedApi::OffsetForLeaderEpoch, ApiKey::OffsetForLeaderEpoch, 2, 4),
    served(SupportedApi::DescribeConfigs, ApiKey::DescribeConfigs, 1, 4),
    served(SupportedApi::DescribeLogDirs, ApiKey::DescribeLogDirs, 1, 5),
    served(SupportedApi::CreatePartitions, ApiKey::CreatePartitions, 0, 3),
    served(SupportedApi::ElectLeaders, ApiKey::ElectLeaders, 0, 2),
    served(SupportedApi::IncrementalAlterConfigs, ApiKey::IncrementalAlterConfigs, 0, 1),
    served(SupportedApi::AlterPartitionReassignments, ApiKey::AlterPartitionReassignments, 0, 1),
    served(SupportedApi::ListPartitionReassignments, ApiKey::ListPartitionReassignments, 0, 0),
    served(SupportedApi::DescribeQuorum, ApiKey::DescribeQuorum, 0, 2),
    served(SupportedApi::DescribeCluster, ApiKey::DescribeCluster, 0, 2),
    served(SupportedApi::DescribeTopicPartitions, ApiKey::DescribeTopicPartitions, 0, 0),
];

impl ServedApi {
    /// Row of `key`; `None` if it is not served.
    pub fn of(key: ApiKey) -> Option<&'static Self> {
        SERVED.iter().find(|served| served.key == key)
    }

    /// Versions that are taken.
    pub fn accepted(&self) -> RangeInclusive<i16> {
        self.accepted_from..=self.advertised.1
    }

    /// The row as clients are told it.
    pub fn advertisement(&self) -> ApiVersion {
        ApiVersion {
            api_key: self.key.code(),
            min_version: self.advertised.0,
            max_version: self.advertised.1,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_key_and_the_codec_has_every_accepted_version() {
        assert!(SERVED.is_sorted_by(|a, b| a.key.code() < b.key.code()));
        for served in SERVED {
            let codec = served.key.versions();
            assert!(codec.contains(served.accepted().start()), "{}", served.key.name());
            assert!(codec.contains(served.accepted().end()), "{}", served.key.name());
        }
    }

    #[test]
    fn produce_is_advertised_from_0_and_accepted_from_3() {
        let produce = ServedApi::of(ApiKey::Produce).expect("served");
        assert_eq!(produce.advertisement().min_version, 0);
        assert_eq!(produce.accepted(), 3..=13);
    }

    #[test]
    fn unstable_versions_are_not_advertised() {
        for served in SERVED.iter().filter(|served| served.key.latest_version_unstable()) {
            assert!(served.accepted().end() < served.key.versions().end(), "{}", served.key.name());
        }
    }
}
