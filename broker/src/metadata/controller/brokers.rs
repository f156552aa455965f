//! Registration, fencing, racks and planned stops of brokers.

use millrace_management::{ApiError, code};
use uuid::Uuid;

use super::Settings;
use super::draft::Draft;
use super::elections::{Memory, reelect_partitions_of};
use super::requests::ControllerResponse;
use crate::metadata::image::{BrokerId, BrokerImage, Endpoint, NO_LEADER, RetiredNode};
use crate::metadata::records::{Record, Registration};

/// A broker says that it has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterBroker {
    /// Id granted earlier and stored on the volume, else the one from the configuration, else any.
    pub wanted_id: Option<BrokerId>,
    /// Uuid of its data volume.
    pub volume_uuid: Uuid,
    /// Raft node id derived from the volume.
    pub raft_node_id: u64,
    /// `host:port` of its internal listener.
    pub address: String,
    /// Client listeners.
    pub endpoints: Vec<Endpoint>,
    /// Rack, if the configuration says one.
    pub rack: Option<String>,
    /// Version of its binary.
    pub version: String,
    /// `min.insync.replicas` of its configuration file.
    pub min_insync_replicas: i32,
    /// Whether its machine has gone down, at any time since the last registration, before everything that the broker had
    /// written was synced. Records that it acknowledged as `written` may be gone then (`log.durability`).
    pub lost_unsynced: bool,
}

/// Answer to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Granted id, to be stored on the volume.
    pub broker_id: BrokerId,
}

/// Registers a broker, fenced until its first heartbeat says that it has caught up.
///
/// A volume keeps its id for ever. An id whose volume was lost goes to the new volume once the old broker is fenced;
/// partitions that lived on the lost volume only stay offline, as starting them empty would hide the loss. Partitions
/// that others hold are filled again on the new one.
pub(super) fn register(
    draft: &mut Draft,
    request: &RegisterBroker,
    settings: &dyn Settings,
) -> ControllerResponse {
    let broker_id = match grant_id(draft, request) {
        Ok(broker_id) => broker_id,
        Err(refusal) => return ControllerResponse::Refused(refusal),
    };
    let former =
        draft.image().brokers.get(&broker_id).map(|former| (former.raft_node_id, former.volume_uuid));
    if let Some((raft_node_id, volume_uuid)) = former
        && raft_node_id != request.raft_node_id
    {
        let retired = RetiredNode { broker_id, volume_uuid };
        draft.push(Record::RetiredNode { raft_node_id, retired });
    }
    draft.push(Record::RegisterBroker(Registration {
        broker_id,
        volume_uuid: request.volume_uuid,
        raft_node_id: request.raft_node_id,
        address: request.address.clone(),
        endpoints: request.endpoints.clone(),
        rack: request.rack.clone(),
        version: request.version.clone(),
        min_insync_replicas: request.min_insync_replicas,
    }));
    let memory = if request.lost_unsynced { Memory::LostUnsynced } else { Memory::Intact };
    reelect_partitions_of(draft, broker_id, memory, settings);
    ControllerResponse::Registered(Registered { broker_id })
}

fn grant_id(draft: &Draft, request: &RegisterBroker) -> Result<BrokerId, ApiError> {
    let image = draft.image();
    if let Some(retired) = image.retired_nodes.get(&request.raft_node_id) {
        return Err(refused(format!(
            "volume {} was given up as lost when broker {} came up on another one; this broker needs an empty volume",
            retired.volume_uuid, retired.broker_id
        )));
    }
    let holder = image.brokers.values().find(|broker| broker.volume_uuid == request.volume_uuid);
    match (holder, request.wanted_id) {
        (Some(holder), Some(wanted)) if holder.broker_id != wanted => Err(refused(format!(
            "volume {} belongs to broker {}, but the configuration asks for node.id={wanted}; give the volume back to \
             that broker, or take node.id out of the configuration",
            request.volume_uuid, holder.broker_id
        ))),
        (Some(holder), _) => Ok(holder.broker_id),
        (None, Some(wanted)) => match image.brokers.get(&wanted) {
            Some(other) if !other.fenced => Err(refused(format!(
                "broker id {wanted} is in use by the live broker at {} (volume {}); choose another node.id, or stop \
                 that broker first",
                other.address, other.volume_uuid
            ))),
            _ if wanted < 0 => Err(refused(format!("node.id={wanted} is negative"))),
            _ => Ok(wanted),
        },
        (None, None) => Ok(image.next_broker_id),
    }
}

