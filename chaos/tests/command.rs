//! The command `perennial-chaos`, as people and scripts call it: exit codes, files, and that what it says can be pasted.
//!
//! How: the real program runs as a process; one campaign and one run of somebody's own job take real nodes, the rest is simulated or
//! ends before anything starts.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use perennial_actors::fault::CHAOS_KEY;
use perennial_chaos::process::{ClusterPlan, ProcessCluster, binary};
use perennial_chaos::results::Results;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const CHAOS: &str = env!("CARGO_BIN_EXE_perennial-chaos");

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn call(program: &Path, directory: &Path, arguments: &[&str]) -> Said {
    let output: Output = Command::new(program)
        .args(arguments)
        .arg("--dir")
        .arg(directory)
        .env_remove("PERENNIAL_TEST_S3_ENDPOINT")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said {
        code: output.status.code().unwrap(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

fn chaos(directory: &Path, arguments: &[&str]) -> Said {
    call(Path::new(CHAOS), directory, arguments)
}

impl Said {
    #[track_caller]
    fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        let all = format!("{}\n{}", self.out, self.err);
        for word in words {
            assert!(all.contains(word), "`{word}` is not in:\n{all}");
        }
        self
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A program that cargo builds beside the command: an example.
fn example(name: &str) -> PathBuf {
    let path = Path::new(CHAOS).with_file_name("examples").join(name);
    assert!(
        path.is_file(),
        "there is no {}: build it with `cargo build --workspace --examples`",
        path.display()
    );
    path
}

/// Two calls, one run of processes each; the second adds to the first, and the report is of both. Rows that were named are covered.
#[test]
fn a_campaign_adds_up_over_calls_and_leaves_a_report() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path().join("results");
    let nodes = binary();
    let nodes = nodes.to_str().unwrap();
    let campaign = |more: &[&str]| {
        let fixed = [
            "campaign", "--runs", "1", "--store", "disk", "--binary", nodes,
        ];
        chaos(&directory, &[&fixed[..], more].concat())
    };
    let first = campaign(&["--seed", "5", "--only", "P1", "--simulated", "3"]).ends_with(0);
    let line = first.out.lines().next().unwrap_or_default();
    assert!(line.starts_with("repeat: "), "{line}");
    first.says(&["campaign --seed 5", "--only P1", "4 runs: 4 passed"]);
    campaign(&["--only", "P5"])
        .ends_with(2)
        .says(&["--resume", "4 runs"]);
    let second = campaign(&["--resume", "--only", "P5", "--json"]).ends_with(0);

    let reports = Results::read(&directory).unwrap();
    let seeds: Vec<u64> = reports.iter().map(|r| r.plan.seed).collect();
    assert_eq!(seeds.len(), 5);
    assert_eq!(
        (seeds[3], seeds[4]),
        (5, 6),
        "process runs go on with the next seed"
    );
    let json: Value = serde_json::from_str(&second.out).unwrap();
    assert_eq!(json["runs"], 5);
    assert_eq!(
        (&json["process_runs"], &json["failed"]),
        (&2.into(), &0.into())
    );
    let rows = json["rows"].as_array().unwrap();
    let kill = rows.iter().find(|row| row["row"] == "P1").unwrap();
    assert!(kill["struck"].as_u64().unwrap() > 0, "{kill}");
    assert!(kill["process"]["p50_ms"].as_u64().unwrap() > 0, "{kill}");
    assert_eq!(
        serde_json::from_str::<Value>(&text(&directory.join("report.json"))).unwrap(),
        json
    );
    let page = text(&directory.join("report.html"));
    assert!(page.contains("<svg") && page.contains("kill -9 of a TaskManager"));

    // Seen again without a run; a campaign that was to come to everything has not.
    chaos(&directory, &["report"])
        .ends_with(0)
        .says(&["5 runs"]);
    let more = [
        "--resume",
        "--runs",
        "0",
        "--simulated",
        "0",
        "--require-coverage",
    ];
    let start = ["campaign", "--store", "disk", "--binary", nodes];
    chaos(&directory, &[&start[..], &more].concat())
        .ends_with(8)
        .says(&["NOT COVERED: ", "rows are not struck", "--only "]);
}

/// The example knows the job and what it must give; everything else is the command's.
#[test]
fn faults_are_aimed_at_somebodys_own_job() {
    let directory = TempDir::new().unwrap();
    // It looks for it there itself.
    example("own_binary");
    let run = [
        "run",
        "--profile",
        "process",
        "--only",
        "P9",
        "--seed",
        "3",
        "--store",
        "disk",
    ];
    let own = ["--job", "running-totals"];
    call(
        &example("own_job"),
        directory.path(),
        &[&run[..], &own].concat(),
    )
    .ends_with(0)
    .says(&["running-totals", "struck 1.", "pass in", "S1 1"]);
}

/// Its nodes would run on, and the next cluster beside them.
#[test]
fn a_command_that_is_told_to_end_takes_its_nodes_along() {
    let directory = TempDir::new().unwrap();
    let run = [
        "run",
        "--profile",
        "process",
        "--only",
        "P1",
        "--seed",
        "22",
    ];
    let mut run = Command::new(CHAOS)
        .args(run)
        .args(["--store", "disk", "--binary"])
        .arg(binary())
        .arg("--dir")
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(run.stdout.take().unwrap()).lines();
    // Then all nodes run.
    assert!(said.any(|line| line.unwrap().contains("warming up")));
    let nodes = children(run.id());
    assert!(nodes.len() > 1, "{nodes:?}");
    kill_process(Pid::from_child(&run), Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(128 + 15));
    let runs = |node: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{node}/stat"));
        status.is_ok_and(|status| !status.contains(") Z "))
    };
    // 30 seconds in all.
    let have_ended = (0..300).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        !nodes.iter().any(runs)
    });
    assert!(have_ended, "{nodes:?}");
}

