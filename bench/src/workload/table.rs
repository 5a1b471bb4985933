//! Every workload with its sizes.
//!
//! Those of `full` are chosen so that a run of Flink takes about ten seconds where rates are measured: from a few where it is fast to a
//! minute where it writes ten million keys at each checkpoint. The input is the same for both, so that a run of ours is over in a fraction
//! of a second in what Flink is slowest at, as sliding windows. All of it takes two hours or more on two cores.

use std::time::Duration;

use super::{Fault, Kind, Nodes, Profile, Throughput, Workload, nexmark};
use crate::figures::Metric;
use crate::jobs::{keyed_count, passthrough, shuffle, window};
use crate::peer::bare::Loop;
use crate::peer::{Heartbeats, Memory, Shape, Submission};

/// Two subtasks in one process.
pub(super) const TOGETHER: Shape = Shape {
    task_managers: 1,
    slots: 2,
    heartbeats: Heartbeats::Default,
    memory: Memory::Ample,
};

/// A process for each of two subtasks.
const APART: Shape = Shape {
    task_managers: 2,
    slots: 1,
    heartbeats: Heartbeats::Default,
    memory: Memory::Ample,
};

/// The same, and a spare one.
fn with_spare(heartbeats: Heartbeats) -> Shape {
    Shape {
        task_managers: 3,
        slots: 1,
        heartbeats,
        memory: Memory::Ample,
    }
}

/// Both subtasks in one, nothing more than a cluster needs.
const SMALLEST: Shape = Shape {
    memory: Memory::Default,
    ..TOGETHER
};

impl Workload {
    pub(super) fn new(
        name: impl Into<String>,
        about: impl Into<String>,
        shape: Shape,
        kind: Kind,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            shape,
            keys: 1000,
            events: 0,
            warm_up: 1.0,
            runs: 5,
            rival_runs: 5,
            turns: None,
            headline: match &kind {
                Kind::Throughput(_) | Kind::Nexmark(_) => Metric::WarmRate,
                Kind::Recovery(_) | Kind::Start(_) | Kind::Restore => Metric::FirstRecord,
                Kind::Files => Metric::Rate,
                Kind::Idle => Metric::IdleMemory,
                Kind::Checkpoints { .. } => Metric::CheckpointTime,
                Kind::Latency { .. } => Metric::LatencyP99,
            },
            processors: None,
            flink_settings: &[],
            has_rival: true,
            kind,
        }
    }

    pub(super) fn keys(mut self, keys: u64) -> Self {
        self.keys = keys;
        self
    }

    pub(super) fn events(mut self, events: u64) -> Self {
        self.events = events;
        self
    }

    pub(super) fn runs(mut self, runs: usize) -> Self {
        self.runs = runs;
        self.rival_runs = runs;
        self
    }

    /// After the runs of ours.
    fn rival_runs(mut self, runs: usize) -> Self {
        self.rival_runs = runs;
        self
    }

    fn in_turns(mut self, turns: &'static str) -> Self {
        self.turns = Some(turns);
        self
    }

    fn alone(mut self) -> Self {
        self.has_rival = false;
        self
    }
}

/// Number of keys as it stands in names.
fn short_keys(keys: u64) -> String {
    format!("1e{}", keys.ilog10())
}

/// The job, with a checkpoint from time to time.
fn keyed_count_job(interval: Option<&str>) -> Submission {
    let submission = Submission::new(keyed_count::NAME, "perennial.bench.KeyedCount")
        .setting("parallelism.default", 2);
    match interval {
        Some(interval) => submission.setting("execution.checkpointing.interval", interval),
        None => submission,
    }
}

/// Ends of a name and of what is said about it.
fn with_checkpoints(interval: Option<&str>) -> (String, String) {
    let ends = interval.map(|every| {
        (
            format!("-cp{every}"),
            format!(", a checkpoint every {every}"),
        )
    });
    ends.unwrap_or_default()
}

fn keyed_count(keys: u64, interval: Option<&str>) -> Workload {
    let (checkpoints, told) = with_checkpoints(interval);
    let name = format!("keyed-count-{}{checkpoints}", short_keys(keys));
    let about = format!("a count per key, {} keys{told}", short_keys(keys));
    let throughput = Throughput {
        submission: keyed_count_job(interval),
        expected: Box::new(keyed_count::expected),
        bare: Some(Loop::KeyedCount),
    };
    Workload::new(name, about, TOGETHER, Kind::Throughput(throughput)).keys(keys)
}

