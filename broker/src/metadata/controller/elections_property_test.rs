//! Random histories of one partition, with a model of the data path: brokers that see the metadata late, leaders that
//! do not know yet that they were replaced, proposals under way, lost answers, lost volumes, changes of settings,
//! reassignments after which brokers delete their logs, leaders that lose what their followers have.
//!
//! Committed is what lies below the highest high watermark of any leader so far. Whatever happens, every replica that the
//! controller may elect cleanly holds all of it, durably; and logs that have a record of the same epoch at the same offset
//! are the same up to there.

mod events;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use millrace_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use millrace_protocol::messages::{AlterPartitionReassignmentsRequest, IncrementalAlterConfigsRequest};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use events::{Event, Loss, event};

use super::fixtures::{TestSettings, add_topic, broker, counting_uuids, image, volume_of};
use super::{
    ControllerRequest, ControllerResponse, IsrChange, RegisterBroker, decide, preferred_leaders_to_elect,
};
use crate::metadata::image::{BrokerId, MetadataImage, PartitionImage, TopicIdPartition};

const BROKERS: BrokerId = 4;
/// Replicas at the beginning, on the first brokers.
const REPLICAS: BrokerId = 3;

/// A record: the epoch that it was appended in, and a number of its own.
type Record = (i32, u32);

/// A leader in one epoch, as it sees itself.
#[derive(Clone, Debug)]
struct Leading {
    leader_epoch: i32,
    epoch_start: usize,
    high_watermark: usize,
    /// How far each follower was at its last fetch, and the registration that it fetched with.
    ends: BTreeMap<BrokerId, (usize, i64)>,
    /// Proposed and neither known to be refused nor seen in the metadata.
    pending: Option<IsrChange>,
}

#[derive(Clone, Debug)]
struct Process {
    alive: bool,
    broker_epoch: i64,
    volume_uuid: Uuid,
    /// What the configuration file says.
    min_insync_replicas: i32,
    /// Position in the history of images.
    seen: usize,
    leading: Option<Leading>,
    /// Whether the machine went down, and the controller does not know.
    forgetful: bool,
}

struct World {
    settings: TestSettings,
    topic_id: Uuid,
    history: Vec<MetadataImage>,
    processes: Vec<Process>,
    /// By volume; one that was lost still shows what it held.
    logs: BTreeMap<Uuid, Vec<Record>>,
    /// How many records of a log are durable, by volume; none if it is not there.
    durable: BTreeMap<Uuid, usize>,
    committed: Vec<Record>,
    /// Volumes that may have lost acknowledged records, and the controller does not know.
    forgetful: BTreeSet<Uuid>,
    /// On their way to the controller, from the registrations that they name.
    proposals: BTreeMap<BrokerId, VecDeque<(i64, IsrChange)>>,
    next_record: u32,
    next_volume: u128,
    /// A history ends where a last replica in sync lost records: the setting allows that.
    over: bool,
    elections: usize,
    /// Reassignments that came to their end.
    completed: usize,
}

fn index(broker_id: BrokerId) -> usize {
    usize::try_from(broker_id).expect("ids are not negative")
}

impl World {
    fn new(written: bool) -> Self {
        // Their configuration files differ.
        let mut start = image([broker(0).with_min_insync_replicas(2), broker(1), broker(2), broker(3)]);
        let topic_id = add_topic(&mut start, "t", &[(0..REPLICAS).collect()]);
        let topic = start.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
        topic.partitions[0].isr = (0..REPLICAS).collect();
        let process = |broker_id| Process {
            alive: true,
            broker_epoch: 1,
            volume_uuid: volume_of(broker_id),
            min_insync_replicas: if broker_id == 0 { 2 } else { 1 },
            seen: 0,
            leading: None,
            forgetful: false,
        };
        let mut world = Self {
            settings: TestSettings { written, ..TestSettings::default() },
            topic_id,
            history: vec![start],
            processes: (0..BROKERS).map(process).collect(),
            logs: (0..BROKERS).map(|id| (volume_of(id), Vec::new())).collect(),
            durable: BTreeMap::new(),
            committed: Vec::new(),
            forgetful: BTreeSet::new(),
            proposals: BTreeMap::new(),
            next_record: 0,
            next_volume: 0x7000,
            over: false,
            elections: 0,
            completed: 0,
        };
        (0..BROKERS).for_each(|id| world.see(id, 0));
        world
    }

    fn now(&self) -> &MetadataImage {
        self.history.last().expect("there is always one")
    }

