//! What a volume remembers of the runs on it, with real processes.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::fs;
use std::path::Path;

use support::{Broker, Fleet, until};
use tempfile::TempDir;

/// `stopped` and `lost.unsynced` as they stand on the volume.
fn last_run(data: &Path) -> (bool, bool) {
    let text = fs::read_to_string(data.join("run.properties")).unwrap();
    let is_true = |key: &str| text.lines().any(|line| line == format!("{key}=true"));
    (is_true("stopped"), is_true("lost.unsynced"))
}

/// Makes the volume look as if the machine had been started anew since.
fn forget_boot(data: &Path) {
    let path = data.join("run.properties");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix("boot.id=") {
        Some(_) => "boot.id=another\n".to_owned(),
        None => format!("{line}\n"),
    });
    fs::write(path, lines.collect::<String>()).unwrap();
}

#[test]
fn a_process_that_is_killed_and_a_machine_that_went_down_after_an_orderly_stop_lose_nothing() {
    let directory = TempDir::new().unwrap();
    let data = directory.path();
    Broker::dev(data).kill();
    let broker = Broker::dev(data);
    assert_eq!(last_run(data), (false, false));
    assert!(broker.terminate().success());
    assert_eq!(last_run(data), (true, false));
    forget_boot(data);
    Broker::dev(data).kill();
    assert_eq!(last_run(data), (false, false));
}

#[test]
fn a_machine_that_went_down_is_a_loss_until_the_controller_knows() {
    let mut fleet = Fleet::start(2);
    fleet.kill_together([0, 1]);
    let data = fleet.data_dir(1);
    forget_boot(&data);
    // Alone it reaches no quorum, so it cannot register, however often it starts.
    for _ in 0..2 {
        fleet.restart(1);
        until("the loss to be noticed", || (last_run(&data) == (false, true)).then_some(()));
        fleet.kill(1);
    }
    fleet.restart(1);
    fleet.restart(0);
    fleet.wait_until_in_service();
    assert_eq!(last_run(&data), (false, false));
}