/// Long enough for some checkpoints in the half of the input that is timed, which a run that Flink has time for is not. What
/// checkpoints cost is our own rate over our own rate, and needs no rival.
fn keyed_count_for_long(interval: Option<&str>) -> Workload {
    let short = keyed_count(1_000_000, None);
    let (checkpoints, told) = with_checkpoints(interval);
    let throughput = Throughput {
        submission: keyed_count_job(interval),
        expected: Box::new(keyed_count::expected),
        bare: None,
    };
    Workload {
        name: format!("{}-long{checkpoints}", short.name),
        about: format!("{}, for some seconds{told}", short.about),
        kind: Kind::Throughput(throughput),
        ..short.alone()
    }
}

/// The whole cluster on one core, and the plain loop on one thread.
fn keyed_count_on_one_core() -> Workload {
    let throughput = Throughput {
        submission: keyed_count_job(None),
        expected: Box::new(keyed_count::expected),
        bare: Some(Loop::KeyedCount),
    };
    let about = "a count per key, 1e6 keys, the whole cluster on one core";
    let kind = Kind::Throughput(throughput);
    Workload {
        processors: Some(1),
        // The processes of Flink live on, and would stay on that core.
        has_rival: false,
        ..Workload::new("keyed-count-1e6-one-core", about, TOGETHER, kind).keys(1_000_000)
    }
}

/// A million keys are there, and every tenth of them changes.
fn keyed_count_in_part(interval: Option<&str>) -> Workload {
    const KEYS: u64 = 1_000_000;
    const TOUCHED: u64 = KEYS / 10;
    let submission = keyed_count_job(interval)
        .argument("prefill", KEYS)
        .argument("touched", TOUCHED);
    let throughput = Throughput {
        submission,
        expected: Box::new(|events, keys| keyed_count::expected_after(events, keys, keys, TOUCHED)),
        bare: None,
    };
    let (checkpoints, told) = with_checkpoints(interval);
    let name = format!("keyed-count-1e6-10pct{checkpoints}");
    let about = format!("a count per key, 1e6 keys of which every tenth changes{told}");
    let workload = Workload::new(name, about, TOGETHER, Kind::Throughput(throughput));
    // As long as the others that tell what checkpoints cost, and without a rival as they are.
    workload.keys(KEYS).alone()
}

/// Windows of so many seconds, one every so many.
fn windows(size: u64, slide: u64) -> Workload {
    let (length, step) = (Duration::from_secs(size), Duration::from_secs(slide));
    let mut submission = Submission::new(window::NAME, "perennial.bench.Window")
        .setting("parallelism.default", 2)
        .argument("size", size);
    let mut name = "window-tumbling";
    let mut about = format!("events per key and {size} s of event time, 1e3 keys");
    if slide != size {
        submission = submission.argument("slide", slide);
        name = "window-sliding";
        about.push_str(&format!(", every {slide} s"));
    }
    let throughput = Throughput {
        submission,
        expected: Box::new(move |events, keys| window::expected(events, keys, length, step)),
        bare: None,
    };
    Workload::new(name, about, TOGETHER, Kind::Throughput(throughput))
}

/// There is no time for more.
const QUICK_WARM_UP: f64 = 0.25;

