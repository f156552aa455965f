//! Error codes in answers, for metrics.

use millrace_protocol::messages::{
    AlterPartitionReassignmentsResponse, ApiVersionsResponse, CreatePartitionsResponse, CreateTopicsResponse,
    DeleteRecordsResponse, DeleteTopicsResponse, DescribeClusterResponse, DescribeConfigsResponse,
    DescribeLogDirsResponse, DescribeQuorumResponse, DescribeTopicPartitionsResponse, ElectLeadersResponse,
    FetchResponse, FindCoordinatorResponse, IncrementalAlterConfigsResponse, InitProducerIdResponse,
    ListOffsetsResponse, ListPartitionReassignmentsResponse, MetadataResponse, OffsetForLeaderEpochResponse,
    ProduceResponse,
};

/// An answer that can say which errors it holds.
pub(super) trait ErrorCodes {
    /// Calls `visit` with each code, 0 included.
    fn error_codes(&self, visit: &mut dyn FnMut(i16));
}

macro_rules! top_level {
    ($($response:ty),*) => {$(
        impl ErrorCodes for $response {
            fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
                visit(self.error_code);
            }
        }
    )*};
}

macro_rules! one_level {
    ($($response:ty: $list:ident),*) => {$(
        impl ErrorCodes for $response {
            fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
                self.$list.iter().for_each(|part| visit(part.error_code));
            }
        }
    )*};
}

macro_rules! two_levels {
    ($($response:ty: $list:ident.$inner:ident),*) => {$(
        impl ErrorCodes for $response {
            fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
                self.$list.iter().flat_map(|part| &part.$inner).for_each(|part| visit(part.error_code));
            }
        }
    )*};
}

top_level!(
    ApiVersionsResponse,
    DescribeClusterResponse,
    InitProducerIdResponse,
    ListPartitionReassignmentsResponse
);
one_level!(
    CreateTopicsResponse: topics,
    DeleteTopicsResponse: responses,
    CreatePartitionsResponse: results,
    DescribeConfigsResponse: results,
    IncrementalAlterConfigsResponse: responses,
    DescribeTopicPartitionsResponse: topics,
    MetadataResponse: topics
);
two_levels!(
    ProduceResponse: responses.partition_responses,
    ListOffsetsResponse: topics.partitions,
    OffsetForLeaderEpochResponse: topics.partitions,
    DeleteRecordsResponse: topics.partitions
);

impl ErrorCodes for FetchResponse {
    fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
        visit(self.error_code);
        self.responses.iter().flat_map(|topic| &topic.partitions).for_each(|part| visit(part.error_code));
    }
}

impl ErrorCodes for DescribeLogDirsResponse {
    fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
        visit(self.error_code);
        self.results.iter().for_each(|result| visit(result.error_code));
    }
}

impl ErrorCodes for DescribeQuorumResponse {
    fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
        visit(self.error_code);
        self.topics.iter().flat_map(|topic| &topic.partitions).for_each(|part| visit(part.error_code));
    }
}

impl ErrorCodes for ElectLeadersResponse {
    fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
        visit(self.error_code);
        let results = self.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
        results.for_each(|part| visit(part.error_code));
    }
}

impl ErrorCodes for AlterPartitionReassignmentsResponse {
    fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
        visit(self.error_code);
        self.responses.iter().flat_map(|topic| &topic.partitions).for_each(|part| visit(part.error_code));
    }
}

impl ErrorCodes for FindCoordinatorResponse {
    fn error_codes(&self, visit: &mut dyn FnMut(i16)) {
        visit(self.error_code);
        self.coordinators.iter().for_each(|part| visit(part.error_code));
    }
}
