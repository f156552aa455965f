//! What the quorum does when its members cannot hear each other.

use super::*;

/// Three machines, and nothing that happens to them by itself; left when they are whole.
fn whole_fleet(folder: &Path) -> Run {
    let plan = Plan {
        seed: 1,
        machines: 3,
        partitions: 1,
        min_insync_replicas: 2,
        written: false,
        snapshot_every: 1_000,
        moves: false,
        latency: Duration::from_millis(5),
        faults: Vec::new(),
    };
    let mut run = Run::new(Rc::new(plan), folder).expect("files can be written");
    (0..3).for_each(|number| run.start(number));
    let workload = Rc::clone(&run.workload);
    run.sim.client(CLIENTS, workload.software());
    let whole = |run: &Run| run.workload.ready.get() && run.checks.is_whole();
    assert!(run.until(whole), "it does not come up: {:?}", run.checks.not_whole());
    run
}

impl Run {
    fn until(&mut self, done: impl Fn(&Self) -> bool) -> bool {
        let reached = self.advance_until(PATIENCE, done).expect("files can be written");
        assert_eq!(self.trace.findings(), Vec::<String>::new());
        reached
    }

    /// Who leads the quorum as machine `number` has it, by node id, and the term.
    fn quorum_at(&self, number: usize) -> Option<(Option<u64>, u64)> {
        let status = self.machines[number].running()?.member.quorum();
        Some((status.leader, status.term))
    }

    /// The machine that leads, its node id and the term.
    fn leader(&self) -> (usize, u64, u64) {
        let leads = |number: &usize| {
            self.machines[*number].running().is_some_and(|running| running.member.quorum().is_leader())
        };
        let number = (0..3).find(leads).expect("somebody leads");
        let (leader, term) = self.quorum_at(number).expect("it runs");
        (number, leader.expect("itself"), term)
    }

    fn finish(mut self) {
        self.workload.phase.set(Phase::Drain);
        assert!(self.until(Run::is_settled), "{:?}", self.checks.not_whole());
        self.machines.iter().for_each(|machine| machine.process_ends());
    }
}

/// Raft §9.6 (pre-vote).
#[test]
fn a_voter_that_was_cut_off_does_not_unseat_the_leader_when_it_comes_back() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut run = whole_fleet(folder.path());
    let (number, leader, term) = run.leader();
    let follower = (number + 1) % 3;
    run.isolate(follower);
    run.advance(Duration::from_secs(20)).expect("files can be written");
    assert!(!run.checks.is_whole(), "it was not cut off");
    run.reconnect(follower);
    let again = |run: &Run| run.checks.is_whole() && run.quorum_at(follower) == Some((Some(leader), term));
    assert!(run.until(again), "{:?} instead of {leader} in {term}", run.quorum_at(follower));
    assert_eq!(run.leader(), (number, leader, term));
    run.finish();
}

/// Raft §6.2: a leader that does not hear from a majority does not lead on for ever.
#[test]
fn a_leader_that_hears_nobody_is_succeeded() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut run = whole_fleet(folder.path());
    let (number, _, term) = run.leader();
    let others = [(number + 1) % 3, (number + 2) % 3];
    others.iter().for_each(|other| run.sim.partition_oneway(host(*other), host(number)));
    let leads = |run: &Run, other: usize| {
        let running = run.machines[other].running();
        running.is_some_and(|it| it.member.quorum().is_leader() && it.member.quorum().term > term)
    };
    assert!(run.until(|run| others.iter().any(|other| leads(run, *other))), "it leads for ever");
    others.iter().for_each(|other| run.sim.repair_oneway(host(*other), host(number)));
    run.finish();
}
