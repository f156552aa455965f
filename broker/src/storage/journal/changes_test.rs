use uuid::Uuid;

use super::*;

const LOG: TopicIdPartition = TopicIdPartition { topic_id: Uuid::from_u128(1), partition: 0 };

/// A run of `length` bytes that begins at `base_offset` and holds ten offsets.
fn run(base_offset: i64, length: u32) -> Run {
    Run {
        base_offset,
        last_offset: base_offset + 9,
        max_timestamp: 5,
        running_max_timestamp: 5,
        written_ms: 1,
        log_position: base_offset.unsigned_abs() * 10,
        leader_epoch: 0,
        length,
    }
}

struct Test {
    _directory: tempfile::TempDir,
    index: Index,
    changes: Changes,
}

impl Test {
    /// A log of three runs with 100 bytes each.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (index, _) = Index::open(directory.path(), Uuid::from_u128(2)).unwrap();
        let changes = index.load().unwrap();
        let mut test = Self { _directory: directory, index, changes };
        for base_offset in [0, 10, 20] {
            test.apply(Entry::Append(LOG, run(base_offset, 100)));
        }
        test
    }

    fn apply(&mut self, entry: Entry) {
        let position = self.changes.position;
        let position = Position { segment: 7, end: position.end + 4_096, sequence: position.sequence + 1 };
        self.index.apply(&mut self.changes, &[Placed { entry, position: 80 }], position).unwrap();
    }

    fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        self.index
            .runs_from(LOG, 0, |placed| {
                runs.push(placed.run);
                true
            })
            .unwrap();
        runs
    }

    /// What the log takes by its record and the positions of its runs, and by the lengths of its runs.
    fn sizes(&self) -> (i64, i64, u64) {
        let runs = self.runs();
        let span = runs[runs.len() - 1].log_end().wrapping_sub(runs[0].log_position).cast_signed();
        let removed = self.index.log(LOG).unwrap().unwrap().removed_bytes;
        let lengths = runs.iter().map(|run| i64::from(run.length)).sum();
        (span - removed, lengths, self.changes.live[&7])
    }

    fn replace(&mut self, old: &[Run], new: Option<Run>) {
        self.apply(Entry::Replace(LOG, Replaced::of(old).unwrap(), new));
    }
}

#[test]
fn runs_are_replaced_and_the_size_is_that_of_what_is_left() {
    let mut test = Test::new();
    let [first, second, third] = [0, 10, 20].map(|base_offset| run(base_offset, 100));
    let left = Run { base_offset: 3, log_position: 170, ..run(10, 30) };
    test.replace(&[first, second], Some(left));
    assert_eq!(test.runs(), [left, third]);
    assert_eq!(test.sizes(), (130, 130, 130));
    // Longer than before, as a batch can become.
    let longer = Run { log_position: 300_u64.wrapping_sub(500), length: 500, ..third };
    test.replace(&[third], Some(longer));
    assert_eq!(test.sizes(), (530, 530, 530));
    test.replace(&[left], None);
    assert_eq!(test.runs(), [longer]);
    assert_eq!(test.sizes(), (500, 500, 500));
}

#[test]
fn the_size_is_right_whatever_is_cut_or_deleted_after_a_compaction() {
    let compacted = || {
        let mut test = Test::new();
        test.apply(Entry::Append(LOG, run(30, 100)));
        for base_offset in [0, 10, 20, 30] {
            let old = run(base_offset, 100);
            let new = Run { length: 40, log_position: old.log_position + 60, ..old };
            test.replace(&[old], Some(new));
        }
        assert_eq!(test.sizes(), (160, 160, 160));
        test
    };
    let mut test = compacted();
    test.apply(Entry::LogStart(LOG, 15));
    assert_eq!(test.sizes(), (120, 120, 120));
    let mut test = compacted();
    test.apply(Entry::Truncate(LOG, 20, None));
    assert_eq!(test.sizes(), (80, 80, 80));
    let mut test = compacted();
    let cut = Run { last_offset: 24, length: 15, ..test.runs()[2] };
    test.apply(Entry::Truncate(LOG, 25, Some(cut)));
    assert_eq!(test.sizes(), (95, 95, 95));
}

#[test]
fn what_is_not_the_same_any_more_is_not_replaced() {
    let [first, second, third] = [0, 10, 20].map(|base_offset| run(base_offset, 100));
    for old in [
        vec![Run { written_ms: 2, ..first }],
        vec![first, Run { last_offset: 20, ..second }],
        vec![first, second, third, run(30, 100)],
        vec![second, run(40, 100)],
    ] {
        let mut test = Test::new();
        test.replace(&old, Some(run(0, 10)));
        assert_eq!(test.runs(), [first, second, third], "{old:?}");
        assert_eq!(test.sizes(), (300, 300, 300));
    }
}

#[test]
fn the_end_of_a_log_is_not_replaced_by_less() {
    let [first, second, third] = [0, 10, 20].map(|base_offset| run(base_offset, 100));
    for new in [None, Some(Run { last_offset: 25, ..third })] {
        let mut test = Test::new();
        test.replace(&[third], new);
        assert_eq!(test.runs(), [first, second, third]);
    }
}

#[test]
fn a_log_is_not_clean_if_its_end_is_another_by_now() {
    let clean = |last| Entry::Clean(LOG, Cleaned { last, first_dirty: 20, delete_horizon_ms: 50 });
    let known = |test: &Test| {
        let record = test.index.log(LOG).unwrap().unwrap();
        (record.first_dirty, record.delete_horizon_ms)
    };
    let mut test = Test::new();
    test.apply(clean(Run { written_ms: 2, ..run(10, 100) }));
    assert_eq!(known(&test), (0, None));
    test.apply(clean(run(10, 100)));
    assert_eq!(known(&test), (20, Some(50)));
    test.apply(Entry::Truncate(LOG, 15, Some(Run { last_offset: 14, length: 50, ..run(10, 100) })));
    assert_eq!(known(&test), (15, Some(50)), "what comes to lie there is dirty");
    test.apply(Entry::LogStart(LOG, 15));
    assert_eq!(known(&test).1, None, "nothing is left that could be due");
}
