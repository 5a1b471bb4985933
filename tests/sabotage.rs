//! The harness can fail: each way to break the engine on purpose is noticed, by the invariant that it harms.
//!
//! The tenth, a leader that ignores the epoch, is shown beside the coordinator (`actors`), where two leaders write at once.
//!
//! How: a switch breaks the engine by a single `if`; seeds of the simulator run with it until one shows a violation. The same seed
//! without the switch must hold, so that it is the switch that was noticed.

#![allow(clippy::print_stdout, reason = "which seed has shown what")]

use perennial_actors::fault::Sabotage;
use perennial_chaos::plan::Invariant;
use perennial_chaos::report::{Outcome, Violation};
use perennial_chaos::simulator::{Inside, Options, draw, execute};

/// Seeds that are tried for one switch.
const SEEDS: std::ops::Range<u64> = 0..60;

fn violations(seed: u64, sabotage: &[Sabotage]) -> Vec<Violation> {
    let options = Options {
        inside: Inside {
            sabotage: sabotage.to_vec(),
            ..Inside::default()
        },
        ..Options::default()
    };
    let run = execute(&draw(seed), &options, &mut |_| {}).expect("a plan that can be run");
    assert_eq!(
        run.report.outcome == Outcome::Pass,
        run.report.violations.is_empty()
    );
    run.report.violations
}

/// One of these invariants must be violated.
fn is_noticed(sabotage: Sabotage, invariants: &[Invariant]) {
    let mut others = Vec::new();
    for seed in SEEDS {
        let found = violations(seed, &[sabotage]);
        let caught = found.iter().find(|v| invariants.contains(&v.invariant));
        if let Some(caught) = caught {
            println!("{}: seed {seed}: {caught:?}", sabotage.name());
            let without = violations(seed, &[]);
            assert!(
                without.is_empty(),
                "seed {seed} without sabotage: {without:?}"
            );
            return;
        }
        others.extend(found);
    }
    panic!(
        "{} is not noticed; other violations: {others:?}",
        sabotage.name()
    );
}

macro_rules! switches {
    ($($name:ident: $sabotage:ident, $invariants:expr;)*) => {
        $(#[test]
        fn $name() {
            use Invariant::*;
            is_noticed(Sabotage::$sabotage, &$invariants);
        })*
    };
}

switches! {
    an_acknowledgement_before_the_upload_is_noticed: AckBeforeUpload, [S2];
    a_channel_that_is_not_aligned_is_noticed: SkipAlignment, [S1, S2];
    a_commit_without_a_permit_is_noticed: CommitWithoutPermit, [S1];
    a_restore_of_an_older_checkpoint_is_noticed: RestoreOlder, [S1, S2];
    a_lost_timer_is_noticed: LoseTimer, [S1, S2];
    a_dropped_pre_image_is_noticed: DropPreImage, [S1, S2];
    a_leaked_slot_is_noticed: LeakSlot, [R1];
    a_wrong_count_of_restarts_is_noticed: MiscountRestarts, [S5];
    a_batch_that_is_delivered_twice_is_noticed: DeliverTwice, [S1, S2];
}
