//! Whatever fails, a bounded job finishes with exactly the right output: fixed seeds of the simulator (design.md section 9).
//!
//! How: each seed runs a whole cluster in one thread under a paused clock with the faults that it draws (killed and silent nodes, cut
//! links, a store that fails and loses answers, broken user functions), compares what was committed with a plain loop, reads every
//! record of the job, and runs again: the second run must be the first one again, event for event. A seed that fails prints the
//! command that repeats it.

use perennial_chaos::simulator::{FaultKind, Plan, Sabotage, simulate, verify};

/// Runs some seeds; all of them, so that one failure does not hide another.
fn hold(seeds: std::ops::Range<u64>) {
    let failures: Vec<_> = seeds.filter_map(|seed| verify(seed).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

macro_rules! seeds {
    ($($name:ident: $seeds:expr;)*) => {
        $(#[test]
        fn $name() {
            hold($seeds);
        })*
    };
}

seeds! {
    seeds_0_to_4_are_exactly_once_and_repeatable: 0..5;
    seeds_5_to_9_are_exactly_once_and_repeatable: 5..10;
    seeds_10_to_14_are_exactly_once_and_repeatable: 10..15;
    seeds_15_to_19_are_exactly_once_and_repeatable: 15..20;
    seeds_20_to_24_are_exactly_once_and_repeatable: 20..25;
    seeds_25_to_29_are_exactly_once_and_repeatable: 25..30;
    seeds_30_to_34_are_exactly_once_and_repeatable: 30..35;
    seeds_35_to_39_are_exactly_once_and_repeatable: 35..40;
    seeds_40_to_44_are_exactly_once_and_repeatable: 40..45;
    seeds_45_to_49_are_exactly_once_and_repeatable: 45..50;
}

/// The fixed seeds are worth their time only while each kind of fault is among them.
#[test]
fn the_seeds_draw_every_kind_of_fault_at_least_twice() {
    let mut drawn = [0; 8];
    for (_, fault) in (0..50).flat_map(|seed| Plan::of(seed).faults) {
        let kind = match fault {
            FaultKind::KillTaskManager { .. } => 0,
            FaultKind::KillJobManager { .. } => 1,
            FaultKind::CutControl { .. } => 2,
            FaultKind::SilenceControl { .. } => 3,
            FaultKind::CutData { .. } => 4,
            FaultKind::SilenceData { .. } => 5,
            FaultKind::Storm { .. } => 6,
            FaultKind::Function { .. } => 7,
        };
        drawn[kind] += 1;
    }
    assert!(drawn.iter().all(|n| *n >= 2), "{drawn:?}");
}

/// What a job keeps outside of its state is right until the first restart, and wrong from then on: the oracle must see it.
#[test]
fn state_that_no_checkpoint_sees_is_noticed() {
    let seed = (0..50)
        .find(|seed| matches!(Plan::of(*seed).faults[0].1, FaultKind::Function { .. }))
        .expect("some seed begins with a broken function");
    let report = simulate(seed, Some(Sabotage::ForgetState));
    assert!(report.restarts > 0);
    let noticed = report.violations.iter().any(|v| v.contains("differ:"));
    assert!(noticed, "{:?}", report.violations);
    assert!(simulate(seed, None).violations.is_empty());
}

/// A task that is not woken is not stepped, so a lost wake-up stops the job for good.
#[test]
fn lost_wake_ups_are_noticed() {
    let report = simulate(3, Some(Sabotage::LoseWakeUps));
    let noticed = report
        .violations
        .iter()
        .any(|v| v.contains("did not finish in time"));
    assert!(noticed, "{:?}", report.violations);
}