/// Processes that a process has started, by any of its threads.
fn children(process: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let lists = tasks.map(|task| text(&task.unwrap().path().join("children")));
    let of = |list: String| -> Vec<u32> { list.split_whitespace().flat_map(str::parse).collect() };
    lists.flat_map(of).collect()
}

/// By control message into a cluster that obeys, one that does not, and none.
#[test]
fn one_fault_is_injected_into_a_running_cluster() {
    let directory = TempDir::new().unwrap();
    let inject = |cluster: &ProcessCluster, fault: &[&str]| {
        let secret = format!("security.cluster-secret={}", cluster.secret());
        let to = ["inject", "-m", cluster.address(), "-D", &secret];
        chaos(directory.path(), &[&to[..], fault].concat())
    };
    let plan = || ClusterPlan::new(binary()).task_managers(1);
    {
        let available = ("high-availability.type".to_owned(), "file".to_owned());
        let plan = plan().set(CHAOS_KEY, true).set(&available.0, &available.1);
        let cluster = ProcessCluster::start(plan).unwrap();
        inject(
            &cluster,
            &["clock", "--taskmanager", "taskmanager-1", "-3600000"],
        )
        .ends_with(0)
        .says(&["struck: node taskmanager-1"]);
        // Who leads is found in the store.
        let mut settings = cluster.storage().settings();
        let secret = cluster.secret().to_owned();
        settings.extend([available, ("security.cluster-secret".to_owned(), secret)]);
        let define = |(key, value): &(String, String)| format!("-D{key}={value}");
        let definitions: Vec<_> = settings.iter().map(define).collect();
        let definitions = definitions.iter().map(String::as_str);
        let arguments = ["inject"].into_iter().chain(definitions);
        let arguments: Vec<_> = arguments.chain(["clock", "5"]).collect();
        chaos(directory.path(), &arguments)
            .ends_with(0)
            .says(&["struck: the JobManager's node"]);
        inject(&cluster, &["user-panic", "--job", "nobody"])
            .ends_with(2)
            .says(&["no job is named `nobody`"]);
    }
    {
        let cluster = ProcessCluster::start(plan()).unwrap();
        inject(&cluster, &["panic", "job-manager"])
            .ends_with(1)
            .says(&["chaos.enabled: true"]);
        let stranger = ["inject", "-m", cluster.address(), "clock", "5"];
        chaos(directory.path(), &stranger)
            .ends_with(4)
            .says(&["is not a JobManager for this client"]);
    }
    chaos(
        directory.path(),
        &["inject", "-D", "chaos.enable=true", "clock", "5"],
    )
    .ends_with(4)
    .says(&["chaos.enabled?"]);
    chaos(
        directory.path(),
        &["inject", "-m", "127.0.0.1:1", "clock", "5"],
    )
    .ends_with(3)
    .says(&["127.0.0.1:1", "--jobmanager"]);
}

