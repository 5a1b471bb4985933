use std::collections::BTreeSet;

use super::*;
use crate::catalogue::carried_by;
use crate::job::Jobs;
use crate::plan::{Target, When};

fn plan(profile: Profile, only: &[Row], seed: u64) -> FaultPlan {
    let jobs = Jobs::stock();
    Draw {
        profile,
        only,
        jobs: &jobs.all(),
        has_points: true,
        store: None,
    }
    .plan(seed)
    .unwrap()
}

/// A pure function, whose text repeats the run.
#[test]
fn the_same_seed_is_the_same_plan_and_survives_json() {
    for profile in Profile::ALL {
        for seed in 0..50 {
            let first = plan(*profile, &[], seed);
            assert_eq!(first, plan(*profile, &[], seed));
            let text = serde_json::to_string_pretty(&first).unwrap();
            assert_eq!(first, serde_json::from_str(&text).unwrap());
        }
        assert_ne!(plan(*profile, &[], 1), plan(*profile, &[], 2));
    }
}

/// Over the profiles and some seeds, nothing that processes carry is left out.
#[test]
fn every_row_that_processes_carry_is_drawn_by_some_seed() {
    let drawn: BTreeSet<Row> = (0..60)
        .flat_map(|seed| Profile::ALL.iter().map(move |p| (seed, *p)))
        .flat_map(|(seed, profile)| plan(profile, &[], seed).rows())
        .collect();
    let missing: Vec<Row> = carried_by(Carrier::Process)
        .filter(|row| !drawn.contains(row))
        .collect();
    assert_eq!(missing, []);
}

/// A row that is aimed at is in the plan of each seed; the others are a means at most.
#[test]
fn only_draws_the_row_that_is_asked_for() {
    for row in carried_by(Carrier::Process) {
        for seed in 0..20 {
            let plan = plan(Profile::Mixed, &[row], seed);
            assert!(plan.rows().contains(&row), "{row}, seed {seed}: {plan}");
        }
    }
    let jobs = Jobs::stock();
    let all = jobs.all();
    let draw = Draw {
        profile: Profile::Mixed,
        only: &[Row::O6],
        jobs: &all,
        has_points: true,
        store: None,
    };
    assert_eq!(draw.plan(1), Err(DrawError::NotCarried(Row::O6)));
}

/// Several rows take turns.
#[test]
fn a_run_for_each_of_several_rows_aims_at_each() {
    let only = [Row::P1, Row::N2, Row::O1];
    let rows: BTreeSet<Row> = (0..3)
        .flat_map(|seed| plan(Profile::Mixed, &only, seed).rows())
        .collect();
    assert_eq!(rows, only.into());
}

/// Eight seeds of the smoke profile touch each section.
#[test]
fn eight_smoke_seeds_touch_every_section() {
    for from in [0, 8, 80] {
        let sections: BTreeSet<Section> = (from..from + 8)
            .flat_map(|seed| plan(Profile::Smoke, &[], seed).rows())
            .map(Row::section)
            .collect();
        assert_eq!(sections.len(), 7);
    }
}

/// Store faults have a store proxy, frozen leaders a standby, jobs their slots, and what ends the job comes last.
#[test]
fn every_plan_can_be_run() {
    for profile in Profile::ALL {
        for seed in 0..200 {
            let plan = plan(*profile, &[], seed);
            assert!(!plan.faults.is_empty() && plan.faults.len() <= FAULTS_MAX);
            assert!(plan.cluster.task_managers * plan.cluster.slots >= 3);
            let is_store = |f: &PlannedFault| matches!(f.what, Fault::Store(_));
            if plan.faults.iter().any(is_store) {
                assert_eq!(plan.cluster.store, StoreShape::S3, "{plan}");
            }
            let is_frozen = |f: &PlannedFault| {
                f.target == Target::Leader && matches!(f.what, Fault::Pause { .. })
            };
            if plan.faults.iter().any(is_frozen) {
                assert!(plan.cluster.job_managers > 1, "{plan}");
                assert!(plan.settings.contains_key("high-availability.type"));
            }
            let end = plan.faults.iter().position(|f| ends_job(&f.what));
            assert!(end.is_none_or(|at| at + 1 == plan.faults.len()), "{plan}");
        }
    }
}

/// The keys are known and their values valid: a node would refuse them else.
#[test]
fn drawn_settings_are_accepted() {
    for profile in Profile::ALL {
        for seed in 0..100 {
            let keys: Vec<(String, String)> =
                plan(*profile, &[], seed).settings.into_iter().collect();
            let keys: Vec<(&str, String)> =
                keys.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            if let Err(error) = perennial_config::Settings::with(&keys) {
                let text = error.to_string();
                // Where the store is belongs to the carrier.
                assert!(
                    text.contains("storageDir") || text.contains("ha_directory"),
                    "{text}"
                );
            }
        }
    }
}

/// For machines without an S3 server.
#[test]
fn on_disk_nothing_needs_an_object_store_unless_it_is_named() {
    let jobs = Jobs::stock();
    for profile in Profile::ALL {
        for seed in 0..100 {
            let draw = |only| {
                let draw = Draw {
                    profile: *profile,
                    only,
                    jobs: &jobs.all(),
                    has_points: true,
                    store: Some(StoreShape::Disk),
                };
                draw.plan(seed).unwrap()
            };
            let plan = draw(&[]);
            assert_eq!(plan.cluster.store, StoreShape::Disk, "{plan}");
            assert!(!plan.faults.is_empty());
            assert_eq!(draw(&[Row::O1]).cluster.store, StoreShape::S3);
        }
    }
}

/// Somebody's own program has no fault points: nothing waits for one, and rows that need one are refused.
#[test]
fn without_fault_points_nothing_waits_for_one() {
    let jobs = Jobs::stock();
    let all = jobs.all();
    let draw = |profile, only, seed| {
        let draw = Draw {
            profile,
            only,
            jobs: &all,
            has_points: false,
            store: None,
        };
        draw.plan(seed)
    };
    let waits = |plan: &FaultPlan| {
        let mut faults = plan.faults.iter();
        faults.any(|f| matches!(f.when, When::FaultPoint { .. }))
    };
    let (mut with, mut without) = (0, 0);
    for seed in 0..100 {
        with += u32::from(waits(&plan(Profile::Process, &[], seed)));
        without += u32::from(waits(&draw(Profile::Process, &[], seed).unwrap()));
    }
    assert!(with > 5 && without == 0, "{with} {without}");
    let refused = draw(Profile::Mixed, &[Row::A3], 1);
    assert_eq!(refused, Err(DrawError::NotCarried(Row::A3)));
}