    fn state_in<'a>(&self, image: &'a MetadataImage) -> &'a PartitionImage {
        &image.topics[&self.topic_id].partitions[0]
    }

    fn seen_by(&self, broker_id: BrokerId) -> (&MetadataImage, &PartitionImage) {
        let image = &self.history[self.processes[index(broker_id)].seen];
        (image, self.state_in(image))
    }

    fn log(&self, broker_id: BrokerId) -> &Vec<Record> {
        &self.logs[&self.processes[index(broker_id)].volume_uuid]
    }

    fn log_mut(&mut self, broker_id: BrokerId) -> &mut Vec<Record> {
        let volume_uuid = self.processes[index(broker_id)].volume_uuid;
        self.logs.get_mut(&volume_uuid).expect("every volume has a log")
    }

    /// How many records of its log a broker has made durable.
    fn durable(&self, broker_id: BrokerId) -> usize {
        self.durable.get(&self.processes[index(broker_id)].volume_uuid).copied().unwrap_or(0)
    }

    fn sync(&mut self, broker_id: BrokerId) {
        let (volume_uuid, end) = (self.processes[index(broker_id)].volume_uuid, self.log(broker_id).len());
        self.durable.insert(volume_uuid, end);
    }

    /// A log is cut, durably.
    fn cut(&mut self, broker_id: BrokerId, records_kept: usize) {
        self.log_mut(broker_id).truncate(records_kept);
        let (end, volume_uuid) = (self.log(broker_id).len(), self.processes[index(broker_id)].volume_uuid);
        self.durable.entry(volume_uuid).and_modify(|durable| *durable = end.min(*durable));
    }

    /// Asks the controller, which is always up to date.
    fn ask(&mut self, request: &ControllerRequest) -> ControllerResponse {
        let decision = decide(self.now(), request, &self.settings, &mut counting_uuids());
        let bytes = request.encode().expect("requests can be sent");
        assert_eq!(&ControllerRequest::decode(bytes).expect("and read"), request);
        if !decision.records.is_empty() {
            let mut next = self.now().clone();
            next.log_index += 1;
            let log_index = next.log_index;
            for record in &decision.records {
                next.apply(record, log_index).expect("decisions fit the image");
            }
            let leaders = (self.state_in(self.now()).leader, self.state_in(&next).leader);
            self.elections += usize::from(leaders.0 != leaders.1);
            let asked = matches!(request, ControllerRequest::AlterPartitionReassignments(_));
            let (before, after) = (self.state_in(self.now()), self.state_in(&next));
            if !asked && before.is_reassigning() && !after.is_reassigning() {
                assert!(after.replica_ids().eq(before.target_ids()), "{before:?} to {after:?}");
                assert_eq!(after.isr.len(), after.replicas.len(), "{before:?} to {after:?}");
                self.completed += 1;
            }
            self.history.push(next);
        }
        decision.response
    }

    fn see(&mut self, broker_id: BrokerId, position: usize) {
        let position = position.min(self.history.len() - 1).max(self.processes[index(broker_id)].seen);
        let image = &self.history[position];
        let state = self.state_in(image);
        let (partition_epoch, leader_epoch) = (state.partition_epoch, state.leader_epoch);
        let process = &self.processes[index(broker_id)];
        let leads =
            state.leader == broker_id && image.brokers[&broker_id].broker_epoch == process.broker_epoch;
        let epoch_start = self.log(broker_id).len();
        let assigned = state.replica_ids().any(|id| id == broker_id);
        if !assigned {
            self.cut(broker_id, 0);
        }
        let process = &mut self.processes[index(broker_id)];
        process.seen = position;
        if !leads {
            process.leading = None;
        } else if process.leading.as_ref().is_none_or(|leading| leading.leader_epoch != leader_epoch) {
            process.leading = Some(Leading {
                leader_epoch,
                epoch_start,
                high_watermark: 0,
                ends: BTreeMap::new(),
                pending: None,
            });
        }
        if let Some(leading) = &mut process.leading {
            leading.pending.take_if(|pending| partition_epoch > pending.partition_epoch);
        }
    }

    fn fetch(&mut self, follower: BrokerId, records: usize) {
        let process = &self.processes[index(follower)];
        let (_, state) = self.seen_by(follower);
        let (leader, leader_epoch) = (state.leader, state.leader_epoch);
        let assigned = |state: &PartitionImage| state.replica_ids().any(|id| id == follower);
        if !process.alive || leader < 0 || leader == follower || !assigned(state) {
            return;
        }
        let source = &self.processes[index(leader)];
        let leads = source.leading.as_ref().is_some_and(|leading| leading.leader_epoch == leader_epoch);
        if !source.alive || !leads || !assigned(self.seen_by(leader).1) {
            return;
        }
        let broker_epoch = process.broker_epoch;
        let theirs = self.log(leader).clone();
        let own = self.log(follower);
        let common = own.iter().zip(&theirs).take_while(|(own, theirs)| own == theirs).count();
        // Else epochs could not tell where the two part.
        let of_one_epoch = own.iter().zip(&theirs).rposition(|(own, theirs)| own.0 == theirs.0);
        assert!(
            of_one_epoch.is_none_or(|last| last < common),
            "{own:?} parts from {theirs:?} within an epoch"
        );
        self.cut(follower, common);
        // It asks for more when it has made durable what it has, and is sent what the leader has not.
        self.sync(follower);
        self.log_mut(follower).extend(theirs.iter().skip(common).take(records));
        if let Some(leading) = &mut self.processes[index(leader)].leading {
            leading.ends.insert(follower, (common, broker_epoch));
        }
    }

    /// Rule L5.
    fn advance(&mut self, leader: BrokerId) {
        let process = &self.processes[index(leader)];
        let Some(leading) = process.leading.as_ref().filter(|_| process.alive) else { return };
        let (image, state) = self.seen_by(leader);
        let topic = &image.topics[&self.topic_id];
        let of_cluster = || image.broker_configs.get(&None).and_then(|c| c.get("min.insync.replicas"));
        let set = topic.config.get("min.insync.replicas").or_else(of_cluster);
        let minimum = set.map_or(process.min_insync_replicas, |value| value.parse().expect("a number"));
        let minimum = state.effective_min_in_sync(usize::try_from(minimum).expect("positive"));
        if state.isr.len() < minimum {
            return;
        }
        let pending = leading.pending.iter().flat_map(|pending| pending.isr.iter().map(|(id, _)| *id));
        let members: BTreeSet<BrokerId> = state.isr.iter().copied().chain(pending).collect();
        let end = |id: &BrokerId| match *id == leader {
            true => self.durable(leader),
            false => leading.ends.get(id).map_or(0, |(end, _)| *end),
        };
        let reached = members.iter().map(end).min().unwrap_or(0);
        if reached <= leading.high_watermark {
            return;
        }
        let prefix = self.log(leader)[..reached].to_vec();
        let both = reached.min(self.committed.len());
        assert_eq!(prefix[..both], self.committed[..both], "broker {leader} commits other records");
        if reached > self.committed.len() {
            self.committed = prefix;
        }
        if let Some(leading) = &mut self.processes[index(leader)].leading {
            leading.high_watermark = reached;
        }
    }

    /// Rule L7, one change in flight.
    fn propose(&mut self, leader: BrokerId, wanted: u8) {
        let process = &self.processes[index(leader)];
        let Some(leading) = process.leading.as_ref().filter(|l| process.alive && l.pending.is_none()) else {
            return;
        };
        let (image, state) = self.seen_by(leader);
        let member = |id: BrokerId| {
            if !state.replica_ids().any(|replica| replica == id) {
                return None;
            }
            if id == leader {
                return Some((id, process.broker_epoch));
            }
            if wanted & (1 << id) == 0 {
                return None;
            }
            if state.isr.contains(&id) {
                return Some((id, image.brokers[&id].broker_epoch));
            }
            let (end, broker_epoch) = *leading.ends.get(&id)?;
            let caught_up = end >= leading.high_watermark && end >= leading.epoch_start;
            caught_up.then_some((id, broker_epoch))
        };
        let isr: Vec<(BrokerId, i64)> = (0..BROKERS).filter_map(member).collect();
        let ids: BTreeSet<BrokerId> = isr.iter().map(|(id, _)| *id).collect();
        if ids == state.isr.iter().copied().collect() {
            return;
        }
        let change = IsrChange {
            partition: TopicIdPartition { topic_id: self.topic_id, partition: 0 },
            leader_epoch: leading.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr,
        };
        let broker_epoch = process.broker_epoch;
        self.proposals.entry(leader).or_default().push_back((broker_epoch, change.clone()));
        if let Some(leading) = &mut self.processes[index(leader)].leading {
            leading.pending = Some(change);
        }
    }

    /// The controller decides a proposal; without an answer the leader asks again.
    fn deliver(&mut self, leader: BrokerId, lose_answer: bool) {
        let queue = self.proposals.entry(leader).or_default();
        let Some((broker_epoch, change)) = queue.front().cloned() else { return };
        let changes = vec![change.clone()];
        let response =
            self.ask(&ControllerRequest::AlterPartitions { broker_id: leader, broker_epoch, changes });
        let ControllerResponse::PartitionsAltered(errors) = response else { panic!("{response:?}") };
        if lose_answer {
            return;
        }
        self.proposals.entry(leader).or_default().pop_front();
        // Any other error means that the metadata has moved on: the proposal counts until the leader sees that.
        if errors == [ErrorCode::IneligibleReplica]
            && let Some(leading) = &mut self.processes[index(leader)].leading
        {
            leading.pending.take_if(|pending| *pending == change);
        }
    }

    fn reassign(&mut self, target: Option<&Vec<BrokerId>>) {
        let before = self.state_in(self.now()).clone();
        let partition =
            ReassignablePartition { partition_index: 0, replicas: target.cloned(), ..Default::default() };
        let topic = ReassignableTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
        self.ask(&ControllerRequest::AlterPartitionReassignments(AlterPartitionReassignmentsRequest {
            topics: vec![topic],
            ..Default::default()
        }));
        let after = self.state_in(self.now());
        let Some(target) = target else {
            // Refused where only what was brought is in sync.
            assert!(!after.is_reassigning() || *after == before, "{before:?} to {after:?}");
            return;
        };
        assert!(after.target_ids().eq(target.iter().copied()), "{before:?} to {after:?}");
        if after.is_reassigning() {
            assert_eq!(before.original_ids().collect::<BTreeSet<_>>(), after.original_ids().collect());
            let members = |state: &PartitionImage| (state.leader, state.isr.clone(), state.elr.clone());
            assert_eq!(members(&before), members(after), "{before:?} to {after:?}");
        }
    }

    fn set_fenced(&mut self, broker_id: BrokerId, fenced: bool) {
        let process = &self.processes[index(broker_id)];
        let broker_epoch = self.now().brokers[&broker_id].broker_epoch;
        if fenced || (process.alive && process.broker_epoch == broker_epoch) {
            self.ask(&ControllerRequest::SetFenced { broker_id, broker_epoch, fenced });
        }
    }

    fn crash(&mut self, broker_id: BrokerId, loss: Loss) {
        // What was queued is lost with the process.
        self.cut(broker_id, self.durable(broker_id));
        let process = &mut self.processes[index(broker_id)];
        (process.alive, process.leading) = (false, None);
        match loss {
            Loss::Nothing => {}
            Loss::Volume => {
                self.next_volume += 1;
                let volume_uuid = Uuid::from_u128(self.next_volume);
                (process.volume_uuid, process.forgetful) = (volume_uuid, false);
                self.logs.insert(volume_uuid, Vec::new());
            }
            Loss::Unsynced(records_kept) => {
                process.forgetful = true;
                // With fsync nothing that was acknowledged depends on what was not synced.
                if self.settings.written {
                    self.forgetful.insert(process.volume_uuid);
                    self.cut(broker_id, records_kept);
                }
            }
        }
    }

    fn start(&mut self, broker_id: BrokerId, min_insync_replicas: i32) {
        let process = &self.processes[index(broker_id)];
        if process.alive {
            return;
        }
        let (volume_uuid, lost_unsynced) = (process.volume_uuid, process.forgetful);
        let before = self.state_in(self.now()).clone();
        let response = self.ask(&ControllerRequest::RegisterBroker(RegisterBroker {
            wanted_id: Some(broker_id),
            volume_uuid,
            raft_node_id: volume_uuid.as_u64_pair().1,
            address: "a:1".to_owned(),
            endpoints: Vec::new(),
            rack: None,
            version: String::new(),
            min_insync_replicas,
            lost_unsynced,
        }));
        if !matches!(response, ControllerResponse::Registered(_)) {
            return;
        }
        self.forgetful.remove(&volume_uuid);
        let broker_epoch = self.now().brokers[&broker_id].broker_epoch;
        let position = self.history.len() - 1;
        let process = &mut self.processes[index(broker_id)];
        process.alive = true;
        process.forgetful = false;
        process.broker_epoch = broker_epoch;
        process.min_insync_replicas = min_insync_replicas;
        self.see(broker_id, position);
        let after = self.state_in(self.now());
        if lost_unsynced
            && self.settings.written
            && (after.isr.contains(&broker_id) || after.elr.contains(&broker_id))
        {
            let others: Vec<BrokerId> =
                before.isr.iter().chain(&before.elr).copied().filter(|id| *id != broker_id).collect();
            let holders = others.iter().filter(|id| {
                let replica = before.replicas.iter().find(|replica| replica.broker_id == **id);
                replica.is_some_and(|r| r.volume_uuid == self.now().brokers[id].volume_uuid)
            });
            assert_eq!(holders.count(), 0, "somebody had more than the broker that lost records");
            self.over = true;
        }
    }

    fn configure(&mut self, of_topic: bool, value: Option<u8>) {
        let config = AlterableConfig {
            name: "min.insync.replicas".into(),
            config_operation: i8::from(value.is_none()),
            value: value.map(|value| value.to_string().into()),
            ..Default::default()
        };
        let resource = AlterConfigsResource {
            resource_type: if of_topic { 2 } else { 4 },
            resource_name: if of_topic { "t".into() } else { "".into() },
            configs: vec![config],
            ..Default::default()
        };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
        self.ask(&ControllerRequest::IncrementalAlterConfigs(request));
    }

    fn settle(&mut self) {
        for broker_id in (0..BROKERS).filter(|id| self.processes[index(*id)].alive).collect::<Vec<_>>() {
            self.see(broker_id, usize::MAX);
        }
        (0..BROKERS).for_each(|id| self.sync(id));
        for _ in 0..2 {
            (0..BROKERS).for_each(|id| self.fetch(id, usize::MAX));
        }
        (0..BROKERS).for_each(|id| self.advance(id));
    }

    fn heal(&mut self) {
        for broker_id in 0..BROKERS {
            let min_insync_replicas = self.processes[index(broker_id)].min_insync_replicas;
            self.start(broker_id, min_insync_replicas);
            if self.over {
                return;
            }
            self.set_fenced(broker_id, false);
        }
        self.settle();
        self.expand();
        self.settle();
    }

    fn expand(&mut self) {
        for broker_id in 0..BROKERS {
            if self.processes[index(broker_id)].leading.is_some() {
                self.see(broker_id, usize::MAX);
            }
            self.propose(broker_id, u8::MAX);
            while self.proposals.get(&broker_id).is_some_and(|queue| !queue.is_empty()) {
                self.deliver(broker_id, false);
            }
        }
    }

    fn append(&mut self, leader: BrokerId) {
        let process = &self.processes[index(leader)];
        if let Some(leading) = process.leading.as_ref().filter(|_| process.alive) {
            let record = (leading.leader_epoch, self.next_record);
            self.next_record += 1;
            self.log_mut(leader).push(record);
        }
    }

    fn run(&mut self, event: &Event) {
        match *event {
            Event::Append => (0..BROKERS).for_each(|id| self.append(id)),
            Event::Sync(broker_id) => self.sync(broker_id),
            Event::Fetch { follower, records } => self.fetch(follower, records),
            Event::Advance => (0..BROKERS).for_each(|id| self.advance(id)),
            Event::SeeMetadata { broker_id, images } => {
                if self.processes[index(broker_id)].alive {
                    self.see(broker_id, self.processes[index(broker_id)].seen + images);
                }
            }
            Event::Settle => self.settle(),
            Event::Propose { wanted } => (0..BROKERS).for_each(|id| self.propose(id, wanted)),
            Event::Deliver { lose_answer } => {
                let first = self.proposals.iter().find(|(_, queue)| !queue.is_empty());
                if let Some(leader) = first.map(|(leader, _)| *leader) {
                    self.deliver(leader, lose_answer);
                }
            }
            Event::Heal => self.heal(),
            Event::Fence(broker_id) => self.set_fenced(broker_id, true),
            Event::Unfence(broker_id) => self.set_fenced(broker_id, false),
            Event::Stop(broker_id) => {
                let broker_epoch = self.now().brokers[&broker_id].broker_epoch;
                self.ask(&ControllerRequest::ControlledShutdown { broker_id, broker_epoch });
            }
            Event::Crash { broker_id, loss } => self.crash(broker_id, loss),
            Event::Return { broker_id, loss } => {
                self.crash(broker_id, loss);
                self.set_fenced(broker_id, true);
                self.start(broker_id, self.processes[index(broker_id)].min_insync_replicas);
                self.set_fenced(broker_id, false);
            }
            Event::Expand => self.expand(),
            Event::Serve => {
                for broker_id in 0..BROKERS {
                    if self.processes[index(broker_id)].alive {
                        self.see(broker_id, usize::MAX);
                        self.append(broker_id);
                        self.sync(broker_id);
                        self.advance(broker_id);
                    }
                }
            }
            Event::Start { broker_id, min_insync_replicas } => self.start(broker_id, min_insync_replicas),
            Event::Configure { of_topic, min_insync_replicas } => {
                self.configure(of_topic, min_insync_replicas);
            }
            Event::Reassign(ref target) => self.reassign(target.as_ref()),
            Event::ElectPreferred => {
                if let Some(request) = preferred_leaders_to_elect(self.now(), 10) {
                    self.ask(&ControllerRequest::ElectLeaders(request));
                    let state = self.state_in(self.now());
                    assert_eq!(Some(state.leader), state.replica_ids().next());
                }
            }
        }
    }

    fn check(&self) {
        let (image, state) = (self.now(), self.state_in(self.now()));
        assert!(!state.isr.is_empty(), "somebody must be in sync: {state:?}");
        let members: BTreeSet<BrokerId> = state.isr.iter().chain(&state.elr).copied().collect();
        assert_eq!(members.len(), state.isr.len() + state.elr.len(), "the sets are disjoint: {state:?}");
        let assigned: BTreeSet<BrokerId> = state.replica_ids().collect();
        assert_eq!(assigned.len(), state.replicas.len(), "each once: {state:?}");
        let named = members.iter().chain(&state.adding).chain(&state.removing);
        assert!(named.into_iter().all(|id| assigned.contains(id)), "{state:?}");
        assert!(state.original_ids().count() > 0 && state.target_ids().count() > 0, "{state:?}");
        for replica in &state.replicas {
            let id = replica.broker_id;
            let registered = image.brokers[&id].volume_uuid;
            if !members.contains(&id) {
                assert_eq!(replica.volume_uuid, registered, "broker {id} counts for nothing: {state:?}");
                continue;
            }
            assert!(replica.volume_uuid == registered || state.isr == [id], "broker {id}: {state:?}");
            // The controller does not know yet what was lost; it does before the broker can act.
            if self.forgetful.contains(&replica.volume_uuid) {
                continue;
            }
            let durable = self.durable.get(&replica.volume_uuid).copied().unwrap_or(0);
            let held = &self.logs[&replica.volume_uuid][..durable];
            assert!(
                held.starts_with(&self.committed),
                "broker {id} lacks committed records: {state:?}, {held:?}, committed {:?}",
                self.committed
            );
        }
        if state.leader >= 0 {
            assert!(state.isr.contains(&state.leader), "{state:?}");
            let broker = &image.brokers[&state.leader];
            assert!(!broker.fenced, "{state:?}");
            let replica = state.replicas.iter().find(|replica| replica.broker_id == state.leader);
            assert_eq!(replica.map(|replica| replica.volume_uuid), Some(broker.volume_uuid), "{state:?}");
        }
        let Some(before) = self.history.len().checked_sub(2).map(|i| self.state_in(&self.history[i])) else {
            return;
        };
        if before != state {
            let (leader_moves, epoch_moves) =
                (before.leader != state.leader, before.leader_epoch != state.leader_epoch);
            let is_gone = |id: BrokerId| !state.replica_ids().any(|left| left == id);
            let taken_away = before.replica_ids().any(is_gone);
            assert_eq!(leader_moves || taken_away, epoch_moves, "{before:?} to {state:?}");
            assert!(state.partition_epoch > before.partition_epoch, "{before:?} to {state:?}");
        }
    }
}

/// Runs a history; returns how many records were committed, how often leadership changed, and how many reassignments came
/// to their end.
fn run(written: bool, events: &[Event]) -> (usize, usize, usize) {
    let mut world = World::new(written);
    for event in events {
        world.run(event);
        if world.over {
            break;
        }
        world.check();
    }
    (world.committed.len(), world.elections, world.completed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_clean_election_never_picks_a_replica_that_misses_a_committed_record(
        written in any::<bool>(),
        events in vec(event(), 1..300),
    ) {
        run(written, &events);
    }
}

#[test]
fn random_histories_commit_records_and_change_leaders() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut committed, mut elections, mut completed) = (0, 0, 0);
    for _ in 0..50 {
        let events = vec(event(), 150).new_tree(&mut runner).expect("events can be made").current();
        let outcome = run(false, &events);
        committed += outcome.0;
        elections += outcome.1;
        completed += outcome.2;
    }
    assert!(
        committed > 200 && elections > 100 && completed > 20,
        "the model does nothing: {committed}, {elections}, {completed}"
    );
}
