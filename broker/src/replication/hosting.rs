//! Which partitions this broker has, as the metadata image says: opened, appointed, dismissed and deleted here.
//!
//! When a log is deleted:
//! - Its topic was in the image before and is not in the next one, and this broker has caught up with the metadata
//!   log. Before that, an image may be an old snapshot.
//! - It was found on disk when the broker caught up, a checkpoint has recorded that its partition existed at some
//!   metadata log index, and the image is newer than that. The topic was deleted while the broker was down.
//! - The same two for a partition that is there and has no replica here any more, as a reassignment has ended or was
//!   cancelled: the image names neither this volume nor this broker among its replicas.
//!
//! Anything else on the disk is kept and reported. An image *older* than what the checkpoint has seen means that the
//! metadata log was lost: then every log that it does not know, or has elsewhere, is kept for good, whatever later images
//! say.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::TopicSettings;
use super::leadership::{LeaderAssignment, Member};
use super::manager::{Hosted, Inner, blocking};
use super::partition::{Assignment, Partition};
#[cfg(any(test, feature = "historical-bugs"))]
use crate::bugs::{self, Bug};
use crate::metadata::image::{
    BrokerImage, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicIdPartition, TopicImage,
};

pub(super) async fn follow_image(inner: Arc<Inner>) {
    let mut images = inner.options.images.clone();
    let mut caught_up_watch = inner.options.caught_up.clone();
    let mut before: Option<Arc<MetadataImage>> = None;
    let mut caught_up = false;
    loop {
        let was_caught_up = caught_up;
        caught_up |= *caught_up_watch.borrow_and_update();
        let image = Arc::clone(&images.borrow_and_update());
        let (next, previous) = (Arc::clone(&image), before.take());
        inner.set_throttle_rates(&image);
        blocking(&inner, move |inner| {
            if caught_up && !was_caught_up {
                // Roles were held back until now, so every topic is looked at again.
                inner.apply(None, &next, caught_up);
                inner.sweep(&next);
            } else {
                inner.apply(previous.as_deref(), &next, caught_up);
            }
        })
        .await;
        inner.applied.send_replace(image.log_index);
        before = Some(image);
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            changed = images.changed() => if changed.is_err() { return },
            changed = caught_up_watch.changed(), if !caught_up => if changed.is_err() { return },
        }
    }
}

impl Inner {
    fn set_throttle_rates(&self, image: &MetadataImage) {
        let (rates, now) = ((self.options.throttle_rates)(image), Instant::now());
        self.sessions.set_rate(rates.leader, now);
        self.follower_quota.lock().set_rate(rates.follower, now);
    }

    /// Carries out the difference between two images. Blocks on the disk.
    fn apply(self: &Arc<Self>, before: Option<&MetadataImage>, image: &MetadataImage, caught_up: bool) {
        let none = BTreeMap::new();
        let topics_before = before.map_or(&none, |before| &before.topics);
        // Settings come from broker configurations too, and who may become in sync from the brokers' states.
        let all_changed = before.is_none_or(|before| {
            before.broker_configs != image.broker_configs
                || before.brokers != image.brokers
                || before.balance.throttled() != image.balance.throttled()
        });
        let (mut to_open, mut to_delete) = (Vec::new(), Vec::new());
        for (topic_id, topic) in &image.topics {
            let unchanged = topics_before.get(topic_id).is_some_and(|before| Arc::ptr_eq(before, topic));
            if !unchanged || all_changed {
                self.apply_topic(image, topic, caught_up, &mut to_open, &mut to_delete);
            }
        }
        if caught_up {
            for topic in topics_before.values().filter(|topic| !image.topics.contains_key(&topic.topic_id)) {
                to_delete.extend(self.hosted_of(topic));
            }
            self.delete(&to_delete);
        }
        for (id, settings, assignment) in to_open {
            self.open(id, settings, assignment);
        }
    }

    /// Brings the partitions of one topic up to date; those to be opened, or that are hosted here and have no replica
    /// here any more, come last, since that takes longer.
    fn apply_topic(
        self: &Arc<Self>,
        image: &MetadataImage,
        topic: &TopicImage,
        caught_up: bool,
        to_open: &mut Vec<(TopicIdPartition, Arc<TopicSettings>, Assignment)>,
        to_delete: &mut Vec<TopicIdPartition>,
    ) {
        // What this process led in the image of another run, others may lead by now; or it has lost records of that epoch.
        let may_act = caught_up;
        #[cfg(any(test, feature = "historical-bugs"))]
        let may_act = may_act || bugs::has(Bug::LeadsBeforeRegistered);
        let mut settings: Option<Arc<TopicSettings>> = None;
        for (number, state) in (0..).zip(&topic.partitions) {
            let id = TopicIdPartition { topic_id: topic.topic_id, partition: number };
            let own = state.replicas.iter().find(|replica| replica.volume_uuid == self.options.volume_uuid);
            let hosted = self.partitions.read().get(&id).cloned();
            if own.is_none() {
                if hosted.is_none() {
                    continue;
                }
                if self.is_taken_away(image, state) {
                    to_delete.push(id);
                }
            }
            let settings = Arc::clone(
                settings.get_or_insert_with(|| Arc::new((self.options.topic_settings)(image, topic))),
            );
            let own = own.filter(|_| may_act);
            let assignment = assignment(image, state, own, settings.min_insync_replicas);
            match hosted {
                Some(Hosted::Online(partition)) => {
                    partition.set_settings(settings);
                    self.assign(&partition, assignment);
                }
                Some(Hosted::Offline) => {}
                None => to_open.push((id, settings, assignment)),
            }
        }
    }

