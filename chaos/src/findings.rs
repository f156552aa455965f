//! What a round found out about its brokers, from before their start until after their end.
//!
//! A step that fails is either the fault of a broker, which is a finding, or the laboratory does not work, which says
//! nothing about brokers. [`Blame`] in an error tells the two apart.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;

/// Findings that are kept; more of the same help nobody.
const KEPT: usize = 400;

/// Context of an error that is the fault of a broker: what it did, or was to do.
#[derive(Debug)]
pub struct Blame(pub String);

impl std::fmt::Display for Blame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// All findings of a round.
#[derive(Debug, Default)]
pub struct Findings {
    found: Mutex<Vec<String>>,
}

impl Findings {
    /// Enters a finding, and tells it.
    pub fn find(&self, finding: impl Into<String>) {
        let finding = finding.into();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() < KEPT && !found.contains(&finding) {
            eprintln!("  FINDING: {finding}");
            found.push(finding);
        }
    }

    /// Enters what failed by the fault of a broker, for which there is no value then.
    ///
    /// # Errors
    /// Those that are nobody's fault but the laboratory's.
    pub fn take<T>(&self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is::<Blame>() => {
                self.find(format!("{error:#}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All so far.
    pub fn all(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn what_is_a_brokers_fault_is_a_finding_whatever_is_said_around_it_and_anything_else_stays_an_error() {
        let findings = Findings::default();
        assert_eq!(findings.take(Ok(3)).unwrap(), Some(3));
        let blamed = Err::<(), _>(anyhow!("no answer")).context(Blame("broker 1".to_owned()));
        assert!(findings.take(blamed.context("after all was healed")).unwrap().is_none());
        assert_eq!(findings.all(), ["after all was healed: broker 1: no answer"]);
        let failed = findings.take(Err::<(), _>(anyhow!("mount: not found")).context("making a volume"));
        assert_eq!(format!("{:#}", failed.unwrap_err()), "making a volume: mount: not found");
        assert_eq!(findings.all().len(), 1);
    }
}
