//! Armed points: what strikes where, and how often the code came by.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::FaultPlace;
use crate::fault::{FaultSite, Sabotage};

/// What a point does when it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAction {
    /// Panics.
    Panic,
    /// Returns an error; where the code has no way to fail, panics.
    Error,
    /// Ends the process at once, as kill -9 does.
    Exit,
    /// Stops the process, as SIGSTOP does; somebody must let it go on.
    Stop,
    /// Waits.
    Delay(Duration),
    /// Nothing: it is only counted, as every hit of every site is.
    Count,
}

/// Which hits of a site in a scope strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    /// The n-th, from 1.
    Nth(u32),
    /// The n-th and all after it.
    From(u32),
}

/// Whose moments count. What is not named matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultScope {
    /// Name of the node.
    pub node: Option<String>,
    /// Place of the vertex in the graph.
    pub vertex: Option<u32>,
    /// Index of the subtask.
    pub subtask: Option<u32>,
}

/// One point: `site[@node=N,vertex=V,subtask=S][#n|#n+]=action`, action `panic`, `error`, `exit`, `stop`, `delay:<ms>` or `count`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPointSpec {
    /// Where.
    pub site: FaultSite,
    /// Whose.
    pub scope: FaultScope,
    /// When.
    pub hits: Hits,
    /// What.
    pub action: FaultAction,
}

/// A text is no list of points.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fault point `{text}`: {reason}")]
pub struct SpecError {
    text: String,
    reason: String,
}

impl FaultPointSpec {
    /// Reads points that are separated by `;`.
    pub fn list(text: &str) -> Result<Vec<Self>, SpecError> {
        text.split(';')
            .map(str::trim)
            .filter(|point| !point.is_empty())
            .map(str::parse)
            .collect()
    }
}

impl FromStr for FaultPointSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = |reason: String| SpecError {
            text: text.to_owned(),
            reason,
        };
        // The action follows the last `=`: those of the scope stand before it.
        let (place, action) = text
            .rsplit_once('=')
            .ok_or_else(|| wrong("no action: say site=action".to_owned()))?;
        let (place, hits) = place.split_once('#').unwrap_or((place, "1"));
        let (site, scope) = place.split_once('@').unwrap_or((place, ""));
        let site = FaultSite::named(site).ok_or_else(|| {
            let all: Vec<_> = FaultSite::ALL.iter().map(|site| site.name()).collect();
            wrong(format!("there is no site `{site}`; {}", all.join(", ")))
        })?;
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|_| wrong(format!("`{text}` is no number")))
        };
        let hits = match hits.strip_suffix('+') {
            Some(first) => Hits::From(number(first)?),
            None => Hits::Nth(number(hits)?),
        };
        let mut of = FaultScope::default();
        for part in scope.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("node", name)) => of.node = Some(name.to_owned()),
                Some(("vertex", n)) => of.vertex = Some(number(n)?),
                Some(("subtask", n)) => of.subtask = Some(number(n)?),
                Some(_) | None => return Err(wrong(format!("`{part}` is no scope"))),
            }
        }
        let action = match action.split_once(':') {
            Some(("delay", ms)) => FaultAction::Delay(Duration::from_millis(number(ms)?.into())),
            Some(_) => return Err(wrong(format!("`{action}` is no action"))),
            None => match action {
                "panic" => FaultAction::Panic,
                "error" => FaultAction::Error,
                "exit" => FaultAction::Exit,
                "stop" => FaultAction::Stop,
                "count" => FaultAction::Count,
                _ => return Err(wrong(format!("`{action}` is no action"))),
            },
        };
        Ok(Self {
            site,
            scope: of,
            hits,
            action,
        })
    }
}

impl std::fmt::Display for FaultPointSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.site)?;
        let scope = &self.scope;
        let parts: Vec<String> = [
            scope.node.as_ref().map(|n| format!("node={n}")),
            scope.vertex.map(|n| format!("vertex={n}")),
            scope.subtask.map(|n| format!("subtask={n}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !parts.is_empty() {
            write!(f, "@{}", parts.join(","))?;
        }
        match self.hits {
            Hits::Nth(n) => write!(f, "#{n}")?,
            Hits::From(n) => write!(f, "#{n}+")?,
        }
        match self.action {
            FaultAction::Panic => f.write_str("=panic"),
            FaultAction::Error => f.write_str("=error"),
            FaultAction::Exit => f.write_str("=exit"),
            FaultAction::Stop => f.write_str("=stop"),
            FaultAction::Delay(delay) => write!(f, "=delay:{}", delay.as_millis()),
            FaultAction::Count => f.write_str("=count"),
        }
    }
}

/// What a node runs on: a process, or a simulation.
pub trait Platform: Send + Sync {
    /// Ends the node as kill -9 does. A simulated one returns; its caller then goes no further.
    fn exit(&self);
    /// Stops the node as SIGSTOP does; returns when it goes on.
    fn stop(&self);
    /// Blocks this thread.
    fn sleep(&self, duration: Duration);
}