/// A broken engine fails a seed; its plan shrinks to a story, which fails again, and holds with the engine that is whole.
#[test]
fn a_failing_seed_is_kept_shrunk_to_a_story_and_replayed() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    let broken = ["--sabotage", "deliver-twice"];
    let failed = chaos(here, &["simulate", "--seeds", "0..4", broken[0], broken[1]]).ends_with(1);
    let line = failed.out.lines().next().unwrap_or_default();
    assert!(
        line.ends_with("simulate --seeds 0..4 --sabotage deliver-twice"),
        "{line}"
    );
    let kept = std::fs::read_dir(here.join("failed")).unwrap();
    let plan = kept
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "json"))
        .unwrap();
    assert!(plan.with_extension("log").is_file(), "its trace");
    let plan = plan.to_str().unwrap();
    chaos(
        here,
        &["shrink", plan, "--tries", "12", broken[0], broken[1]],
    )
    .ends_with(0)
    .says(&["is broken:", "replay: "]);
    let small = Path::new(plan).with_extension("small.json");
    assert!(text(&small.with_extension("txt")).contains("is broken:"));
    let small = small.to_str().unwrap();
    chaos(here, &["replay", small, broken[0], broken[1]]).ends_with(1);
    chaos(here, &["replay", small]).ends_with(0);
    chaos(here, &["shrink", small])
        .ends_with(7)
        .says(&["nothing to shrink"]);
}

/// Nothing starts; the words say what to do instead.
#[test]
fn wrong_calls_say_what_to_do() {
    let directory = TempDir::new().unwrap();
    let here = directory.path();
    for (arguments, code, word) in [
        (
            &["run", "--seed", "1", "--job", "mine"][..],
            2,
            "abnormal-detection",
        ),
        (&["run", "--seed", "1", "--only", "O6"], 2, "`list`"),
        (&["run", "--seed", "1", "--only", "X1"], 2, "P1..C4"),
        (
            &["run", "--seed", "1", "--store", "s3"],
            2,
            "scripts/s3-server run",
        ),
        (
            &["run", "--seed", "1", "--store", "disk", "--binary", "/none"],
            2,
            "/none",
        ),
        (&["campaign", "--minutes=-1"], 2, "--minutes"),
        (&["simulate", "--seeds", "9..3"], 2, "holds no seed"),
        (&["replay", "/no/plan.json"], 2, "--plan"),
        (&["report"], 1, "campaign"),
    ] {
        chaos(here, arguments).ends_with(code).says(&[word]);
    }
    let plan = chaos(here, &["run", "--seed", "1", "--plan"]).ends_with(0);
    let plan: Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!(
        (&plan["seed"], &plan["profile"]),
        (&1.into(), &"mixed".into())
    );
    chaos(here, &["list"]).ends_with(0).says(&[
        "P1",
        "C4",
        "Not struck by plans, and why:",
        "later: ",
    ]);
    chaos(here, &["list", "O4"]).ends_with(0).says(&[
        "expected: ",
        "checked: S1",
        "tests/savepoints.rs",
    ]);
    chaos(here, &["--help"])
        .ends_with(0)
        .says(&["Exit codes", "inject"]);
}
