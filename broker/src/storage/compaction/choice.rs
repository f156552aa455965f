//! Which log is to be compacted next.
//!
//! A log is due when enough of it is dirty (`min.cleanable.dirty.ratio`), when a dirty record has waited for too long
//! (`max.compaction.lag.ms`), or when records without a value have stayed long enough (C2). Apache Kafka does not look
//! at the last of these, so that there they stay in a log that nobody writes to.

use super::CompactionSettings;

/// Where a log stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirt {
    /// Bytes below the first dirty offset.
    pub clean_bytes: u64,
    /// Bytes from there on that may be compacted now.
    pub dirty_bytes: u64,
    /// Oldest of the timestamps with which the dirty runs that may be compacted end.
    pub oldest_dirty_ms: Option<i64>,
    /// Time of the first of the delete horizons in the clean part.
    pub delete_horizon_ms: Option<i64>,
}

/// How much a log needs a compaction; the greater the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// A record has waited for longer than `max.compaction.lag.ms`.
    pub overdue: bool,
    /// Share of the log that is dirty, in millionths.
    pub dirty_millionths: u64,
}

impl Dirt {
    /// Whether the log is to be compacted, and how urgently.
    pub fn choice(&self, settings: &CompactionSettings, now_ms: i64) -> Option<Choice> {
        let overdue = self.overdue_ms(settings, now_ms) > 0;
        let total = u128::from(self.clean_bytes) + u128::from(self.dirty_bytes);
        let millionths = (u128::from(self.dirty_bytes) * 1_000_000).checked_div(total).unwrap_or(0);
        let dirty_millionths = u64::try_from(millionths).expect("no more than a million");
        let dirty_enough = dirty_millionths > u64::from(settings.min_dirty_millionths);
        let has_expired = self.delete_horizon_ms.is_some_and(|horizon| horizon <= now_ms);
        (overdue || dirty_enough || has_expired).then_some(Choice { overdue, dirty_millionths })
    }

    /// Milliseconds for which the oldest dirty record has been waiting beyond `max.compaction.lag.ms`.
    pub fn overdue_ms(&self, settings: &CompactionSettings, now_ms: i64) -> i64 {
        self.lag_ms(now_ms).saturating_sub(settings.max_lag_ms).max(0)
    }

    /// Age in milliseconds of the oldest dirty record.
    pub fn lag_ms(&self, now_ms: i64) -> i64 {
        self.oldest_dirty_ms.map_or(0, |oldest| now_ms.saturating_sub(oldest).max(0))
    }
}

/// The most urgent of some logs.
pub fn choose<T>(
    logs: impl IntoIterator<Item = (T, Dirt, CompactionSettings)>,
    now_ms: i64,
) -> Option<(T, Choice)> {
    let due = logs
        .into_iter()
        .filter_map(|(log, dirt, settings)| dirt.choice(&settings, now_ms).map(|choice| (log, choice)));
    due.max_by_key(|(_, choice)| *choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn half() -> CompactionSettings {
        CompactionSettings::default()
    }

    fn dirt(clean_bytes: u64, dirty_bytes: u64) -> Dirt {
        Dirt { clean_bytes, dirty_bytes, oldest_dirty_ms: Some(NOW - 500), delete_horizon_ms: None }
    }

    #[test]
    fn a_log_is_due_when_more_of_it_is_dirty_than_the_setting_says() {
        assert_eq!(dirt(50, 50).choice(&half(), NOW), None, "not more than half");
        let choice = Choice { overdue: false, dirty_millionths: 600_000 };
        assert_eq!(dirt(40, 60).choice(&half(), NOW), Some(choice));
        assert_eq!(Dirt::default().choice(&half(), NOW), None, "nothing is there");
        let eager = CompactionSettings { min_dirty_millionths: 0, ..half() };
        assert!(dirt(900, 1).choice(&eager, NOW).is_some());
        assert_eq!(Dirt { dirty_bytes: 0, ..dirt(100, 0) }.choice(&eager, NOW), None);
    }

    #[test]
    fn a_record_that_has_waited_too_long_makes_its_log_due() {
        let settings = CompactionSettings { max_lag_ms: 499, ..half() };
        assert!(dirt(99, 1).choice(&settings, NOW).is_some_and(|choice| choice.overdue));
        assert_eq!(dirt(99, 1).overdue_ms(&settings, NOW), 1);
        let settings = CompactionSettings { max_lag_ms: 500, ..half() };
        assert_eq!(dirt(99, 1).choice(&settings, NOW), None);
        let none = Dirt { oldest_dirty_ms: None, ..dirt(100, 0) };
        assert_eq!(none.choice(&CompactionSettings { max_lag_ms: 1, ..half() }, NOW), None);
    }

    #[test]
    fn a_delete_horizon_that_has_passed_makes_its_log_due() {
        let with = |horizon| Dirt { delete_horizon_ms: Some(horizon), ..dirt(100, 0) };
        assert!(with(NOW).choice(&half(), NOW).is_some());
        assert_eq!(with(NOW + 1).choice(&half(), NOW), None);
    }

    #[test]
    fn who_is_overdue_comes_before_who_is_dirtier() {
        let patient = half();
        let strict = CompactionSettings { max_lag_ms: 100, ..half() };
        let logs = [("dirty", dirt(10, 90), patient), ("clean", dirt(90, 10), patient)];
        assert_eq!(choose(logs, NOW).map(|(log, _)| log), Some("dirty"));
        let logs = [logs[0], ("dirtier", dirt(5, 95), patient), ("overdue", dirt(90, 10), strict)];
        assert_eq!(choose(logs, NOW).map(|(log, _)| log), Some("overdue"));
        assert_eq!(choose(logs[..2].to_vec(), NOW).map(|(log, _)| log), Some("dirtier"));
        assert!(choose([("clean", dirt(90, 10), patient)], NOW).is_none());
    }
}
