//! Makes plans; what they are for is said in the module above.
//!
//! Why plans come to an end, even if only their first steps are carried out before the next is made: each step lowers the
//! first of these that it changes: replicas on draining brokers that can go; replicas outside the bounds; bytes outside the
//! bounds; leaders outside the bounds; their traffic outside the bounds. All are whole numbers. A step is taken as a whole,
//! as the halves of a swap do not lower them by themselves.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};

use super::model::{Bounds, Load, Model};
use super::{Blocker, BlockerKind, Cluster, Fixed, Goals, Move, Plan, Reason, Step};
use crate::metadata::image::BrokerId;

/// Partitions of each side that are tried for a swap: those nearest to half of what two brokers differ by.
const SWAP_CANDIDATES: usize = 32;

/// How much further off the mean traffic may be than anything else, as it is never the same for long.
const TRAFFIC_FACTOR: f64 = 2.0;

/// Traffic by which brokers may be off the mean in any case, bytes per second.
const LITTLE_TRAFFIC: u64 = 1 << 20;

/// Every move that is worthwhile in this cluster.
pub fn plan(cluster: &Cluster, goals: &Goals) -> Plan {
    let mut planner = Planner { model: Model::new(cluster), steps: Vec::new() };
    let blockers = planner.drain();
    if goals.level {
        while planner.level(goals.threshold) {}
    }
    Plan { steps: planner.steps, blockers }
}

