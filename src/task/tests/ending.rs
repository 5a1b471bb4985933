//! How attempts end, and what they leave: whole tasks on threads of their own, started as a TaskManager starts them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use perennial_actors::model::message::{PreparedOutput, TaskOutcome};
use perennial_actors::model::{BuildId, TaskDeployment};
use perennial_actors::{StartedTask, TaskEvent, TaskRunner};
use perennial_config::{JobSettings, Settings};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::api::{Arguments, JobRegistry, Submission};
use crate::batch::{Batch, StreamElement};
use crate::connector::{FileSink, Sink, SinkWriter, SubtaskContext, read_committed};
use crate::error::{FunctionError, FunctionResult};
use crate::operator::{KeyedProcessFunction, OpenContext, ProcessContext, WatermarkStrategy};
use crate::state::ValueState;
use crate::storage::Stores;
use crate::task::keeper::lock;
use crate::task::{LocalTaskRunner, RunnerOptions, ThreadDriver};

/// Counts per key; its open may fail.
#[derive(Clone)]
struct Count {
    is_open_bad: Arc<AtomicBool>,
    state: Option<ValueState<u64>>,
}

impl KeyedProcessFunction<u64, u64> for Count {
    type Out = u64;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        if self.is_open_bad.load(Ordering::SeqCst) {
            return Err(FunctionError::new("bad open"));
        }
        self.state = Some(cx.value_state("count")?);
        Ok(())
    }

    fn process(&mut self, _: u64, _: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        Ok(())
    }
}

/// Panics in its close.
struct BadClose;

impl Sink<u64> for BadClose {
    fn writer(&self, _: &SubtaskContext) -> FunctionResult<Box<dyn SinkWriter<u64>>> {
        Ok(Box::new(Self))
    }
}

impl SinkWriter<u64> for BadClose {
    fn write(&mut self, _: &mut Batch<u64>) -> FunctionResult {
        Ok(())
    }
    fn close(&mut self) -> FunctionResult {
        panic!("bad close");
    }
}

/// A TaskManager's runner, and the one task of vertex 1 that the tests start on it.
struct Node {
    runner: LocalTaskRunner,
    channels: Channels,
    registry: JobRegistry,
    is_open_bad: Arc<AtomicBool>,
}

impl Node {
    async fn new() -> Self {
        let is_open_bad = Arc::new(AtomicBool::new(false));
        let count = Count {
            is_open_bad: is_open_bad.clone(),
            state: None,
        };
        let registry = JobRegistry::new().job("job", "", &[], move |env, _| {
            let numbers = crate::connector::GeneratorSource::new(Some(1), |c| (c.index, None));
            let counted = env
                .from_source(numbers, WatermarkStrategy::no_watermarks(), "numbers")
                .key_by(|n: &u64| *n)
                .process(count.clone());
            let _sink = counted.sink_to(BadClose).uid("sink");
            Ok(())
        });
        let channels = Channels::new().await;
        let clock = Clock::system();
        let s3 = Settings::default().cluster.s3;
        let entropy = perennial_actors::entropy::Entropy::seeded(1);
        let runner = LocalTaskRunner::new(RunnerOptions {
            registry: registry.clone(),
            build: BuildId("b".into()),
            instance: InstanceId(1),
            exchange: channels.0.clone(),
            stores: Arc::new(Stores::new(s3, entropy)),
            driver: Arc::new(ThreadDriver::new(clock)),
            handle: Handle::current(),
            clock,
            log_bytes_max: 1 << 20,
            faults: perennial_actors::fault::FaultPoints::default(),
        });
        Self {
            runner,
            channels,
            registry,
            is_open_bad,
        }
    }

    /// The task, once it runs or has failed to, with everything that it says.
    fn start(&self, number: u32) -> (StartedTask, mpsc::UnboundedReceiver<TaskEvent>) {
        let submission = Submission {
            job: JobId(7),
            build: BuildId("b".into()),
            start_from: None,
        };
        let settings = |_: &[_]| Ok(JobSettings::default());
        let graph = self
            .registry
            .graph("job", &Arguments::default(), settings, submission)
            .unwrap();
        let deployment = TaskDeployment {
            attempt: ExecutionAttemptId {
                attempt: Attempt(number),
                ..attempt(1, 0)
            },
            parallelism: 1,
            max_parallelism: 128,
            inputs: vec![self.channels.edge(0, 0, 0..1)],
            outputs: Vec::new(),
            restore: None,
            checkpoint_directory: "memory://ending/".into(),
        };
        let (told, events) = mpsc::unbounded_channel();
        let events_of = Arc::new(move |event| {
            let _gone = told.send(event);
        });
        let started = self.runner.start(Arc::new(graph), deployment, events_of);
        (started, events)
    }

    async fn run_and_cancel(&self, number: u32) -> TaskOutcome {
        let (StartedTask { task, end }, mut events) = self.start(number);
        while events.recv().await.unwrap() != TaskEvent::Running {}
        task.control(TaskControl::Cancel);
        end.await
    }

    /// What is kept for the attempt after this one.
    fn kept(&self, number: u32) -> Option<Vec<bool>> {
        let next = ExecutionAttemptId {
            attempt: Attempt(number + 1),
            ..attempt(1, 0)
        };
        let kept = lock(&self.runner.kept).take(next)?;
        Some(kept.iter().map(Option::is_some).collect())
    }
}

