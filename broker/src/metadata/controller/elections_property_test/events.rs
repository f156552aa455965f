//! What can happen to a partition and its brokers.

use proptest::prelude::*;

use super::BROKERS;
use crate::metadata::image::BrokerId;

/// A step of a history.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// By everyone who takes himself for the leader.
    Append,
    /// What a broker has appended becomes durable.
    Sync(BrokerId),
    Fetch {
        follower: BrokerId,
        records: usize,
    },
    /// By everyone who takes himself for the leader.
    Advance,
    SeeMetadata {
        broker_id: BrokerId,
        images: usize,
    },
    /// Everybody alive sees everything, fetches everything, and the leader moves its watermark.
    Settle,
    /// By everyone who takes himself for the leader; bits of replicas that are to be in sync.
    Propose {
        wanted: u8,
    },
    Deliver {
        lose_answer: bool,
    },
    /// Leaders see the metadata, append, and move their watermarks by what they know of their followers.
    Serve,
    /// Leaders see the metadata, propose whom they can, and are answered.
    Expand,
    /// A broker goes down and comes back into service while nobody else does anything.
    Return {
        broker_id: BrokerId,
        loss: Loss,
    },
    /// Everybody starts, is in service, and in sync again as far as can be.
    Heal,
    Fence(BrokerId),
    Unfence(BrokerId),
    Stop(BrokerId),
    Crash {
        broker_id: BrokerId,
        loss: Loss,
    },
    Start {
        broker_id: BrokerId,
        min_insync_replicas: i32,
    },
    Configure {
        of_topic: bool,
        min_insync_replicas: Option<u8>,
    },
    ElectPreferred,
    /// To these brokers, or back.
    Reassign(Option<Vec<BrokerId>>),
}

/// What goes with a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    Nothing,
    Volume,
    /// The machine goes down; where that is a loss, this many records are left.
    Unsynced(usize),
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![Just(Loss::Nothing), Just(Loss::Volume), (0_usize..6).prop_map(Loss::Unsynced)]
}

fn target() -> impl Strategy<Value = Vec<BrokerId>> {
    let all: Vec<BrokerId> = (0..BROKERS).collect();
    (Just(all).prop_shuffle(), 1_usize..=3).prop_map(|(mut ids, count)| {
        ids.truncate(count);
        ids
    })
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let id = 0..BROKERS;
    prop_oneof![
        8 => Just(Event::Append),
        5 => id.clone().prop_map(Event::Sync),
        8 => (id.clone(), 0_usize..3).prop_map(|(follower, records)| Event::Fetch { follower, records }),
        6 => Just(Event::Advance),
        6 => (id.clone(), 1_usize..5).prop_map(|(broker_id, images)| Event::SeeMetadata { broker_id, images }),
        2 => Just(Event::Settle),
        8 => any::<u8>().prop_map(|wanted| Event::Propose { wanted }),
        6 => prop::bool::weighted(0.3).prop_map(|lose_answer| Event::Deliver { lose_answer }),
        6 => Just(Event::Serve),
        3 => Just(Event::Expand),
        3 => (id.clone(), loss()).prop_map(|(broker_id, loss)| Event::Return { broker_id, loss }),
        2 => Just(Event::Heal),
        4 => id.clone().prop_map(Event::Fence),
        6 => id.clone().prop_map(Event::Unfence),
        1 => id.clone().prop_map(Event::Stop),
        2 => (id.clone(), loss()).prop_map(|(broker_id, loss)| Event::Crash { broker_id, loss }),
        3 => (id, 1..=3)
            .prop_map(|(broker_id, min_insync_replicas)| Event::Start { broker_id, min_insync_replicas }),
        2 => (any::<bool>(), proptest::option::of(1_u8..=3)).prop_map(|(of_topic, min_insync_replicas)| {
            Event::Configure { of_topic, min_insync_replicas }
        }),
        1 => Just(Event::ElectPreferred),
        3 => target().prop_map(|target| Event::Reassign(Some(target))),
        1 => Just(Event::Reassign(None)),
    ]
}