/// Takes a broker out of service or into it, and moves leadership accordingly.
pub(super) fn set_fenced(
    draft: &mut Draft,
    broker_id: BrokerId,
    broker_epoch: i64,
    fenced: bool,
    settings: &dyn Settings,
) -> ControllerResponse {
    let Some(broker) = registered(draft, broker_id, broker_epoch) else { return stale(broker_id) };
    // A fenced broker is through with its stop; coming back into service ends it too.
    let changed = BrokerImage { fenced, in_controlled_shutdown: false, ..broker.clone() };
    if changed != broker {
        draft.push(Record::Broker(changed));
        reelect_partitions_of(draft, broker_id, Memory::Intact, settings);
    }
    ControllerResponse::Done
}

/// Moves leadership away from a broker that is about to stop.
pub(super) fn controlled_shutdown(
    draft: &mut Draft,
    broker_id: BrokerId,
    broker_epoch: i64,
    settings: &dyn Settings,
) -> ControllerResponse {
    let Some(broker) = registered(draft, broker_id, broker_epoch) else { return stale(broker_id) };
    if !broker.in_controlled_shutdown {
        draft.push(Record::Broker(BrokerImage { in_controlled_shutdown: true, ..broker }));
        reelect_partitions_of(draft, broker_id, Memory::Intact, settings);
    }
    let led = draft.image().topics.values().flat_map(|topic| &topic.partitions);
    let partitions = led.filter(|partition| partition.leader == broker_id && broker_id != NO_LEADER).count();
    ControllerResponse::StillLeading { partitions: u64::try_from(partitions).unwrap_or(u64::MAX) }
}

/// Records where a broker runs. Existing partitions stay where they are.
pub(super) fn set_rack(draft: &mut Draft, broker_id: BrokerId, rack: Option<&str>) -> ControllerResponse {
    let Some(broker) = draft.image().brokers.get(&broker_id).map(|broker| broker.as_ref().clone()) else {
        return ControllerResponse::Refused(ApiError {
            code: code::BROKER_NOT_FOUND.to_owned(),
            message: format!("there is no broker {broker_id}"),
        });
    };
    if broker.rack.as_deref() != rack {
        draft.push(Record::Broker(BrokerImage { rack: rack.map(str::to_owned), ..broker }));
    }
    ControllerResponse::Done
}

fn registered(draft: &Draft, broker_id: BrokerId, broker_epoch: i64) -> Option<BrokerImage> {
    let broker = draft.image().brokers.get(&broker_id)?;
    (broker.broker_epoch == broker_epoch).then(|| broker.as_ref().clone())
}

fn stale(broker_id: BrokerId) -> ControllerResponse {
    refused_response(format!("broker {broker_id} has registered anew, or not at all"))
}

fn refused_response(message: String) -> ControllerResponse {
    ControllerResponse::Refused(refused(message))
}

