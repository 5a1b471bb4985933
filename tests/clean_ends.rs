//! A job leaves nothing behind: no thread, no file descriptor, no file. A node that is asked to end does so with exit code 0.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use perennial_actors::model::JobState;
use perennial_chaos::process::resources::{files_below, open_files, task_threads, threads};
use perennial_chaos::process::{ClusterPlan, ProcessCluster, binary};
use perennial_chaos::seed::Seed;
use rustix::process::{Pid, Signal, kill_process};

const LONG: Duration = Duration::from_secs(30);

/// All the nodes' threads and files are as they were.
fn wait_until_clean(
    cluster: &mut ProcessCluster,
    pids: &[(String, u32)],
    baseline: &[Vec<String>],
    after: &str,
) {
    let what = format!("nothing left after {after}");
    cluster.wait_until(&what, LONG, |_| {
        for ((name, pid), before) in pids.iter().zip(baseline) {
            let (tasks, files) = (task_threads(*pid), open_files(*pid));
            if !tasks.is_empty() || files.len() > before.len() {
                anyhow::bail!("{name}: threads {tasks:?}, open {files:?}, before {before:?}");
            }
        }
        Ok(Some(()))
    });
}

#[test]
fn a_job_leaves_no_thread_socket_or_file_behind_however_it_ends() {
    let seed = Seed::announce(
        "clean_ends",
        "a_job_leaves_no_thread_socket_or_file_behind_however_it_ends",
    );
    let plan = ClusterPlan::new(binary())
        .task_managers(2)
        .slots(2)
        .set("execution.checkpointing.interval", "100ms")
        .set("execution.checkpointing.data-inline-threshold", "0")
        .set("restart-strategy.type", "none");
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let names: Vec<String> = ["jobmanager-1".to_owned()]
        .into_iter()
        .chain(cluster.task_manager_names())
        .collect();
    let pids: Vec<(String, u32)> = names
        .into_iter()
        .map(|name| (name.clone(), cluster.node_mut(&name).unwrap().pid()))
        .collect();
    let baseline: Vec<Vec<String>> = pids.iter().map(|(_, pid)| open_files(*pid)).collect();

    let output = cluster.path("output");
    let text = output.to_string_lossy().into_owned();
    let run = |cluster: &ProcessCluster, more: &[&str]| {
        let keyed_count = [
            "keyed-count",
            "-p",
            "4",
            "--rate",
            "1000",
            "--output",
            &text,
        ];
        cluster.submit(&[], &[&keyed_count, more].concat()).unwrap()
    };

    let job = run(&cluster, &["--events", "3000"]);
    cluster.wait_until_running(&job, LONG);
    let is_seen = pids.iter().any(|(_, pid)| !task_threads(*pid).is_empty());
    assert!(
        is_seen,
        "no task thread was recognised while tasks ran: {:?}",
        threads(pids[1].1)
    );
    cluster.wait_for_state(&job, JobState::Finished, LONG);
    wait_until_clean(&mut cluster, &pids, &baseline, "a finished job");

    let endless = run(&cluster, &[]);
    cluster.wait_for_checkpoint(&endless, 0, LONG);
    let _: serde_json::Value = cluster.ask(&["cancel", &endless]).unwrap();
    wait_until_clean(&mut cluster, &pids, &baseline, "a cancelled job");

    // A TaskManager's death fails the job, which has no restarts. The dead node's files are its successor's business.
    let failing = run(&cluster, &[]);
    cluster.wait_for_checkpoint(&failing, 0, LONG);
    let victim = seed.take(&mut cluster.task_manager_names());
    cluster.kill(&victim).unwrap();
    cluster.wait_for_state(&failing, JobState::Failed, LONG);
    let alive: Vec<(String, u32)> = pids
        .iter()
        .filter(|(name, _)| *name != victim)
        .cloned()
        .collect();
    let before: Vec<Vec<String>> = pids
        .iter()
        .zip(&baseline)
        .filter(|((name, _), _)| *name != victim)
        .map(|(_, files)| files.clone())
        .collect();
    wait_until_clean(&mut cluster, &alive, &before, "a failed job");

    // The store keeps no state of a finished or cancelled job, the output directory nothing hidden: what belongs to the last completed
    // checkpoint was committed, the rest removed. (What the killed TaskManager left of the failed one would need a restore.)
    let store = cluster.storage().uri("checkpoints");
    let store = Path::new(store.strip_prefix("file://").unwrap()).to_owned();
    for job in [&job, &endless] {
        cluster.wait_until("an empty store", LONG, |_| {
            let state: Vec<String> = files_below(&store.join(job))
                .into_iter()
                .filter(|path| path.contains("/shared/"))
                .collect();
            anyhow::ensure!(state.is_empty(), "{state:?}");
            Ok(Some(()))
        });
    }
    let hidden: Vec<String> = files_below(&output)
        .into_iter()
        .filter(|path| {
            path.contains("/.") && [&job, &endless].iter().any(|job| path.contains(*job))
        })
        .collect();
    assert!(hidden.is_empty(), "uncommitted output is left: {hidden:?}");
    for node in ["work", "tmp"] {
        let left = files_below(&cluster.path(node));
        assert!(left.is_empty(), "nodes left files: {left:?}");
    }
}