    fn assign(self: &Arc<Self>, partition: &Arc<Partition>, assignment: Assignment) {
        let before = partition.role();
        partition.assign(assignment);
        let role = partition.role();
        match role.follows {
            Some(leader) if before != role => {
                self.fetchers.follow(self, partition, leader, role.leader_epoch);
            }
            Some(_) => {}
            None if before.follows.is_some() => self.fetchers.forget(partition.id()),
            None => {}
        }
        // Somebody may join who could not before.
        let is_alive = |broker_id| self.sessions.is_alive(broker_id, self.options.replica_lag);
        if partition.watermark().propose_expansion(is_alive).is_some() {
            self.proposals.add(partition.id());
        }
    }

    fn open(self: &Arc<Self>, id: TopicIdPartition, settings: Arc<TopicSettings>, assignment: Assignment) {
        let steady_clock = self.options.steady_clock.clone();
        let lag = self.options.replica_lag;
        let hosted = match Partition::open(self.options.store.as_ref(), id, settings, lag, steady_clock) {
            Ok(partition) => {
                let partition = Arc::new(partition);
                self.assign(&partition, assignment);
                Hosted::Online(partition)
            }
            Err(error) => {
                tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "partition is offline");
                Hosted::Offline
            }
        };
        self.partitions.write().insert(id, hosted);
    }

    /// Whether the image says for certain that this broker has no replica of the partition.
    fn is_taken_away(&self, image: &MetadataImage, state: &PartitionImage) -> bool {
        let volume_uuid = self.options.volume_uuid;
        let own = image.brokers.values().find(|broker| broker.volume_uuid == volume_uuid);
        own.is_some_and(|own| {
            let elsewhere =
                |replica: &Replica| replica.broker_id != own.broker_id && replica.volume_uuid != volume_uuid;
            state.replicas.iter().all(elsewhere)
        })
    }

    /// Partitions of a topic that are hosted here.
    fn hosted_of(&self, topic: &TopicImage) -> Vec<TopicIdPartition> {
        let partitions = self.partitions.read();
        let ids = (0..).take(topic.partitions.len());
        let ids = ids.map(|partition| TopicIdPartition { topic_id: topic.topic_id, partition });
        ids.filter(|id| partitions.contains_key(id)).collect()
    }

    /// All at once: no later image is looked at before their deletion is durable, and this broker may be elected there.
    fn delete(&self, ids: &[TopicIdPartition]) {
        if ids.is_empty() {
            return;
        }
        for id in ids {
            let hosted = self.partitions.write().remove(id);
            if let Some(Hosted::Online(partition)) = hosted {
                self.fetchers.forget(*id);
                partition.retire();
            }
        }
        let deleted = self.options.store.delete(ids);
        for id in ids {
            match &deleted {
                Ok(()) => tracing::info!(topic_id = %id.topic_id, partition = id.partition, "deleted log"),
                Err(error) => {
                    tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "log is not deleted");
                }
            }
        }
    }

    /// Looks through what is on the disk once the broker has caught up; see the module documentation.
    fn sweep(&self, image: &MetadataImage) {
        // Opened because an older image knew them.
        let gone: Vec<_> =
            self.partitions.read().keys().copied().filter(|id| image.partition(*id).is_none()).collect();
        self.delete(&gone);
        let (mut disowned, mut deleted) = (Vec::new(), Vec::new());
        for stored in self.options.store.list() {
            let id = stored.partition;
            if image.partition(id).is_some_and(|state| !self.is_taken_away(image, state)) {
                continue;
            }
            match stored.known_at {
                Some(known_at) if known_at < image.log_index => deleted.push(id),
                Some(known_at) => {
                    if known_at != u64::MAX {
                        disowned.push(id);
                    }
                    tracing::error!(
                        topic_id = %id.topic_id, partition = id.partition,
                        "kept a log that the metadata does not know, or has elsewhere, although it is older than the \
                         log: metadata may have been lost"
                    );
                }
                None => tracing::warn!(
                    topic_id = %id.topic_id, partition = id.partition,
                    "kept a log of an unknown topic, or one that is elsewhere now, as no checkpoint tells that it was \
                     there before; an empty volume for this broker frees its space"
                ),
            }
        }
        self.delete(&deleted);
        if disowned.is_empty() {
            return;
        }
        if let Err(error) = self.options.store.disown(&disowned) {
            tracing::error!(%error, "marking logs of unknown topics");
        }
    }
}

/// The part in a partition of the broker that holds replica `own` of it, as the image has it.
fn assignment(
    image: &MetadataImage,
    state: &PartitionImage,
    own: Option<&Replica>,
    min_insync_replicas: usize,
) -> Assignment {
    let leader_epoch = state.leader_epoch;
    let Some(own) = own.filter(|_| state.leader != NO_LEADER) else {
        return Assignment::Idle { leader_epoch };
    };
    if own.broker_id != state.leader {
        return Assignment::Follows { leader: state.leader, leader_epoch };
    }
    let member = |replica: &Replica| {
        let registered = image.brokers.get(&replica.broker_id).map(AsRef::as_ref);
        let eligible = |broker: &BrokerImage| broker.may_lead() && broker.volume_uuid == replica.volume_uuid;
        Member {
            broker_id: replica.broker_id,
            broker_epoch: registered.map_or(-1, |broker| broker.broker_epoch),
            eligible: registered.is_some_and(eligible),
        }
    };
    let others = state.replicas.iter().filter(|replica| replica.broker_id != own.broker_id);
    Assignment::Leads(LeaderAssignment {
        own: member(own),
        leader_epoch,
        partition_epoch: state.partition_epoch,
        isr: state.isr.clone(),
        followers: others.map(member).collect(),
        min_isr: state.effective_min_in_sync(min_insync_replicas),
    })
}
