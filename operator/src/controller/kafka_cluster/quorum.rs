//! Forms the metadata quorum, exactly once in the life of a cluster.
//!
//! [`next_step`] is a pure state machine over what the status records and what the brokers say. The order of writes is
//! what makes it safe: first the voters are recorded, then one broker is asked, then `formed` is recorded. A crash in
//! between repeats a step with the same voters, which the brokers answer with success.
//!
//! Invariant: once the quorum is formed, or any broker belongs to one, no broker is ever asked again. As a broker that
//! does not answer may belong to one, all that could are heard before.

use std::collections::BTreeSet;

use millrace_crds::QuorumStatus;
use millrace_management::{BootstrapQuorum, Identity, Voter};

use crate::build::Names;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The quorum is formed; nothing is left to do, ever.
    Formed,
    /// Record these pods as the first voters.
    RecordVoters(Vec<String>),
    /// Record that the quorum is formed.
    RecordFormed,
    /// Ask the broker with this ordinal to form the quorum.
    Bootstrap {
        /// Who is asked.
        ordinal: i32,
        /// With what.
        request: BootstrapQuorum,
    },
    /// Wait for this.
    Wait(String),
    /// A broker's volume belongs to another cluster.
    ForeignVolume {
        /// Its pod.
        pod: String,
        /// The cluster that its volume belongs to.
        cluster_id: String,
    },
}

/// What is known when the next step is decided.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Names of the pods.
    pub names: &'a Names,
    /// The cluster's id.
    pub cluster_id: &'a str,
    /// What the status records.
    pub recorded: Option<&'a QuorumStatus>,
    /// How many voters the first quorum gets.
    pub initial_voters: i32,
    /// Brokers whose volume is older than the KafkaCluster.
    pub adopted_ordinals: &'a BTreeSet<i32>,
    /// What each broker says about itself, by ordinal; `None` where it did not answer.
    pub identities: &'a [Option<Identity>],
}

