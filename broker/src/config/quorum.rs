//! Settings of the metadata quorum.

use std::time::Duration;

/// How the metadata quorum works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumConfig {
    /// `metadata.quorum.voters.count`; `None` follows the number of brokers.
    pub voters: Option<usize>,
    /// `metadata.quorum.voter.replacement.delay.ms`.
    pub voter_replacement_delay: Duration,
    /// `controller.quorum.fetch.timeout.ms`: shortest silence of the leader before an election.
    pub fetch_timeout: Duration,
    /// `metadata.log.snapshot.interval.entries`.
    pub snapshot_interval: u64,
}

impl QuorumConfig {
    /// From numbers that have passed the registry's checks; the message says what is wrong with them.
    pub(super) fn new(
        voters: usize,
        voter_replacement_delay: Duration,
        fetch_timeout: Duration,
        snapshot_interval: u64,
    ) -> Result<Self, String> {
        if voters != 0 && voters.is_multiple_of(2) {
            return Err(format!(
                "{voters} is even; such a quorum survives no more than one of {}",
                voters - 1
            ));
        }
        let voters = (voters != 0).then_some(voters);
        Ok(Self { voters, voter_replacement_delay, fetch_timeout, snapshot_interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_voters_is_odd_or_left_open() {
        let voters =
            |count| QuorumConfig::new(count, Duration::ZERO, Duration::ZERO, 1).map(|quorum| quorum.voters);
        assert_eq!(voters(0), Ok(None));
        assert_eq!(voters(5), Ok(Some(5)));
        assert!(voters(4).is_err());
    }
}