fn refused(message: String) -> ApiError {
    ApiError { code: code::REGISTRATION_REFUSED.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{self, TestSettings, add_topic, broker, change_first, image, volume_of};
    use super::super::{ControllerRequest, Decision};
    use super::*;
    use crate::metadata::image::MetadataImage;

    fn registration(broker_id: BrokerId, volume_uuid: Uuid) -> RegisterBroker {
        RegisterBroker {
            wanted_id: Some(broker_id),
            volume_uuid,
            raft_node_id: 77,
            address: "new:9093".to_owned(),
            endpoints: Vec::new(),
            rack: None,
            version: "0.2.0".to_owned(),
            min_insync_replicas: 1,
            lost_unsynced: false,
        }
    }

    fn run(
        image: &MetadataImage,
        request: ControllerRequest,
        settings: &TestSettings,
    ) -> (MetadataImage, Decision) {
        fixtures::run(image, &request, settings)
    }

    fn leader_of_first(image: &MetadataImage, topic_id: Uuid) -> (BrokerId, i32, Vec<BrokerId>) {
        let state = &image.topics[&topic_id].partitions[0];
        (state.leader, state.leader_epoch, state.isr.clone())
    }

    #[test]
    fn a_broker_that_asks_for_no_id_gets_one_that_was_never_granted() {
        let image = image([broker(0), broker(4)]);
        let request = RegisterBroker { wanted_id: None, ..registration(0, Uuid::from_u128(9)) };
        let (next, decision) =
            run(&image, ControllerRequest::RegisterBroker(request), &TestSettings::default());
        assert_eq!(decision.response, ControllerResponse::Registered(Registered { broker_id: 5 }));
        assert_eq!(next.next_broker_id, 6);
        assert!(next.brokers[&5].fenced);
    }

    #[test]
    fn a_live_brokers_id_is_not_given_to_another_volume() {
        let image = image([broker(0)]);
        let request = ControllerRequest::RegisterBroker(registration(0, Uuid::from_u128(9)));
        let (next, decision) = run(&image, request, &TestSettings::default());
        assert!(
            matches!(&decision.response, ControllerResponse::Refused(error) if error.message.contains("in use"))
        );
        assert_eq!(next.brokers, image.brokers);
    }

    #[test]
    fn a_node_whose_broker_comes_up_on_another_volume_is_retired_for_good() {
        let image = image([broker(0).fenced(), broker(1)]);
        let old_node = image.brokers[&0].raft_node_id;
        let anew = ControllerRequest::RegisterBroker(registration(0, Uuid::from_u128(9)));
        let (next, _) = run(&image, anew.clone(), &TestSettings::default());
        let retired = RetiredNode { broker_id: 0, volume_uuid: volume_of(0) };
        assert_eq!(next.retired_nodes.get(&old_node), Some(&retired));
        let (again, _) = run(&next, anew, &TestSettings::default());
        assert_eq!(again.retired_nodes.len(), 1, "the new node stays what it is");

        let back = RegisterBroker { raft_node_id: old_node, ..registration(0, volume_of(0)) };
        let (after, decision) = run(&next, ControllerRequest::RegisterBroker(back), &TestSettings::default());
        assert!(
            matches!(&decision.response, ControllerResponse::Refused(error) if error.message.contains("given up as lost"))
        );
        assert_eq!(after.brokers, next.brokers);
    }

    #[test]
    fn a_volume_keeps_its_id_whatever_the_configuration_says() {
        let image = image([broker(0), broker(1)]);
        let request = ControllerRequest::RegisterBroker(registration(1, volume_of(0)));
        let (_, decision) = run(&image, request, &TestSettings::default());
        assert!(
            matches!(&decision.response, ControllerResponse::Refused(error) if error.message.contains("belongs to broker 0"))
        );
    }

    #[test]
    fn partitions_of_a_lost_volume_stay_offline() {
        let mut image = image([broker(0).fenced(), broker(1)]);
        let topic_id = add_topic(&mut image, "t", &[vec![0]]);
        let settings = TestSettings::default();
        let (next, _) =
            run(&image, ControllerRequest::RegisterBroker(registration(0, Uuid::from_u128(9))), &settings);
        let epoch = next.brokers[&0].broker_epoch;
        let unfence = ControllerRequest::SetFenced { broker_id: 0, broker_epoch: epoch, fenced: false };
        let (next, _) = run(&next, unfence, &settings);
        assert_eq!(leader_of_first(&next, topic_id), (NO_LEADER, 1, vec![0]));
    }

    #[test]
    fn a_machine_that_went_down_takes_its_broker_out_of_sync_where_acknowledged_is_not_synced() {
        let mut image = image([broker(0), broker(1)]);
        let topic_id = add_topic(&mut image, "t", &[vec![0, 1], vec![1, 0], vec![1]]);
        change_first(&mut image, topic_id, |state| state.isr = vec![0, 1]);
        let back = |lost_unsynced| {
            let request =
                RegisterBroker { raft_node_id: 0x1001, lost_unsynced, ..registration(1, volume_of(1)) };
            ControllerRequest::RegisterBroker(request)
        };
        let minimum = |settings: TestSettings, lost| {
            let mut image = image.clone();
            let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("it is there");
            topic.config.insert("min.insync.replicas".to_owned(), "2".to_owned());
            let (next, _) = run(&image, back(lost), &settings);
            let states = next.topics[&topic_id].partitions.clone();
            states.into_iter().map(|state| (state.isr, state.elr)).collect::<Vec<_>>()
        };
        let kept = vec![(vec![0], vec![1]), (vec![1], vec![]), (vec![1], vec![])];
        let written = TestSettings { written: true, ..TestSettings::default() };
        assert_eq!(minimum(TestSettings::default(), true), kept, "synced before it was acknowledged");
        assert_eq!(minimum(written, false), kept, "nothing was lost");
        let written = TestSettings { written: true, ..TestSettings::default() };
        let lost = vec![(vec![0], vec![]), (vec![1], vec![]), (vec![1], vec![])];
        assert_eq!(minimum(written, true), lost, "the last one in sync stays");
    }

    #[test]
    fn a_registration_rewrites_only_partitions_that_change() {
        let mut image = image([broker(0).fenced(), broker(1)]);
        let topic_id = add_topic(&mut image, "t", &[vec![1, 0], vec![1], vec![0]]);
        change_first(&mut image, topic_id, |state| state.isr = vec![1, 0]);
        let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
        topic.partitions[2].leader = NO_LEADER;
        let again = RegisterBroker { raft_node_id: 0x1000, ..registration(0, volume_of(0)) };
        let (next, decision) =
            run(&image, ControllerRequest::RegisterBroker(again.clone()), &TestSettings::default());
        assert_eq!(decision.records.len(), 2, "the registration, and the partition whose ISR it leaves");
        let (_, decision) = run(&next, ControllerRequest::RegisterBroker(again), &TestSettings::default());
        assert_eq!(decision.records.len(), 1);
    }

    #[test]
    fn unclean_election_by_setting_lets_a_new_volume_lead() {
        let mut image = image([broker(0).fenced(), broker(1)]);
        let topic_id = add_topic(&mut image, "t", &[vec![0]]);
        let settings = TestSettings { unclean: true, ..TestSettings::default() };
        let (next, _) =
            run(&image, ControllerRequest::RegisterBroker(registration(0, Uuid::from_u128(9))), &settings);
        let epoch = next.brokers[&0].broker_epoch;
        let unfence = ControllerRequest::SetFenced { broker_id: 0, broker_epoch: epoch, fenced: false };
        let (next, _) = run(&next, unfence, &settings);
        let (leader, _, isr) = leader_of_first(&next, topic_id);
        assert_eq!((leader, isr), (0, vec![0]));
        assert_eq!(next.topics[&topic_id].partitions[0].replicas[0].volume_uuid, Uuid::from_u128(9));
    }

    #[test]
    fn a_fenced_leader_is_followed_by_nobody_who_is_not_in_sync_and_leads_again_when_back() {
        let mut image = image([broker(0), broker(1)]);
        let topic_id = add_topic(&mut image, "t", &[vec![0, 1]]);
        let settings = TestSettings::default();
        let fence = |fenced| ControllerRequest::SetFenced { broker_id: 0, broker_epoch: 1, fenced };
        let (next, _) = run(&image, fence(true), &settings);
        assert_eq!(leader_of_first(&next, topic_id), (NO_LEADER, 1, vec![0]));
        let (next, _) = run(&next, fence(false), &settings);
        assert_eq!(leader_of_first(&next, topic_id), (0, 2, vec![0]));
    }

    #[test]
    fn a_process_that_is_started_again_does_not_go_on_in_an_epoch_in_which_it_led() {
        let settings = TestSettings { unclean: true, ..TestSettings::default() };
        for settings in [TestSettings::default(), settings] {
            for (isr, elr, is_stopping) in [
                (vec![0], vec![], false),
                (vec![0], vec![], true),
                (vec![0, 1], vec![], false),
                (vec![0], vec![1], false),
                (vec![0, 1, 2], vec![], true),
            ] {
                let mut image = image([broker(0), broker(1), broker(2).fenced()]);
                let topic_id = add_topic(&mut image, "t", &[vec![0, 1, 2]]);
                change_first(&mut image, topic_id, |state| {
                    (state.isr, state.elr) = (isr.clone(), elr.clone())
                });
                if is_stopping {
                    let stopping =
                        image.brokers.get_mut(&0).map(std::sync::Arc::make_mut).expect("it is there");
                    stopping.in_controlled_shutdown = true;
                }
                // Nobody has noticed that it was gone.
                let again = RegisterBroker { raft_node_id: 0x1000, ..registration(0, volume_of(0)) };
                let (next, _) = run(&image, ControllerRequest::RegisterBroker(again), &settings);
                let (leader, leader_epoch, _) = leader_of_first(&next, topic_id);
                assert!(leader != 0 && leader_epoch == 1, "{isr:?} {elr:?}: {leader} in {leader_epoch}");
            }
        }
    }

    #[test]
    fn fencing_what_is_fenced_writes_nothing() {
        let image = image([broker(0).fenced()]);
        let request = ControllerRequest::SetFenced { broker_id: 0, broker_epoch: 1, fenced: true };
        let (_, decision) = run(&image, request, &TestSettings::default());
        assert_eq!(decision.records, Vec::new());
    }

    #[test]
    fn a_fence_meant_for_an_earlier_registration_is_ignored() {
        let image = image([broker(0)]);
        let request = ControllerRequest::SetFenced { broker_id: 0, broker_epoch: 0, fenced: true };
        let (next, decision) = run(&image, request, &TestSettings::default());
        assert!(matches!(decision.response, ControllerResponse::Refused(_)));
        assert!(!next.brokers[&0].fenced);
    }

    #[test]
    fn a_stopping_broker_leads_on_where_no_other_replica_can() {
        let mut image = image([broker(0), broker(1)]);
        let alone = add_topic(&mut image, "alone", &[vec![0]]);
        let request = ControllerRequest::ControlledShutdown { broker_id: 0, broker_epoch: 1 };
        let (next, decision) = run(&image, request, &TestSettings::default());
        assert_eq!(decision.response, ControllerResponse::StillLeading { partitions: 1 });
        assert_eq!(leader_of_first(&next, alone).0, 0);
        assert!(next.brokers[&0].in_controlled_shutdown);
    }

    #[test]
    fn setting_the_rack_that_is_set_writes_nothing() {
        let image = image([broker(0).rack("a")]);
        let request = |rack: &str| ControllerRequest::SetRack { broker_id: 0, rack: Some(rack.to_owned()) };
        assert_eq!(run(&image, request("a"), &TestSettings::default()).1.records, Vec::new());
        let (next, _) = run(&image, request("b"), &TestSettings::default());
        assert_eq!(next.brokers[&0].rack.as_deref(), Some("b"));
    }
}