/// Decides the next step.
pub fn next_step(situation: Situation<'_>) -> Step {
    let Situation { names, cluster_id, recorded, initial_voters, adopted_ordinals, identities } = situation;
    if recorded.is_some_and(|quorum| quorum.formed) {
        return Step::Formed;
    }
    let recorded_voters = recorded.map(|quorum| quorum.initial_voters.as_slice()).unwrap_or_default();
    if recorded_voters.is_empty() {
        return Step::RecordVoters((0..initial_voters).map(|ordinal| names.pod(ordinal)).collect());
    }
    let heard = || (0..).zip(identities).filter_map(|(n, identity)| Some((n, identity.as_ref()?)));
    if let Some((ordinal, foreign)) = heard().find(|(_, identity)| identity.cluster_id != cluster_id) {
        return Step::ForeignVolume { pod: names.pod(ordinal), cluster_id: foreign.cluster_id.clone() };
    }
    if heard().any(|(_, identity)| identity.member_of_quorum) {
        return Step::RecordFormed;
    }
    let voters: Vec<i32> = recorded_voters.iter().filter_map(|pod| names.pod_ordinal(pod)).collect();
    let must_answer: BTreeSet<i32> = voters.iter().chain(adopted_ordinals).copied().collect();
    let identity = |ordinal: i32| identities.get(usize::try_from(ordinal).ok()?)?.as_ref();
    let silent: Vec<_> =
        must_answer.iter().filter(|n| identity(**n).is_none()).map(|n| names.pod(*n)).collect();
    if !silent.is_empty() {
        return Step::Wait(format!("the metadata quorum is formed once {} answer", silent.join(", ")));
    }
    let request = BootstrapQuorum {
        cluster_id: cluster_id.to_owned(),
        voters: voters
            .iter()
            .filter_map(|n| identity(*n))
            .map(|identity| Voter {
                raft_node_id: identity.raft_node_id.clone(),
                address: identity.address.clone(),
            })
            .collect(),
    };
    match voters.first() {
        Some(ordinal) => Step::Bootstrap { ordinal: *ordinal, request },
        None => Step::Wait("status.quorum.initialVoters names no pod of this cluster".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(ordinal: i32) -> Identity {
        Identity {
            cluster_id: "id".into(),
            volume_uuid: format!("v{ordinal}"),
            raft_node_id: format!("{}", 100 + ordinal),
            broker_id: None,
            address: format!("broker-{ordinal}:9093"),
            version: "0.1.0".into(),
            member_of_quorum: false,
        }
    }

    fn recorded(formed: bool) -> QuorumStatus {
        let voters = (0..3).map(|n| format!("demo-broker-{n}")).collect();
        QuorumStatus { initial_voters: voters, formed }
    }

    fn step(recorded: Option<&QuorumStatus>, adopted: &[i32], identities: &[Option<Identity>]) -> Step {
        next_step(Situation {
            names: &Names::new("ns", "demo"),
            cluster_id: "id",
            recorded,
            initial_voters: 3,
            adopted_ordinals: &adopted.iter().copied().collect(),
            identities,
        })
    }

    fn all(count: i32) -> Vec<Option<Identity>> {
        (0..count).map(|n| Some(identity(n))).collect()
    }

    #[test]
    fn voters_are_recorded_before_anyone_is_asked() {
        let voters = recorded(false).initial_voters;
        assert_eq!(step(None, &[], &all(3)), Step::RecordVoters(voters.clone()));
        assert_eq!(step(Some(&QuorumStatus::default()), &[], &all(3)), Step::RecordVoters(voters));
    }

    #[test]
    fn one_voter_is_asked_with_all_voters_once_all_of_them_answer() {
        let Step::Bootstrap { ordinal, request } = step(Some(&recorded(false)), &[], &all(5)) else {
            panic!("expected a bootstrap")
        };
        assert_eq!(ordinal, 0);
        assert_eq!(request.cluster_id, "id");
        let ids: Vec<_> = request.voters.iter().map(|voter| voter.raft_node_id.as_str()).collect();
        assert_eq!(ids, ["100", "101", "102"]);
    }

    #[test]
    fn a_silent_voter_is_waited_for_by_name_and_a_silent_learner_is_not() {
        let mut identities = all(5);
        identities[4] = None;
        assert!(matches!(step(Some(&recorded(false)), &[], &identities), Step::Bootstrap { .. }));
        identities[1] = None;
        let Step::Wait(blocker) = step(Some(&recorded(false)), &[], &identities) else {
            panic!("expected to wait")
        };
        assert!(blocker.contains("demo-broker-1"), "{blocker}");
    }

    #[test]
    fn once_formed_nobody_is_asked_whatever_the_brokers_say() {
        assert_eq!(step(Some(&recorded(true)), &[], &all(3)), Step::Formed);
        assert_eq!(step(Some(&recorded(true)), &[], &[None, None, None]), Step::Formed);
    }

    #[test]
    fn a_broker_that_belongs_to_a_quorum_means_that_it_is_formed() {
        let mut identities = all(3);
        if let Some(identity) = &mut identities[2] {
            identity.member_of_quorum = true;
        }
        assert_eq!(step(Some(&recorded(false)), &[], &identities), Step::RecordFormed);
    }

    #[test]
    fn every_adopted_volume_is_heard_first_as_it_may_hold_a_quorum() {
        let mut identities = all(5);
        identities[4] = None;
        let Step::Wait(blocker) = step(Some(&recorded(false)), &[3, 4], &identities) else {
            panic!("expected to wait")
        };
        assert!(blocker.contains("demo-broker-4"), "{blocker}");
    }

    #[test]
    fn a_volume_of_another_cluster_stops_it() {
        let mut identities = all(3);
        if let Some(identity) = &mut identities[1] {
            identity.cluster_id = "other".into();
        }
        assert_eq!(
            step(Some(&recorded(false)), &[], &identities),
            Step::ForeignVolume { pod: "demo-broker-1".into(), cluster_id: "other".into() }
        );
    }
}