#[test]
fn sigterm_ends_every_role_with_exit_code_0() {
    let _seed = Seed::announce("clean_ends", "sigterm_ends_every_role_with_exit_code_0");
    let plan = ClusterPlan::new(binary()).task_managers(2);
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let job = cluster
        .submit(&[], &["keyed-count", "-p", "2", "--rate", "100"])
        .unwrap();
    cluster.wait_until_running(&job, LONG);
    for name in ["taskmanager-1", "taskmanager-2", "jobmanager-1"] {
        let code = cluster.terminate(name, Duration::from_secs(15)).unwrap();
        assert_eq!(code, 0, "{name}");
    }
}

#[test]
fn sigterm_ends_a_whole_local_cluster_and_its_processes_with_exit_code_0() {
    for more in [&[][..], &["--processes"]] {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let settings = [
            "-D".to_owned(),
            format!(
                "execution.checkpointing.dir=file://{}",
                directory.path().display()
            ),
            "-D".to_owned(),
            format!("jobmanager.rpc.port={port}"),
        ];
        let mut start = Command::new(binary())
            .args(&settings)
            .args(["start", "--taskmanagers", "2"])
            .args(more)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let perennial = |arguments: &[&str]| {
            let mut command = Command::new(binary());
            command
                .args(&settings)
                .args(["--jobmanager", &address, "--json"])
                .args(arguments);
            command.output().unwrap()
        };
        let came_up = wait(|| {
            let nodes: Option<serde_json::Value> =
                serde_json::from_slice(&perennial(&["list", "--taskmanagers"]).stdout).ok();
            nodes.is_some_and(|nodes| nodes.as_array().is_some_and(|n| n.len() == 2))
        });
        let terminated = kill_process(Pid::from_child(&start), Signal::TERM);
        let ended = wait(|| start.try_wait().unwrap().is_some());
        if !ended {
            start.kill().unwrap();
        }
        let code = start.wait().unwrap().code();
        assert!(
            came_up && terminated.is_ok(),
            "the cluster did not come up: {more:?}"
        );
        assert_eq!((ended, code), (true, Some(0)), "{more:?}");
        // Its child processes went with it.
        assert!(
            wait(|| perennial(&["list"]).status.code() == Some(3)),
            "{more:?}"
        );
    }
}

/// Ctrl-C and `kill`: the job is cancelled, the cluster ends, and what is left in the store is the job's own records.
#[test]
fn a_signal_ends_a_local_run_with_its_job_and_leaves_nothing_behind() {
    for signal in ["-INT", "-TERM"] {
        let directory = tempfile::tempdir().unwrap();
        let (store, output) = (directory.path().join("store"), directory.path().join("out"));
        let log = directory.path().join("log");
        let mut run = Command::new(env!("CARGO_BIN_EXE_perennial"))
            .args([
                "-D",
                &format!("execution.checkpointing.dir=file://{}", store.display()),
            ])
            .args(["-D", "execution.checkpointing.interval=100ms"])
            .args(["run", "keyed-count", "--local", "-p", "2", "--rate", "1000"])
            .args(["--output", &output.to_string_lossy()])
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let said = || std::fs::read_to_string(&log).unwrap();
        let is_running = wait(|| said().contains("| checkpoint 3"));
        // As a writer leaves it that was killed half-way.
        let said_so_far = said();
        let (_, job) = said_so_far.split_once(" as job ").unwrap();
        let shared = store.join(&job[..32]).join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        let unfinished = shared.join(".tmp-00000001-0000000000000001-part");
        std::fs::write(unfinished, b"half").unwrap();
        let children = format!("/proc/{0}/task/{0}/children", run.id());
        let children = std::fs::read_to_string(children).unwrap();
        let asked = Command::new("kill")
            .args([signal, &run.id().to_string()])
            .status()
            .unwrap();
        let ended = wait(|| run.try_wait().unwrap().is_some());
        if !ended {
            run.kill().unwrap();
        }
        let code = run.wait().unwrap().code();
        assert!(is_running && asked.success(), "{signal}: {}", said());
        assert_eq!((ended, code), (true, Some(0)), "{signal}: {}", said());
        assert!(said().contains("is CANCELED"), "{signal}: {}", said());
        assert_eq!(children, "", "{signal}: it had processes of its own");
        let left: Vec<String> = files_below(&store)
            .into_iter()
            .filter(|path| !path.ends_with("/_metadata") && !path.ends_with("/latest"))
            .collect();
        assert!(left.is_empty(), "{signal}: {left:#?}");
    }
}

fn wait(mut condition: impl FnMut() -> bool) -> bool {
    // 30 seconds in all.
    for _ in 0..300 {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}
