//! Measures what the README shows: `cargo run --release -p perennial-chaos --example figures -- target/release/perennial`.
//!
//! Every figure stands beside a bare loop or comes as median and maximum of several runs: the machine is shared, so compare ratios.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program for people that measures real time"
)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use perennial::connector::mix;
use perennial::jobs::keyed_count::event;
use perennial_actors::model::JobState;
use perennial_chaos::process::{ClusterPlan, ProcessCluster};

const DEADLINE: Duration = Duration::from_secs(300);

#[derive(Default)]
struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _bytes: &[u8]) {}
    fn write_u64(&mut self, n: u64) {
        self.0 = mix(n);
    }
}

/// The same work without an engine: two threads, each with half of the keys.
fn bare(events: u64, keys: u64) -> f64 {
    let began = Instant::now();
    let threads: Vec<_> = (0..2)
        .map(|part| {
            std::thread::spawn(move || {
                let mut counts: HashMap<u64, u64, BuildHasherDefault<MixHasher>> =
                    HashMap::default();
                let mut emitted = 0_u64;
                for sequence in (part..events).step_by(2) {
                    let event = event(sequence, keys);
                    let count = counts.entry((event.user & !1) | part).or_insert(0);
                    *count += 1;
                    if event.is_abnormal {
                        *count += 1 << 32;
                        emitted += u64::from((*count >> 32).is_multiple_of(3));
                    }
                }
                emitted
            })
        })
        .collect();
    let emitted: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    std::hint::black_box(emitted);
    events as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn median(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() - 1])
}

fn throughput(
    binary: &str,
    keys: u64,
    events: u64,
    interval: Option<&str>,
) -> anyhow::Result<(f64, u64)> {
    let mut plan = ClusterPlan::new(binary).task_managers(1).slots(2);
    plan = plan.set("taskmanager.memory.managed.size", "4g");
    let mut cluster = ProcessCluster::start(plan)?;
    let (keys, events_text) = (keys.to_string(), events.to_string());
    let mut settings = vec![("parallelism.default", "2")];
    settings.extend(interval.map(|i| ("execution.checkpointing.interval", i)));
    let job = cluster.submit(
        &settings,
        &["keyed-count", "--keys", &keys, "--events", &events_text],
    )?;
    let status = cluster.wait_for_state(&job, JobState::Finished, DEADLINE);
    let pause = status
        .checkpoints
        .iter()
        .map(|c| c.longest_pause_us)
        .max()
        .unwrap_or(0);
    Ok((
        events as f64 / status.summary.duration_ms as f64 / 1e3,
        pause,
    ))
}

fn now_ms() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
        * 1e3
}

/// kill -9 of a TaskManager with a spare one there, to the first record after recovery, in ms.
fn recovery(binary: &str, keys: u64) -> anyhow::Result<f64> {
    let plan = ClusterPlan::new(binary)
        .task_managers(3)
        .slots(1)
        .set("restart-strategy.type", "fixed-delay")
        .set("restart-strategy.fixed-delay.delay", "0ms")
        .set("restart-strategy.fixed-delay.attempts", 100);
    let mut cluster = ProcessCluster::start(plan)?;
    let prefill = (keys * 10).to_string();
    let keys = keys.to_string();
    let job = cluster.submit(
        &[
            ("parallelism.default", "2"),
            ("execution.checkpointing.interval", "1s"),
        ],
        &[
            "keyed-count",
            "--keys",
            &keys,
            "--prefill",
            &prefill,
            "--rate",
            "25000",
        ],
    )?;
    cluster.wait_until_running(&job, DEADLINE);
    let wanted: u64 = keys.parse::<u64>()? * 99 / 100;
    cluster.wait_until(
        "every key is in the state and in a checkpoint",
        DEADLINE,
        |cluster| {
            let status = cluster.status(&job)?;
            let entries: u64 = status
                .subtasks
                .iter()
                .map(|t| t.counters.state_entries)
                .sum();
            let records: u64 = status.subtasks.iter().map(|t| t.counters.records_in).sum();
            Ok((entries >= wanted && records >= wanted * 10).then_some(()))
        },
    );
    let newest = cluster.wait_for_checkpoint(&job, 0, DEADLINE);
    cluster.wait_for_checkpoint(&job, newest + 1, DEADLINE);
    let status = cluster.status(&job)?;
    let victim = status
        .subtasks
        .iter()
        .find_map(|t| t.task_manager.clone())
        .unwrap()
        .0;
    let killed = now_ms();
    cluster.kill(&victim)?;
    let record = cluster.wait_until("the recovery's first record", DEADLINE, |cluster| {
        let status = cluster.status(&job)?;
        let record = status.recoveries.first().cloned();
        Ok(record.filter(|r| r.phases.total_ms.is_some()))
    });
    Ok(record.detected_ms as f64 + record.phases.total_ms.unwrap_or(0.0) - killed)
}