/// What a profile measures, in the order in which clusters need to change least.
#[must_use]
pub fn table(profile: Profile) -> Vec<Workload> {
    let is_full = profile == Profile::Full;
    let million = |quick: u64, full: u64| if is_full { full } else { quick } * 1_000_000;
    let runs = |quick: usize, full: usize| if is_full { full } else { quick };
    let mut table = Vec::new();
    keyed_counts(is_full, &mut table);
    let throughput = Throughput {
        submission: Submission::new(passthrough::NAME, "perennial.bench.Passthrough")
            .setting("parallelism.default", 2),
        expected: Box::new(passthrough::expected),
        bare: Some(Loop::Passthrough),
    };
    let passthrough = Workload::new(
        passthrough::NAME,
        "generator, map, sink",
        TOGETHER,
        Kind::Throughput(throughput),
    );
    table.push(passthrough.events(million(50, 300)).runs(runs(3, 5)));
    table.push(windows(10, 10).events(million(10, 50)).runs(runs(2, 5)));
    table.push(windows(60, 5).events(million(1, 15)).runs(runs(2, 5)));
    table.extend(nexmark::workloads(profile, million(2, 10), runs(1, 5)));
    let latency = |name, about, buffer_timeout| {
        let kind = Kind::Latency { buffer_timeout };
        let workload = Workload::new(name, about, TOGETHER, kind);
        workload.runs(runs(1, 5)).in_turns("latency")
    };
    table.push(latency(
        "latency",
        "keyed-count at half load, default buffer timeout",
        None,
    ));
    if is_full {
        table.push(latency(
            "latency-buffer-0",
            "keyed-count at half load, buffer timeout 0",
            Some("0"),
        ));
        for (name, keys, interval, rate, turns) in [
            (
                "checkpoint-1e6",
                1_000_000,
                "1s",
                50_000,
                Some("checkpoint"),
            ),
            (
                "checkpoint-1e7-same-changes",
                10_000_000,
                "1s",
                50_000,
                Some("checkpoint"),
            ),
            ("checkpoint-1e7-1pct", 10_000_000, "3s", 33_334, None),
        ] {
            let about = format!("checkpoints every {interval} at {rate} events/s");
            let kind = Kind::Checkpoints { interval, rate };
            let workload = Workload::new(name, about, TOGETHER, kind);
            table.push(Workload {
                turns,
                ..workload.keys(keys).runs(3)
            });
        }
        for keys in [1_000_000, 10_000_000] {
            let name = format!("restore-{}", short_keys(keys));
            let about = "from the submission with a savepoint to the first record";
            table.push(
                Workload::new(name, about, TOGETHER, Kind::Restore)
                    .keys(keys)
                    .runs(5)
                    .rival_runs(1),
            );
        }
    }
    recoveries(is_full, &mut table);
    for (name, about, nodes) in [
        (
            "start",
            "from nothing to the first record, all in one process",
            Nodes::Fewest,
        ),
        (
            "start-processes",
            "from nothing to the first record, JobManager and TaskManager as processes",
            Nodes::Processes,
        ),
    ] {
        let kind = Kind::Start(nodes);
        let workload = Workload::new(name, about, SMALLEST, kind).runs(runs(1, 5));
        table.push(workload.rival_runs(runs(1, 3)));
    }
    let about = "a JobManager and a TaskManager with nothing to do";
    table.push(
        Workload::new("idle", about, SMALLEST, Kind::Idle)
            .runs(runs(1, 5))
            .rival_runs(runs(1, 2)),
    );
    // Last, should time be over before the end: the others are what people come for.
    let about = "JSON lines through a filter into files, exactly once, a checkpoint every second";
    let files = Workload::new("file-to-file", about, TOGETHER, Kind::Files);
    // About 49 bytes a line: 100 MB, or 1 GB.
    let files = files
        .keys(1_000_000)
        .events(if is_full { 20_400_000 } else { 2_000_000 });
    table.push(files.runs(runs(1, 5)));
    let throughput = Throughput {
        submission: Submission::new(shuffle::NAME, "perennial.bench.Shuffle")
            .setting("parallelism.default", 1)
            .argument("sources", 1),
        expected: Box::new(shuffle::expected),
        bare: None,
    };
    let shuffle = Workload::new(
        shuffle::NAME,
        "every record from one process to another",
        APART,
        Kind::Throughput(throughput),
    );
    table.push(shuffle.events(million(20, 60)).runs(runs(2, 5)));
    if is_full {
        let kind = Kind::Latency {
            buffer_timeout: None,
        };
        let about = "keyed-count between two processes at half of the load that one can do, default buffer timeout";
        table.push(Workload::new("shuffle-latency", about, APART, kind));
    } else {
        for workload in &mut table {
            workload.warm_up = QUICK_WARM_UP;
        }
    }
    table
}

/// Counts per key: of few keys, of some that fit into a cache and of many that do not.
fn keyed_counts(is_full: bool, table: &mut Vec<Workload>) {
    for (keys, [quick, full], quick_runs, turns) in [
        (1_000, [12, 50], 2, "keyed-count-1e3"),
        (1_000_000, [6, 20], 2, "keyed-count-1e6"),
        (10_000_000, [0, 20], 0, "keyed-count-1e7"),
    ] {
        let events = if is_full { full } else { quick } * 1_000_000;
        if events == 0 {
            continue;
        }
        let runs = if is_full { 5 } else { quick_runs };
        let keyed_count = |interval| keyed_count(keys, interval).events(events).runs(runs);
        table.push(keyed_count(None).in_turns(turns));
        let checkpoints = keyed_count(Some("1s")).in_turns(turns);
        table.push(if keys > 1_000_000 {
            // A run takes Flink a minute or more: it writes all keys each time. No bar stands on it.
            checkpoints.rival_runs(2)
        } else if keys == 1_000_000 && !is_full {
            // No bar stands on it, and Flink writes all keys each time.
            checkpoints.alone()
        } else {
            checkpoints
        });
        if is_full {
            // Flink has one under way all the time by then.
            table.push(keyed_count(Some("100ms")).alone());
        }
        if keys == 1_000_000 {
            let events = if is_full { 150 } else { 40 } * 1_000_000;
            // A cost of some per cent, of rates that waver by tens of them on a shared machine.
            let pairs = if is_full { 9 } else { 3 };
            let ours = |workload: Workload| workload.events(events).runs(pairs).in_turns(turns);
            table.extend([None, Some("1s")].map(|cp| ours(keyed_count_for_long(cp))));
            if is_full {
                table.extend([None, Some("1s")].map(|cp| ours(keyed_count_in_part(cp))));
                let one_core = keyed_count_on_one_core().events(full * 1_000_000);
                table.push(one_core.runs(runs).in_turns(turns));
            }
        }
    }
}

