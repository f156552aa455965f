//! Operations that a client may carry out, as bits by operation code (KIP-430).
//!
//! Without an authorizer everybody may do everything, and Kafka answers with all operations that a resource has.

/// What Kafka answers where the request did not ask.
pub(super) const NOT_ASKED: i32 = i32::MIN;

/// Read, write, create, delete, alter, describe, describe configs, alter configs.
pub(super) const ALL_ON_TOPIC: i32 = bits(&[3, 4, 5, 6, 7, 8, 10, 11]);

/// Create, alter, describe, cluster action, describe configs, alter configs, idempotent write.
pub(super) const ALL_ON_CLUSTER: i32 = bits(&[5, 7, 8, 9, 10, 11, 12]);

const fn bits(operations: &[u8]) -> i32 {
    let mut bits = 0;
    let mut at = 0;
    while at < operations.len() {
        bits |= 1 << operations[at];
        at += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_the_numbers_that_kafka_sends_without_an_authorizer() {
        assert_eq!(ALL_ON_TOPIC, 3576);
        assert_eq!(ALL_ON_CLUSTER, 8096);
    }
}