/// Tables that no operator has put there are no state: an attempt that inherited them would begin without any, and say that it went
/// back in place.
#[tokio::test]
async fn an_attempt_that_fails_before_its_operators_have_state_leaves_none() {
    let node = Node::new().await;
    node.is_open_bad.store(true, Ordering::SeqCst);
    let (StartedTask { end, .. }, _events) = node.start(1);
    let TaskOutcome::Failed(failure) = end.await else {
        panic!("it is to fail");
    };
    assert!(failure.to_string().contains("bad open"), "{failure}");
    assert_eq!(node.kept(1), None);
    // One that was open does leave it.
    node.is_open_bad.store(false, Ordering::SeqCst);
    node.run_and_cancel(2).await;
    assert_eq!(node.kept(2), Some(vec![true, false]));
}

/// A close is user code too: it hides neither the outcome nor the state.
#[tokio::test]
async fn a_panic_while_closing_hides_neither_outcome_nor_state() {
    let node = Node::new().await;
    assert_eq!(node.run_and_cancel(1).await, TaskOutcome::Canceled);
    assert_eq!(node.kept(1), Some(vec![true, false]));
}

/// Output of one attempt, prepared for three snapshots with a record each, and a record behind them.
struct Written {
    directory: tempfile::TempDir,
    bench: Bench,
}

impl Written {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let channels = Channels::new().await;
        let (mut outputs, gate) = channels.inputs::<u64>(1);
        let lines = FileSink::<u64, _>::lines(directory.path());
        let mut bench = Bench::new(input(gate, sink(0, lines)), 1);
        for n in 1..=4 {
            let (values, timestamps) = (vec![n], Vec::new());
            outputs[0].push(StreamElement::Batch(Batch { values, timestamps }));
            let kind = match n {
                2 => SnapshotKind::Savepoint,
                _ => SnapshotKind::Checkpoint,
            };
            if n < 4 {
                let barrier = CheckpointBarrier { kind, ..barrier(n) };
                outputs[0].push(StreamElement::Barrier(barrier));
            }
            outputs[0].flush().unwrap();
            bench.run();
        }
        assert_eq!(bench.snapshots.taken(), [1, 2, 3]);
        Self { directory, bench }
    }

    /// Ends the attempt as a panic does, and the job with this as the last completed checkpoint.
    fn end(mut self, completed: Option<u64>) -> (Vec<String>, Vec<PathBuf>) {
        let leftovers = self.bench.task.leftovers();
        drop(self.bench);
        for leftover in leftovers {
            leftover.settle(completed.map(CheckpointId)).unwrap();
        }
        let path = self.directory.path();
        (read_committed(path).unwrap(), hidden(path))
    }
}

fn hidden(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into());
    files
        .filter(|name: &PathBuf| name.to_string_lossy().starts_with('.'))
        .collect()
}

/// The record of checkpoint 3 was written, and the task ended before it heard of it.
#[tokio::test]
async fn output_of_the_last_completed_checkpoint_becomes_visible_at_the_end_of_the_job() {
    let (visible, hidden) = Written::new().await.end(Some(3));
    assert_eq!(visible, ["1", "2", "3"]);
    assert!(hidden.is_empty(), "what came after it is void: {hidden:?}");
}

/// Somebody may start from the savepoint, which commits what was prepared for it.
#[tokio::test]
async fn output_of_given_up_checkpoints_is_removed_and_that_of_savepoints_stays() {
    for (completed, expected) in [(Some(1), vec!["1"]), (None, vec![])] {
        let (visible, hidden) = Written::new().await.end(completed);
        assert_eq!(visible, expected);
        let [savepoint] = &hidden[..] else {
            panic!("{hidden:?}");
        };
        assert!(savepoint.to_string_lossy().ends_with(".savepoint"));
    }
}

/// A later attempt took part in the last checkpoint; what this one had prepared was committed by it, or is void.
#[tokio::test]
async fn an_attempt_without_a_part_in_the_last_checkpoint_commits_nothing() {
    let (visible, _) = Written::new().await.end(Some(9));
    assert_eq!(visible, [""; 0]);
}

/// Its tasks are gone, and the job's end is told: the output is settled before the answer.
#[tokio::test]
async fn a_released_job_answers_once_its_output_is_settled() {
    let node = Node::new().await;
    let written = Written::new().await;
    let path = written.directory.path().to_owned();
    let Written {
        directory,
        mut bench,
    } = written;
    let leftovers = bench.task.leftovers();
    {
        let mut keeper = lock(&node.runner.kept);
        keeper.begin(attempt(1, 0));
        keeper.keep(attempt(1, 0), vec![None], leftovers);
    }
    for _ in 0..2 {
        let (done, wait) = oneshot::channel();
        let completed = Some(CheckpointId(3));
        let done = Box::new(move || done.send(()).unwrap());
        let output = PreparedOutput::Settle { completed };
        node.runner.release_job(JobId(7), output, done);
        wait.await.unwrap();
        assert_eq!(read_committed(&path).unwrap(), ["1", "2", "3"]);
    }
    drop(directory);
}
