//! Many runs, some at a time: which comes next, and when none does any more.
//!
//! Invariant: which plan a run has depends on its seed only, not on threads or time. Every run that begins ends in a report; none is
//! repeated because its answer was not liked.

use std::sync::mpsc;
use std::time::Duration;

use super::carriers::{Carrier, run_safely};
use crate::plan::FaultPlan;
use crate::profile::DrawError;
use crate::report::{Progress, RunReport};

/// When a campaign begins no further run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    pub(super) runs: Option<u64>,
    pub(super) time: Option<Duration>,
    pub(super) parallel: u64,
}

impl Quota {
    fn allows(&self, begun: u64, elapsed: Duration) -> bool {
        self.runs.is_none_or(|runs| begun < runs) && self.time.is_none_or(|time| elapsed < time)
    }
}

/// What a campaign tells while it goes on.
#[derive(Debug)]
pub(super) enum Event {
    Began(Box<FaultPlan>),
    Progress(u64, Progress),
    Ended(Box<RunReport>),
}

/// Runs plans from a seed on. `elapsed` is the time since the campaign began; `tell` keeps the reports, and its error ends the campaign.
pub(super) fn run(
    carrier: &dyn Carrier,
    plans: &dyn Fn(u64) -> Result<FaultPlan, DrawError>,
    first_seed: u64,
    quota: Quota,
    elapsed: &dyn Fn() -> Duration,
    tell: &mut dyn FnMut(Event) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (events, inbox) = mpsc::channel::<Event>();
    std::thread::scope(|scope| {
        let (mut begun, mut active) = (0, 0);
        let mut failed = Ok(());
        loop {
            while failed.is_ok() && active < quota.parallel && quota.allows(begun, elapsed()) {
                let plan = plans(first_seed.wrapping_add(begun))?;
                begun += 1;
                active += 1;
                failed = tell(Event::Began(Box::new(plan.clone())));
                let events = events.clone();
                scope.spawn(move || {
                    let seed = plan.seed;
                    // The other end lives until all threads are gone.
                    let mut progress = |progress| _ = events.send(Event::Progress(seed, progress));
                    let report = run_safely(carrier, &plan, &mut progress);
                    _ = events.send(Event::Ended(Box::new(report)));
                });
            }
            if active == 0 {
                return failed;
            }
            let Ok(event) = inbox.recv() else {
                return failed;
            };
            if matches!(event, Event::Ended(_)) {
                active -= 1;
            }
            // After an error the runs that go on are waited for: their nodes must not be left behind.
            if failed.is_ok() {
                failed = tell(event);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use anyhow::bail;

    use super::*;
    use crate::profile::Profile;
    use crate::report::Outcome;
    use crate::summary::Summary;
    use crate::summary::tests::report;

    /// Passes, fails, refuses or panics by seed, and counts how many run at once.
    struct Fake {
        at_once: Mutex<(u64, u64)>,
    }

    impl Carrier for Fake {
        fn run(
            &self,
            plan: &FaultPlan,
            progress: &mut dyn FnMut(Progress),
        ) -> anyhow::Result<RunReport> {
            {
                let mut at_once = self.at_once.lock().unwrap();
                at_once.0 += 1;
                at_once.1 = at_once.1.max(at_once.0);
            }
            progress(Progress::Phase("fire".to_owned()));
            std::thread::yield_now();
            self.at_once.lock().unwrap().0 -= 1;
            match plan.seed % 10 {
                3 => bail!("no such job"),
                5 => panic!("out of ports"),
                7 => Ok(report(Profile::Mixed, plan.seed, Outcome::Fail)),
                _ => Ok(report(Profile::Mixed, plan.seed, Outcome::Pass)),
            }
        }
    }

    fn plan(seed: u64) -> Result<FaultPlan, DrawError> {
        Ok(report(Profile::Mixed, seed, Outcome::Pass).plan)
    }

    fn campaign(quota: Quota, elapsed: &dyn Fn() -> Duration) -> (Vec<RunReport>, u64) {
        let fake = Fake {
            at_once: Mutex::default(),
        };
        let mut reports = Vec::new();
        run(&fake, &plan, 100, quota, elapsed, &mut |event| {
            if let Event::Ended(report) = event {
                reports.push(*report);
            }
            Ok(())
        })
        .unwrap();
        let most = fake.at_once.lock().unwrap().1;
        (reports, most)
    }

    /// Twenty seeds, three at a time: each has one report; refusals and panics of the harness are inconclusive, with their reason.
    #[test]
    fn every_run_has_one_report_and_trouble_of_the_harness_is_no_failure() {
        let quota = Quota {
            runs: Some(20),
            time: None,
            parallel: 3,
        };
        let (reports, most) = campaign(quota, &|| Duration::ZERO);
        let seeds: BTreeSet<u64> = reports.iter().map(|r| r.plan.seed).collect();
        assert_eq!((reports.len(), seeds), (20, (100..120).collect()));
        assert!(most <= 3);
        for report in &reports {
            match (report.plan.seed % 10, &report.outcome) {
                (3, Outcome::Inconclusive(why)) => assert!(why.contains("no such job"), "{why}"),
                (5, Outcome::Inconclusive(why)) => assert!(why.contains("out of ports"), "{why}"),
                (7, Outcome::Fail) => {}
                (3 | 5 | 7, other) => panic!("{other:?}"),
                (_, outcome) => assert_eq!(*outcome, Outcome::Pass),
            }
        }
        let summary = Summary::of(&reports);
        assert_eq!(
            (summary.passed, summary.failed, summary.inconclusive),
            (14, 2, 4)
        );
    }

    /// The clock is looked at before each run: none begins when the time is over, those that run are waited for.
    #[test]
    fn no_run_begins_after_the_time_is_over() {
        let looks = std::cell::Cell::new(0);
        let elapsed = || {
            looks.set(looks.get() + 1);
            Duration::from_secs(looks.get())
        };
        let quota = Quota {
            runs: None,
            time: Some(Duration::from_secs(6)),
            parallel: 2,
        };
        let (reports, _) = campaign(quota, &elapsed);
        assert_eq!(reports.len(), 5);
    }

    /// What cannot be written down ends the campaign.
    #[test]
    fn a_report_that_cannot_be_kept_ends_the_campaign() {
        let fake = Fake {
            at_once: Mutex::default(),
        };
        let quota = Quota {
            runs: Some(50),
            time: None,
            parallel: 2,
        };
        let mut ended = 0;
        let result = run(&fake, &plan, 0, quota, &|| Duration::ZERO, &mut |event| {
            if let Event::Ended(_) = event {
                ended += 1;
                bail!("disk full");
            }
            Ok(())
        });
        assert_eq!(result.unwrap_err().to_string(), "disk full");
        assert_eq!(ended, 1);
    }
}