/// From the start of a process that is the whole cluster to all tasks running, in ms.
fn start(binary: &str) -> anyhow::Result<f64> {
    let directory = tempfile::tempdir()?;
    let began = Instant::now();
    let mut child = Command::new(binary)
        .args(["--log", "info", "-D"])
        .arg(format!(
            "execution.checkpointing.dir=file://{}",
            directory.path().display()
        ))
        .args([
            "run",
            "abnormal-detection",
            "--local",
            "--events",
            "3000",
            "--interval-ms",
            "0",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut running = None;
    for line in lines {
        if running.is_none() && line?.contains("all tasks run") {
            running = Some(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    child.wait()?;
    running.ok_or_else(|| anyhow::anyhow!("the job did not run"))
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kb = status.lines().find_map(|l| {
        l.strip_prefix("VmRSS:")?
            .split_whitespace()
            .next()?
            .parse::<f64>()
            .ok()
    });
    kb.unwrap_or(0.0) / 1e3
}

fn main() -> anyhow::Result<()> {
    let binary = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "target/release/perennial".into());
    let runs: usize = std::env::args().nth(2).map_or(Ok(10), |n| n.parse())?;
    println!(
        "binary: {:.1} MB",
        std::fs::metadata(Path::new(&binary))?.len() as f64 / 1e6
    );
    {
        let mut cluster = ProcessCluster::start(ClusterPlan::new(&binary).task_managers(1))?;
        let mut sizes = Vec::new();
        for name in ["jobmanager-1".to_owned()]
            .into_iter()
            .chain(cluster.task_manager_names())
        {
            sizes.push(resident_mb(cluster.node_mut(&name)?.pid()));
        }
        println!(
            "idle, resident: JobManager {:.1} MB, TaskManager {:.1} MB",
            sizes[0], sizes[1]
        );
    }
    let mut starts = (0..runs)
        .map(|_| start(&binary))
        .collect::<Result<Vec<_>, _>>()?;
    let (middle, most) = median(&mut starts);
    println!(
        "process start to all tasks running: median {middle:.0} ms, max {most:.0} ms of {runs}"
    );
    for (keys, events) in [
        (1_000, 200_000_000),
        (1_000_000, 100_000_000),
        (10_000_000, 60_000_000),
    ] {
        for interval in [None, Some("1s")] {
            let loop_rate = bare(events, keys);
            let (rate, pause) = throughput(&binary, keys, events, interval)?;
            println!(
                "keyed-count {keys} keys, {}: {rate:.1} M events/s, bare loop {loop_rate:.1}, ratio {:.2}, longest pause {:.1} ms",
                interval.map_or("no checkpoints".to_owned(), |i| format!(
                    "checkpoint every {i}"
                )),
                rate / loop_rate,
                pause as f64 / 1e3
            );
        }
    }
    let mut times = (0..runs)
        .map(|_| recovery(&binary, 1_000_000))
        .collect::<Result<Vec<_>, _>>()?;
    println!("kill -9 to first record, 1 000 000 keys, spare slot, each run: {times:.0?}");
    let (middle, most) = median(&mut times);
    println!("kill -9 to first record: median {middle:.0} ms, max {most:.0} ms of {runs}");
    Ok(())
}