/// The candidate with the smallest key of those that fit. Whether one fits is asked only where it would be the smallest, as
/// that takes longer than anything else.
fn least<C: Copy, K: Ord>(
    candidates: impl Iterator<Item = C>,
    key: impl Fn(C) -> K,
    fits: impl Fn(C) -> bool,
) -> Option<C> {
    let mut best: Option<(K, C)> = None;
    for candidate in candidates {
        let key = key(candidate);
        if best.as_ref().is_none_or(|(smallest, _)| key < *smallest) && fits(candidate) {
            best = Some((key, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

struct Planner<'a> {
    model: Model<'a>,
    steps: Vec<Step>,
}

impl Planner<'_> {
    /// Takes one step: everything in it begins together.
    fn take(&mut self, changes: Vec<(usize, Vec<BrokerId>)>, reason: Reason) {
        let mut moves = Vec::with_capacity(changes.len());
        for (index, to) in changes {
            let partition = &self.model.cluster.partitions[index];
            let from = self.model.replicas[index].clone();
            let added = to.iter().filter(|id| !from.contains(id)).count();
            let bytes = partition.bytes.saturating_mul(u64::try_from(added).unwrap_or(u64::MAX));
            self.model.set(index, to.clone());
            moves.push(Move { partition: partition.id, from, to, bytes, reason });
        }
        self.steps.push(Step { moves });
    }

    /// Takes everything from draining brokers, and says what stays.
    fn drain(&mut self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        for index in 0..self.model.replicas.len() {
            let replicas = &self.model.replicas[index];
            let mut leaving: Vec<BrokerId> =
                replicas.iter().copied().filter(|id| self.model.is_draining(*id)).collect();
            leaving.sort_unstable();
            if leaving.is_empty() {
                continue;
            }
            let partition = &self.model.cluster.partitions[index];
            let blocker = |broker_id, kind| Blocker { broker_id, partition: partition.id, kind };
            match partition.fixed {
                // Once that is over it is looked at again.
                Some(Fixed::Reassigning) => continue,
                Some(Fixed::NoLeader) => {
                    blockers.extend(leaving.into_iter().map(|id| blocker(id, BlockerKind::NoLeader)));
                    continue;
                }
                Some(Fixed::OutOfService) => {
                    blockers.extend(leaving.into_iter().map(|id| blocker(id, BlockerKind::OutOfService)));
                    continue;
                }
                None => {}
            }
            let mut next = replicas.clone();
            let mut left = leaving;
            // One that has gone may make room for another, in its rack.
            loop {
                let mut stuck = Vec::new();
                let before = left.len();
                for id in left {
                    match self.replacement(index, &next, id) {
                        Ok(other) => next.iter_mut().filter(|it| **it == id).for_each(|it| *it = other),
                        Err(kind) => stuck.push((id, kind)),
                    }
                }
                if stuck.is_empty() || stuck.len() == before {
                    blockers.extend(stuck.into_iter().map(|(id, kind)| blocker(id, kind)));
                    break;
                }
                left = stuck.into_iter().map(|(id, _)| id).collect();
            }
            self.lead_elsewhere(index, &mut next);
            if next != self.model.replicas[index] {
                self.take(vec![(index, next)], Reason::Drain);
            }
        }
        blockers
    }

    /// Who gets the replica that a draining broker loses: the one with the fewest.
    fn replacement(
        &self,
        index: usize,
        replicas: &[BrokerId],
        from: BrokerId,
    ) -> Result<BrokerId, BlockerKind> {
        let candidates: Vec<BrokerId> = self.model.takers().filter(|id| !replicas.contains(id)).collect();
        if candidates.is_empty() {
            let brokers = self.model.takers().count();
            return Err(BlockerKind::TooFewBrokers { replicas: replicas.len(), brokers });
        }
        let with = |to: &BrokerId| -> Vec<BrokerId> {
            replicas.iter().map(|id| if *id == from { *to } else { *id }).collect()
        };
        let fitting = candidates.into_iter().filter(|id| self.model.may_have(index, &with(id)));
        let load = |id: &BrokerId| {
            let Load { replicas, bytes, .. } = self.model.load(*id);
            (replicas, bytes, *id)
        };
        fitting.min_by_key(load).ok_or(BlockerKind::TooFewRacks)
    }

    /// A broker that takes nothing more does not lead by preference, if another replica can. Of several, the one that leads
    /// least, unless the present one can stay.
    fn lead_elsewhere(&self, index: usize, next: &mut [BrokerId]) {
        let Some(first) = next.first().copied() else { return };
        let stays = self.model.replicas[index].first() == Some(&first) && self.model.takes(first);
        let leads = |position: &usize| (self.model.load(next[*position]).leaders, *position);
        let able = (0..next.len()).filter(|position| self.model.takes(next[*position]));
        if let Some(position) = able.min_by_key(leads).filter(|_| !stays) {
            next.swap(0, position);
        }
    }

    /// One round over all that is levelled; whether anything was moved.
    fn level(&mut self, threshold: f64) -> bool {
        let mut moved = false;
        while self.level_replicas(threshold) {
            moved = true;
        }
        while self.level_bytes(threshold) {
            moved = true;
        }
        while self.level_leaders(threshold) {
            moved = true;
        }
        while self.level_traffic(threshold) {
            moved = true;
        }
        moved
    }

    /// Pairs of brokers that are levelled, of which one has more than the other and at least one is outside the bounds;
    /// those that differ most come first.
    fn pairs(&self, bounds: Bounds, of: impl Fn(Load) -> u64) -> Vec<(BrokerId, BrokerId)> {
        let mut loads: Vec<(u64, BrokerId)> =
            self.model.takers().map(|id| (of(self.model.load(id)), id)).collect();
        loads.sort_unstable();
        let mut pairs = Vec::new();
        for (more, from) in loads.iter().rev() {
            for (less, to) in &loads {
                let outside = bounds.excess(*more) > 0 || bounds.excess(*less) > 0;
                if more > less && outside {
                    pairs.push((more - less, *from, *to));
                }
            }
        }
        pairs.sort_by_key(|(difference, from, to)| (Reverse(*difference), *from, *to));
        pairs.into_iter().map(|(_, from, to)| (from, to)).collect()
    }

    fn level_replicas(&mut self, threshold: f64) -> bool {
        let bounds = self.model.bounds(threshold, |load| load.replicas);
        for (from, to) in self.pairs(bounds, |load| load.replicas) {
            let (more, less) = (self.model.load(from), self.model.load(to));
            let before = bounds.excess(more.replicas) + bounds.excess(less.replicas);
            let after = bounds.excess(more.replicas - 1) + bounds.excess(less.replicas + 1);
            if after >= before {
                continue;
            }
            // The partition that has its share of the bytes that the receiver lacks, so that both goals are met at once.
            let mean = self.model.bounds(0.0, |load| load.bytes).low;
            let wanted = self.model.bounds(0.0, |load| load.replicas).high;
            let lacking = mean.saturating_sub(less.bytes) / wanted.saturating_sub(less.replicas).max(1);
            let key = |index: usize| (self.model.cluster.partitions[index].bytes.abs_diff(lacking), index);
            let best = least(self.model.movable(from), key, |index| {
                self.model.may_have(index, &self.model.replaced(index, from, to))
            });
            if let Some(index) = best {
                let next = self.model.replaced(index, from, to);
                self.take(vec![(index, next)], Reason::Replicas);
                return true;
            }
        }
        false
    }

    fn level_bytes(&mut self, threshold: f64) -> bool {
        let bounds = self.model.bounds(threshold, |load| load.bytes);
        let counts = self.model.bounds(threshold, |load| load.replicas);
        for (from, to) in self.pairs(bounds, |load| load.bytes) {
            let step = self.shift(from, to, bounds, counts).or_else(|| self.swap(from, to, bounds));
            if let Some(step) = step {
                self.take(step, Reason::Bytes);
                return true;
            }
        }
        false
    }

    /// How much nearer to the bounds two brokers come when `bytes` go from one to the other; `None` if they do not.
    fn gain(&self, from: BrokerId, to: BrokerId, bytes: u64, bounds: Bounds) -> Option<u64> {
        let (more, less) = (self.model.load(from).bytes, self.model.load(to).bytes);
        let outside = |more: u64, less: u64| bounds.excess(more) + bounds.excess(less);
        let is_no_worse = bounds.excess(less + bytes) <= bounds.excess(less);
        let gain = outside(more, less).checked_sub(outside(more.checked_sub(bytes)?, less + bytes))?;
        (is_no_worse && gain > 0).then_some(gain)
    }

    /// One replica goes over: as long as both have as many as they should, and never to a broker that has enough of them
    /// because the other has far too many.
    fn shift(
        &self,
        from: BrokerId,
        to: BrokerId,
        bounds: Bounds,
        counts: Bounds,
    ) -> Option<Vec<(usize, Vec<BrokerId>)>> {
        let (more, less) = (self.model.load(from).replicas, self.model.load(to).replicas);
        let before = counts.excess(more) + counts.excess(less);
        let after = counts.excess(more.checked_sub(1)?) + counts.excess(less + 1);
        if after > before || counts.excess(less + 1) > counts.excess(less) {
            return None;
        }
        let gaining = self.model.movable(from).filter_map(|index| {
            let bytes = self.model.cluster.partitions[index].bytes;
            Some((self.gain(from, to, bytes, bounds)?, bytes, index))
        });
        // What gains most; of those, what is smallest.
        let key = |(gain, bytes, index): (u64, u64, usize)| (Reverse(gain), bytes, index);
        let (_, _, index) = least(gaining, key, |(_, _, index)| {
            self.model.may_have(index, &self.model.replaced(index, from, to))
        })?;
        Some(vec![(index, self.model.replaced(index, from, to))])
    }

    /// A large one goes over and a small one comes back.
    fn swap(&self, from: BrokerId, to: BrokerId, bounds: Bounds) -> Option<Vec<(usize, Vec<BrokerId>)>> {
        let half = (self.model.load(from).bytes - self.model.load(to).bytes) / 2;
        let bytes = |index: &usize| self.model.cluster.partitions[*index].bytes;
        let candidates = |held: BrokerId, goes: BrokerId, ideal: u64| {
            let fits = |index: &usize| self.model.may_have(*index, &self.model.replaced(*index, held, goes));
            let mut found: Vec<usize> = self.model.movable(held).filter(fits).collect();
            found.sort_by_key(|index| (bytes(index).abs_diff(ideal), *index));
            found.truncate(SWAP_CANDIDATES);
            found
        };
        let (large, small) = (candidates(from, to, half), candidates(to, from, 0));
        let pairs = large.iter().flat_map(|large| small.iter().map(move |small| (*large, *small)));
        let gains = pairs.filter_map(|(large, small)| {
            let difference = bytes(&large).checked_sub(bytes(&small))?;
            let gain = self.gain(from, to, difference, bounds)?;
            Some((gain, Reverse(bytes(&large) + bytes(&small)), large, small))
        });
        let (_, _, large, small) = gains.max()?;
        Some(vec![
            (large, self.model.replaced(large, from, to)),
            (small, self.model.replaced(small, to, from)),
        ])
    }

    /// Hands preferred leadership on, from broker to broker along replicas that exist: nothing is copied.
    fn level_leaders(&mut self, threshold: f64) -> bool {
        let bounds = self.model.bounds(threshold, |load| load.leaders);
        let leaders = |id: BrokerId| self.model.load(id).leaders;
        let mut sources: Vec<BrokerId> = self.model.takers().collect();
        sources.sort_by_key(|id| (Reverse(leaders(*id)), *id));
        for from in sources {
            let Some(path) = self.way_for_leadership(from, bounds) else { continue };
            let handed = path.into_iter().filter_map(|(index, to)| Some((index, self.led_by(index, to)?)));
            let handed = handed.collect();
            self.take(handed, Reason::Leaders);
            return true;
        }
        false
    }

    /// Replicas of a partition with the leadership handed to one of them.
    fn led_by(&self, index: usize, to: BrokerId) -> Option<Vec<BrokerId>> {
        let mut next = self.model.replicas[index].clone();
        let position = next.iter().position(|id| *id == to)?;
        next.swap(0, position);
        Some(next)
    }

    /// The shortest chain of partitions, each led by the broker that the one before is handed to, from a broker that can
    /// spare a leadership to one that can take it, so that less is outside the bounds.
    fn way_for_leadership(&self, from: BrokerId, bounds: Bounds) -> Option<Vec<(usize, BrokerId)>> {
        let leaders = |id: BrokerId| self.model.load(id).leaders;
        let spared = leaders(from).checked_sub(1)?;
        let is_end = |to: BrokerId| {
            let before = bounds.excess(leaders(from)) + bounds.excess(leaders(to));
            bounds.excess(spared) + bounds.excess(leaders(to) + 1) < before
        };
        let mut seen = BTreeSet::from([from]);
        let mut ways: VecDeque<(BrokerId, Vec<(usize, BrokerId)>)> = VecDeque::from([(from, Vec::new())]);
        while let Some((at, way)) = ways.pop_front() {
            for index in self.model.movable(at) {
                let replicas = &self.model.replicas[index];
                if replicas.first() != Some(&at) {
                    continue;
                }
                for to in replicas.iter().skip(1).copied().filter(|id| self.model.takes(*id)) {
                    if !seen.insert(to) {
                        continue;
                    }
                    let longer: Vec<_> = way.iter().copied().chain([(index, to)]).collect();
                    if is_end(to) {
                        return Some(longer);
                    }
                    ways.push_back((to, longer));
                }
            }
        }
        None
    }

    /// Has busy partitions led elsewhere: where they have a replica if that helps, else with the replica, which is copied.
    fn level_traffic(&mut self, threshold: f64) -> bool {
        if !self.model.cluster.knows_traffic() {
            return false;
        }
        let aims = Aims {
            replicas: self.model.bounds(threshold, |load| load.replicas),
            bytes: self.model.bounds(threshold, |load| load.bytes),
            leaders: self.model.bounds(threshold, |load| load.leaders),
            traffic: self
                .model
                .bounds(threshold * TRAFFIC_FACTOR, |load| load.traffic)
                .widened(LITTLE_TRAFFIC),
        };
        for copies in [false, true] {
            for (from, to) in self.pairs(aims.traffic, |load| load.traffic) {
                if let Some(step) = self.hand_over(from, to, &aims, copies) {
                    self.take(step, Reason::Traffic);
                    return true;
                }
            }
        }
        false
    }

    /// A busy partition is led by the other broker, and if need be a less busy one in return. With `copies` their replicas
    /// go along.
    fn hand_over(
        &self,
        from: BrokerId,
        to: BrokerId,
        aims: &Aims,
        copies: bool,
    ) -> Option<Vec<(usize, Vec<BrokerId>)>> {
        let half = (self.model.load(from).traffic - self.model.load(to).traffic) / 2;
        let candidates = |at: BrokerId, other: BrokerId, ideal: u64| {
            let led = self.model.movable(at).filter(|index| self.model.replicas[*index].first() == Some(&at));
            let after = |index: usize| match copies {
                false => self.led_by(index, other),
                true => Some(self.model.replaced(index, at, other))
                    .filter(|next| self.model.may_have(index, next)),
            };
            let mut found: Vec<_> = led.filter_map(|index| Some((index, after(index)?))).collect();
            found.sort_by_key(|(index, _)| (self.model.traffic(*index).abs_diff(ideal), *index));
            found.truncate(SWAP_CANDIDATES);
            found
        };
        let load = |index: usize| Load {
            replicas: u64::from(copies),
            bytes: if copies { self.model.cluster.partitions[index].bytes } else { 0 },
            leaders: 1,
            traffic: self.model.traffic(index),
        };
        let (going, coming) = (candidates(from, to, half), candidates(to, from, 0));
        let mut best = None;
        for (index, after) in &going {
            for back in std::iter::once(None).chain(coming.iter().map(Some)) {
                let back_load = back.map_or_else(Load::default, |(index, _)| load(*index));
                let Some(gain) = self.gain_in_traffic((from, to), load(*index), back_load, aims) else {
                    continue;
                };
                // What gains most; of those, what copies least, and moves least.
                let key = (gain, Reverse((load(*index).bytes + back_load.bytes, back.is_some())));
                if best.as_ref().is_none_or(|(most, _)| key > *most) {
                    best =
                        Some((key, std::iter::once((*index, after.clone())).chain(back.cloned()).collect()));
                }
            }
        }
        best.map(|(_, step)| step)
    }

    /// How much nearer to the bounds of traffic two brokers come when `going` goes from one to the other and `coming` comes
    /// back; `None` if they do not, or at the cost of another goal.
    fn gain_in_traffic(
        &self,
        (from, to): (BrokerId, BrokerId),
        going: Load,
        coming: Load,
        aims: &Aims,
    ) -> Option<u64> {
        let before = (self.model.load(from), self.model.load(to));
        let after = (before.0.exchanged(going, coming)?, before.1.exchanged(coming, going)?);
        let gain = |bounds: Bounds, of: fn(Load) -> u64| {
            let outside = |(one, other): (Load, Load)| bounds.excess(of(one)) + bounds.excess(of(other));
            let is_no_worse = bounds.excess(of(after.1)) <= bounds.excess(of(before.1));
            outside(before).checked_sub(outside(after)).filter(|_| is_no_worse)
        };
        gain(aims.replicas, |load| load.replicas)?;
        gain(aims.bytes, |load| load.bytes)?;
        gain(aims.leaders, |load| load.leaders)?;
        gain(aims.traffic, |load| load.traffic).filter(|gain| *gain > 0)
    }
}

/// Where brokers' loads are to be.
#[derive(Clone, Copy, Debug)]
struct Aims {
    replicas: Bounds,
    bytes: Bounds,
    leaders: Bounds,
    traffic: Bounds,
}
