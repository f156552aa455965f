//! Which moves of a plan may begin now.

use std::collections::{BTreeMap, BTreeSet};

use super::{Move, Plan, Reason, Step};
use crate::metadata::image::BrokerId;

/// Most moves under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Replicas that a broker is being filled with at a time.
    pub per_broker: usize,
    /// Partitions in all.
    pub total: usize,
    /// New orders of replicas, which copy nothing, that begin at a time.
    pub reorders: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_broker: 5, total: 50, reorders: 500 }
    }
}

/// The first moves of a plan that fit beside those under way, given as the brokers that each of them fills.
///
/// Steps begin in their order: the first that has no room, or that needs one before it to be over, holds up those behind
/// it. Only drains do not wait for each other.
pub fn select(plan: &Plan, under_way: &[Vec<BrokerId>], limits: &Limits) -> Vec<Move> {
    let mut room = Room { filled: BTreeMap::new(), total: under_way.len(), reorders: 0 };
    room.fill(under_way.iter().flatten().copied());
    let mut begun: Vec<Move> = Vec::new();
    let mut touched = BTreeSet::new();
    for step in &plan.steps {
        let is_first = step.moves.iter().all(|it| !touched.contains(&it.partition));
        if is_first && room.takes(step, limits) {
            begun.extend(step.moves.iter().cloned());
        } else if step.moves.iter().any(|it| it.reason != Reason::Drain) {
            break;
        }
        touched.extend(step.moves.iter().map(|it| it.partition));
    }
    begun
}

struct Room {
    filled: BTreeMap<BrokerId, usize>,
    total: usize,
    reorders: usize,
}

impl Room {
    fn fill(&mut self, brokers: impl Iterator<Item = BrokerId>) {
        brokers.for_each(|id| *self.filled.entry(id).or_default() += 1);
    }

    /// Whether all moves of the step have room, which is theirs then. One that is alone always has, so that a step that is
    /// larger than the limits does not wait for ever.
    fn takes(&mut self, step: &Step, limits: &Limits) -> bool {
        let copies: Vec<&Move> = step.moves.iter().filter(|it| it.added().next().is_some()).collect();
        let reorders = step.moves.len() - copies.len();
        let has_room = |id| self.filled.get(&id).copied().unwrap_or(0) < limits.per_broker;
        let fits = self.total + copies.len() <= limits.total
            && self.reorders + reorders <= limits.reorders
            && copies.iter().flat_map(|it| it.added()).all(has_room);
        let is_alone = self.total == 0 && self.reorders == 0;
        if fits || is_alone {
            self.total += copies.len();
            self.reorders += reorders;
            self.fill(copies.iter().flat_map(|it| it.added()));
        }
        fits || is_alone
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::metadata::image::TopicIdPartition;

    fn step(reason: Reason, moves: &[(i32, &[BrokerId], &[BrokerId])]) -> Step {
        let one = |(partition, from, to): &(i32, &[BrokerId], &[BrokerId])| Move {
            partition: TopicIdPartition { topic_id: Uuid::nil(), partition: *partition },
            from: from.to_vec(),
            to: to.to_vec(),
            bytes: 1,
            reason,
        };
        Step { moves: moves.iter().map(one).collect() }
    }

    fn chosen(steps: &[Step], under_way: &[Vec<BrokerId>], limits: &Limits) -> Vec<i32> {
        let plan = Plan { steps: steps.to_vec(), blockers: Vec::new() };
        select(&plan, under_way, limits).iter().map(|it| it.partition.partition).collect()
    }

    #[test]
    fn a_broker_is_filled_with_few_replicas_at_a_time_and_other_drains_are_not_held_up() {
        let one = |number, to| step(Reason::Drain, &[(number, &[1], &[to])]);
        let steps = [one(0, 4), one(1, 4), one(2, 4), one(3, 5), one(4, 6)];
        let limits = Limits { per_broker: 2, total: 4, reorders: 1 };
        assert_eq!(chosen(&steps, &[], &limits), [0, 1, 3, 4]);
        assert_eq!(chosen(&steps, &[vec![4]], &limits), [0, 3, 4]);
        assert_eq!(chosen(&steps, &[vec![4], vec![7], vec![7]], &limits), [0]);
    }

    #[test]
    fn brokers_are_levelled_in_order_and_what_changes_places_begins_together() {
        let steps = [
            step(Reason::Bytes, &[(0, &[1], &[4]), (1, &[4], &[1])]),
            step(Reason::Bytes, &[(2, &[1], &[4])]),
            step(Reason::Bytes, &[(3, &[1], &[5])]),
            step(Reason::Leaders, &[(2, &[4, 2], &[2, 4])]),
        ];
        let limits = |per_broker| Limits { per_broker, total: 10, reorders: 1 };
        assert_eq!(chosen(&steps, &[], &limits(1)), [0, 1]);
        assert_eq!(chosen(&steps, &[vec![1]], &limits(1)), [0; 0]);
        assert_eq!(chosen(&steps, &[], &limits(2)), [0, 1, 2, 3], "2 moves before it is led elsewhere");
        assert_eq!(chosen(&steps, &[], &Limits { total: 1, ..limits(2) }), [0, 1], "else it would never be");
    }
}