struct Point {
    spec: FaultPointSpec,
    /// Hits in its scope.
    hits: AtomicU32,
}

/// See [`FaultPoints`](super::FaultPoints).
pub(super) struct Armed {
    node: String,
    points: Vec<Point>,
    sabotage: u32,
    /// By the site's place in [`FaultSite::ALL`].
    hits: [AtomicU64; FaultSite::ALL.len()],
    platform: Arc<dyn Platform>,
}

impl Armed {
    pub(super) fn new(
        node: &str,
        points: Vec<FaultPointSpec>,
        sabotage: &[Sabotage],
        platform: Arc<dyn Platform>,
    ) -> Self {
        Self {
            node: node.to_owned(),
            points: points
                .into_iter()
                .map(|spec| Point {
                    spec,
                    hits: AtomicU32::new(0),
                })
                .collect(),
            sabotage: sabotage.iter().fold(0, |bits, s| bits | s.bit()),
            hits: std::array::from_fn(|_| AtomicU64::new(0)),
            platform,
        }
    }

    pub(super) fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.sabotage & sabotage.bit() != 0
    }

    pub(super) fn hits(&self) -> BTreeMap<FaultSite, u64> {
        FaultSite::ALL
            .into_iter()
            .zip(&self.hits)
            .map(|(site, hits)| (site, hits.load(Ordering::Relaxed)))
            .filter(|(_, hits)| *hits > 0)
            .collect()
    }

    /// Counts; what strikes now.
    fn come_by(&self, site: FaultSite, place: FaultPlace) -> Option<FaultAction> {
        let hits = self.hits[site as usize].fetch_add(1, Ordering::Relaxed) + 1;
        // Each new power of two: a log shows every site that was hit, and about how often, in few lines.
        if hits.is_power_of_two() {
            tracing::info!(%site, hits, node = self.node, "fault point");
        }
        let mut struck = None;
        for point in self.points.iter().filter(|p| p.spec.site == site) {
            if !point.spec.scope.holds(&self.node, place) {
                continue;
            }
            let nth = point.hits.fetch_add(1, Ordering::Relaxed) + 1;
            let is_due = match point.spec.hits {
                Hits::Nth(n) => nth == n,
                Hits::From(n) => nth >= n,
            };
            if is_due && struck.is_none() {
                tracing::warn!(point = %point.spec, node = self.node, ?place, "fault point strikes");
                struck = Some(point.spec.action);
            }
        }
        struck
    }

    pub(super) fn hit(&self, site: FaultSite, place: FaultPlace) -> Result<(), FaultSite> {
        match self.come_by(site, place) {
            None | Some(FaultAction::Count) => Ok(()),
            Some(FaultAction::Panic) => panic!("injected panic at {site}"),
            Some(FaultAction::Error) => Err(site),
            Some(FaultAction::Exit) => {
                self.platform.exit();
                // Only a simulated node comes here: nothing of it may go on.
                panic!("the node was ended at {site}");
            }
            Some(FaultAction::Stop) => {
                self.platform.stop();
                Ok(())
            }
            Some(FaultAction::Delay(delay)) => {
                self.platform.sleep(delay);
                Ok(())
            }
        }
    }

    pub(super) async fn reach(&self, site: FaultSite, place: FaultPlace) -> Result<(), FaultSite> {
        match self.come_by(site, place) {
            None | Some(FaultAction::Count) => Ok(()),
            Some(FaultAction::Panic) => panic!("injected panic at {site}"),
            Some(FaultAction::Error) => Err(site),
            Some(FaultAction::Exit) => {
                self.platform.exit();
                std::future::pending().await
            }
            Some(FaultAction::Stop) => {
                self.platform.stop();
                Ok(())
            }
            Some(FaultAction::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }
}

impl FaultScope {
    fn holds(&self, node: &str, place: FaultPlace) -> bool {
        let (vertex, subtask) = match place {
            FaultPlace::Node | FaultPlace::Job(_) => (None, None),
            FaultPlace::Task(attempt) => (Some(attempt.vertex.0), Some(attempt.subtask.0)),
        };
        self.node.as_ref().is_none_or(|wanted| wanted == node)
            && self.vertex.is_none_or(|wanted| vertex == Some(wanted))
            && self.subtask.is_none_or(|wanted| subtask == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultPoints;
    use crate::model::{Attempt, ExecutionAttemptId, JobId, LeaderEpoch, SubtaskIndex, VertexId};

    #[derive(Default)]
    struct Counted {
        exits: AtomicU32,
        stops: AtomicU32,
        sleeps: AtomicU32,
    }

    impl Platform for Counted {
        fn exit(&self) {
            self.exits.fetch_add(1, Ordering::Relaxed);
        }
        fn stop(&self) {
            self.stops.fetch_add(1, Ordering::Relaxed);
        }
        fn sleep(&self, _: Duration) {
            self.sleeps.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn task(vertex: u32, subtask: u32) -> FaultPlace {
        FaultPlace::Task(ExecutionAttemptId {
            job: JobId(1),
            vertex: VertexId(vertex),
            subtask: SubtaskIndex(subtask),
            epoch: LeaderEpoch(1),
            attempt: Attempt(1),
        })
    }

    fn armed(points: &str) -> (FaultPoints, Arc<Counted>) {
        let platform = Arc::new(Counted::default());
        let points = FaultPointSpec::list(points).unwrap();
        (
            FaultPoints::armed("here", points, &[], platform.clone()),
            platform,
        )
    }

    #[test]
    fn a_point_reads_what_it_writes_and_names_what_is_wrong() {
        for text in [
            "on-timer#1=panic",
            "on-open@vertex=1,subtask=0#2+=error",
            "after-upload-before-ack@node=taskmanager-1#3=exit",
            "on-close#1=delay:250",
            "during-restore#1=stop",
            "on-notify#7=count",
        ] {
            let spec: FaultPointSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!(
            FaultPointSpec::list("on-timer=panic; on-open=exit;")
                .unwrap()
                .len(),
            2
        );
        for (text, reason) in [
            ("on-timer", "no action"),
            ("on-timre=panic", "there is no site `on-timre`"),
            ("on-timer=explode", "`explode` is no action"),
            ("on-timer#x=panic", "`x` is no number"),
            ("on-timer@color=red=panic", "`color=red` is no scope"),
        ] {
            let error = FaultPointSpec::list(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn each_site_has_its_place_and_its_own_name() {
        for (place, site) in FaultSite::ALL.into_iter().enumerate() {
            assert_eq!(site as usize, place);
            assert_eq!(FaultSite::named(site.name()), Some(site));
        }
    }

    /// The n-th hit within the scope, not the n-th of the site.
    #[test]
    fn a_point_strikes_at_its_hit_in_its_scope_only() {
        let (faults, _) = armed("on-timer@vertex=1,subtask=2#2=error");
        let mut results = Vec::new();
        for place in [
            task(1, 2),
            task(1, 1),
            task(0, 2),
            task(1, 2),
            task(1, 2),
            FaultPlace::Node,
        ] {
            results.push(faults.hit(FaultSite::OnTimer, place).is_err());
        }
        assert_eq!(results, [false, false, false, true, false, false]);
        assert_eq!(faults.hits()[&FaultSite::OnTimer], 6, "all are counted");
        let (elsewhere, _) = armed("on-timer@node=there=error");
        assert!(elsewhere.hit(FaultSite::OnTimer, FaultPlace::Node).is_ok());
        let (always, _) = armed("on-open#2+=error");
        let open = || always.hit(FaultSite::OnOpen, FaultPlace::Node).is_err();
        assert_eq!([open(), open(), open()], [false, true, true]);
    }

    #[test]
    fn a_point_does_what_it_says() {
        let (faults, platform) = armed("on-open=stop;on-close=delay:5;on-timer=exit");
        let hit = |site| faults.hit(site, FaultPlace::Node);
        assert!(hit(FaultSite::OnOpen).is_ok() && hit(FaultSite::OnClose).is_ok());
        assert_eq!(platform.stops.load(Ordering::Relaxed), 1);
        assert_eq!(platform.sleeps.load(Ordering::Relaxed), 1);
        let ended = std::thread::spawn({
            let faults = faults.clone();
            move || faults.hit(FaultSite::OnTimer, FaultPlace::Node)
        });
        assert!(ended.join().is_err(), "nothing goes on after the exit");
        assert_eq!(platform.exits.load(Ordering::Relaxed), 1);
    }

    /// A task of a node that was ended waits for ever, one that is delayed does not.
    #[tokio::test(start_paused = true)]
    async fn a_point_in_a_task_waits_without_blocking() {
        let (faults, platform) = armed("before-upload=delay:5000;before-restore=exit");
        let reach = |site| faults.reach(site, FaultPlace::Node);
        let began = tokio::time::Instant::now();
        reach(FaultSite::BeforeUpload).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        assert_eq!(platform.sleeps.load(Ordering::Relaxed), 0);
        let waiting =
            tokio::time::timeout(Duration::from_secs(3600), reach(FaultSite::BeforeRestore));
        assert!(waiting.await.is_err());
        assert_eq!(platform.exits.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn sabotage_is_what_was_asked_for_and_nothing_else() {
        let platform = Arc::new(Counted::default());
        let faults = FaultPoints::armed("here", Vec::new(), &[Sabotage::LoseTimer], platform);
        for sabotage in Sabotage::ALL {
            assert_eq!(
                faults.is_sabotaged(sabotage),
                sabotage == Sabotage::LoseTimer
            );
        }
        assert!(!FaultPoints::default().is_sabotaged(Sabotage::LoseTimer));
    }
}