/// No memory is set aside for it in these clusters, so that it may not count on some.
const ROCKSDB: &[(&str, &str)] = &[
    ("state.backend.type", "rocksdb"),
    ("state.backend.rocksdb.memory.managed", "false"),
    ("execution.checkpointing.incremental", "true"),
];

fn recoveries(is_full: bool, table: &mut Vec<Workload>) {
    /// At most, of a fault.
    const RIVAL_RUNS: usize = 5;
    /// Of those with many keys, which take Flink minutes.
    const LONG_RIVAL_RUNS: usize = 2;
    let tuned = with_spare(Heartbeats::Tuned);
    if is_full {
        // What restores fastest in Flink, and is slowest otherwise.
        let about = "as without rocksdb, but Flink with RocksDB and incremental checkpoints";
        for (name, fault, runs) in [
            ("kill-1e6-rocksdb", Fault::KillTaskManager, 3),
            ("panic-1e6-rocksdb", Fault::Panic, 3),
        ] {
            let workload = Workload::new(name, about, tuned.clone(), Kind::Recovery(fault));
            table.push(Workload {
                flink_settings: ROCKSDB,
                ..workload.keys(1_000_000).runs(runs)
            });
        }
    }
    for (name, about, shape, fault, keys, runs) in [
        (
            "kill-1e6",
            "kill -9 of a TaskManager to the first record, spare slot, no delay",
            &tuned,
            Fault::KillTaskManager,
            1_000_000,
            [1, 20],
        ),
        (
            "panic-1e6",
            "panic in a task to the first record, no delay",
            &tuned,
            Fault::Panic,
            1_000_000,
            [1, 20],
        ),
        (
            "kill-1e7",
            "kill -9 of a TaskManager to the first record, spare slot, no delay",
            &tuned,
            Fault::KillTaskManager,
            10_000_000,
            [0, 5],
        ),
        (
            "panic-1e7",
            "panic in a task to the first record, no delay",
            &tuned,
            Fault::Panic,
            10_000_000,
            [0, 5],
        ),
        (
            "kill-jobmanager-1e6",
            "kill -9 of the JobManager, started again, to the first record",
            &tuned,
            Fault::KillJobManager,
            1_000_000,
            [1, 5],
        ),
        (
            "hang-1e6",
            "SIGSTOP of a TaskManager to the first record, default heartbeats",
            &with_spare(Heartbeats::Default),
            Fault::HangTaskManager,
            1_000_000,
            [0, 5],
        ),
        (
            "kill-jobmanager-1e7",
            "kill -9 of the JobManager, started again, to the first record",
            &tuned,
            Fault::KillJobManager,
            10_000_000,
            [0, 5],
        ),
        (
            "hang-1e7",
            "SIGSTOP of a TaskManager to the first record, default heartbeats",
            &with_spare(Heartbeats::Default),
            Fault::HangTaskManager,
            10_000_000,
            [0, 5],
        ),
    ] {
        let runs = runs[usize::from(is_full)];
        if runs > 0 {
            let workload = Workload::new(name, about, shape.clone(), Kind::Recovery(fault));
            let workload = workload.keys(keys).runs(runs);
            // The worst of ours has a bar, and a run of ours takes no time.
            let most = match keys {
                10_000_000.. => LONG_RIVAL_RUNS,
                _ => RIVAL_RUNS,
            };
            table.push(workload.rival_runs(runs.min(most)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are for `--only`, and `quick` is a part of `full`.
    #[test]
    fn names_are_unique_and_those_of_quick_are_in_full() {
        let names = |profile| -> Vec<String> {
            let table = table(profile).into_iter();
            table.map(|workload| workload.name).collect()
        };
        let (quick, full) = (names(Profile::Quick), names(Profile::Full));
        for name in &quick {
            assert!(full.contains(name), "{name}");
        }
        let unique: std::collections::BTreeSet<_> = full.iter().collect();
        assert_eq!(unique.len(), full.len());
    }
}
