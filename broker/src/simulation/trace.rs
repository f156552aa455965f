//! What happened in a run, line by line: equal for two runs of one seed.

use std::cell::RefCell;
use std::hash::Hasher as _;
use std::time::Duration;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Trace {
    lines: RefCell<Vec<String>>,
    findings: RefCell<Vec<String>>,
}

/// Findings that are kept; more of the same help nobody.
const MAX_FINDINGS: usize = 20;

impl Trace {
    /// Enters a line with the simulated time.
    pub(super) fn say(&self, elapsed: Duration, line: impl AsRef<str>) {
        self.lines.borrow_mut().push(format!("{:>9.3} {}", elapsed.as_secs_f64(), line.as_ref()));
    }

    /// Enters something that must not be.
    pub(super) fn find(&self, elapsed: Duration, finding: impl Into<String>) {
        let finding = finding.into();
        let mut findings = self.findings.borrow_mut();
        if findings.len() < MAX_FINDINGS && !findings.contains(&finding) {
            self.say(elapsed, format!("FINDING: {finding}"));
            findings.push(finding);
        }
    }

    pub(super) fn findings(&self) -> Vec<String> {
        self.findings.borrow().clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    /// Tells traces apart.
    pub(super) fn hash(&self) -> u64 {
        hash(self.lines.borrow().join("\n").as_bytes())
    }
}

/// The same for the same bytes in every process.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    #[expect(deprecated, reason = "its successor is seeded at random")]
    let mut hasher = std::hash::SipHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The simulated time, inside of a simulated host.
pub(super) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}
