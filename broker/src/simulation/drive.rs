//! The disk of one simulated machine: how long a sync takes, and what a crash leaves of what was not synced.

use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Drive {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    stalled: bool,
}

impl Drive {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: Mutex::new(State { random: StdRng::seed_from_u64(seed), stalled: false }) }
    }

    /// From now on every sync takes long, or not any more.
    pub(crate) fn stall(&self, stalled: bool) {
        self.state.lock().stalled = stalled;
    }

    /// Time that the next sync takes.
    pub(crate) fn sync_time(&self) -> Duration {
        let mut state = self.state.lock();
        let millis = if state.stalled { 200..1_500 } else { 1..12 };
        Duration::from_millis(state.random.random_range(millis))
    }

    pub(crate) fn toss(&self) -> bool {
        self.state.lock().random.random()
    }

    /// A number from 0 to `most`.
    pub(crate) fn up_to(&self, most: usize) -> usize {
        self.state.lock().random.random_range(0..=most)
    }
}
