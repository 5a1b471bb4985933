//! The crash matrix runs with real files: a crash is a writer that is dropped without `close`, as after kill -9.

use std::io;

use super::super::test_support::context;
use super::*;
use crate::error::FunctionError;

type Writer = Box<dyn SinkWriter<String>>;

struct Job {
    directory: tempfile::TempDir,
}

impl Job {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("deep/output")
    }

    /// A writer of a new attempt that has recovered.
    fn writer(
        &self,
        subtask: u32,
        parallelism: u32,
        attempt: u32,
        restored: &[Committable],
    ) -> Writer {
        let sink = FileSink::lines(self.output());
        let mut writer = sink
            .writer(&context(subtask, parallelism, 1, attempt))
            .unwrap();
        writer.recover(restored).unwrap();
        writer
    }

    fn visible(&self) -> Vec<String> {
        read_committed(self.output()).unwrap()
    }

    fn hidden(&self) -> usize {
        let entries = fs::read_dir(self.output()).unwrap();
        entries
            .filter(|e| {
                let name = e.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with('.')
            })
            .count()
    }
}

fn batch(records: &[&str]) -> Batch<String> {
    let mut batch = Batch::default();
    for record in records {
        batch.push((*record).to_owned(), None);
    }
    batch
}

fn write(writer: &mut Writer, records: &[&str]) {
    let mut batch = batch(records);
    writer.write(&mut batch).unwrap();
    assert!(batch.is_empty());
}

fn prepare(writer: &mut Writer, checkpoint: u64) -> Vec<Committable> {
    let checkpoint = CheckpointId(checkpoint);
    let bytes = writer.prepare_commit(checkpoint).unwrap();
    bytes
        .map(|bytes| Committable { checkpoint, bytes })
        .into_iter()
        .collect()
}

fn commit(writer: &mut Writer, committables: &[Committable]) {
    for committable in committables {
        writer.commit(committable).unwrap();
    }
}

fn cause(error: &FunctionError) -> &FileSinkError {
    error.source().downcast_ref().unwrap()
}

#[test]
fn lines_are_visible_only_after_their_commit() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a", "b"]);
    writer.flush().unwrap();
    assert_eq!(job.visible(), [""; 0]);
    let first = prepare(&mut writer, 1);
    write(&mut writer, &["c"]);
    assert_eq!(job.visible(), [""; 0]);
    commit(&mut writer, &first);
    assert_eq!(job.visible(), ["a", "b"]);
    let second = prepare(&mut writer, 2);
    commit(&mut writer, &second);
    assert_eq!(job.visible(), ["a", "b", "c"]);
    assert_eq!(job.hidden(), 0);
}

#[test]
fn nothing_written_makes_no_file() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &[]);
    assert_eq!(prepare(&mut writer, 1), []);
    writer.close().unwrap();
    assert_eq!(fs::read_dir(job.output()).unwrap().count(), 0);
}

#[test]
fn a_crash_before_prepare_leaves_nothing() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    // More than the buffer, so that bytes are on disk.
    let long = "x".repeat(WRITE_BUFFER_MAX);
    write(&mut writer, &["a", &long]);
    drop(writer);
    assert_eq!(job.hidden(), 1);

    let mut writer = job.writer(0, 1, 2, &[]);
    assert_eq!(job.hidden(), 0);
    write(&mut writer, &["a", "b"]);
    let prepared = prepare(&mut writer, 1);
    commit(&mut writer, &prepared);
    assert_eq!(job.visible(), ["a", "b"]);
}

#[test]
fn a_crash_between_prepare_and_commit_loses_nothing_when_the_checkpoint_completed() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let restored = prepare(&mut writer, 1);
    write(&mut writer, &["replayed"]);
    drop(writer);

    let mut writer = job.writer(0, 1, 2, &restored);
    assert_eq!(job.hidden(), 1, "the prepared one");
    commit(&mut writer, &restored);
    write(&mut writer, &["replayed"]);
    let next = prepare(&mut writer, 2);
    commit(&mut writer, &next);
    assert_eq!(job.visible(), ["a", "replayed"]);
    assert_eq!(job.hidden(), 0);
}

#[test]
fn a_crash_between_prepare_and_commit_repeats_nothing_when_the_checkpoint_failed() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let completed = prepare(&mut writer, 1);
    commit(&mut writer, &completed);
    write(&mut writer, &["b"]);
    let _never_completed = prepare(&mut writer, 2);
    drop(writer);

    let mut writer = job.writer(0, 1, 2, &completed);
    commit(&mut writer, &completed);
    assert_eq!((job.visible(), job.hidden()), (vec!["a".to_owned()], 0));
    write(&mut writer, &["b"]);
    let next = prepare(&mut writer, 3);
    commit(&mut writer, &next);
    assert_eq!(job.visible(), ["a", "b"]);
}

#[test]
fn a_crash_after_the_commit_repeats_nothing() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let restored = prepare(&mut writer, 1);
    commit(&mut writer, &restored);
    write(&mut writer, &["b"]);
    drop(writer);

    // The successor fails too, right after it has committed again.
    let mut writer = job.writer(0, 1, 2, &restored);
    commit(&mut writer, &restored);
    drop(writer);
    let mut writer = job.writer(0, 1, 3, &restored);
    commit(&mut writer, &restored);
    commit(&mut writer, &restored);
    assert_eq!((job.visible(), job.hidden()), (vec!["a".to_owned()], 0));
}

/// A checkpoint whose notification was lost: the next one's carries both.
#[test]
fn several_checkpoints_are_committed_at_once() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    let mut pending = Vec::new();
    for checkpoint in 1..=3 {
        write(&mut writer, &[&format!("record {checkpoint}")]);
        pending.extend(prepare(&mut writer, checkpoint));
    }
    commit(&mut writer, &pending);
    assert_eq!(job.visible(), ["record 1", "record 2", "record 3"]);
}

/// Three subtasks prepare, some commit, all die; one subtask is left and gets all committables. And back to three.
#[test]
fn output_survives_rescaling_between_prepare_and_commit() {
    let job = Job::new();
    let mut restored = Vec::new();
    for subtask in 0..3 {
        let mut writer = job.writer(subtask, 3, 1, &[]);
        write(&mut writer, &[&format!("old {subtask}")]);
        let prepared = prepare(&mut writer, 1);
        if subtask == 1 {
            commit(&mut writer, &prepared);
        }
        restored.extend(prepared);
        write(&mut writer, &["replayed"]);
    }
    let mut writer = job.writer(0, 1, 2, &restored);
    commit(&mut writer, &restored);
    assert_eq!(job.visible(), ["old 0", "old 1", "old 2"]);
    assert_eq!(job.hidden(), 0);
    write(&mut writer, &["one"]);
    let restored = prepare(&mut writer, 2);
    drop(writer);

    for subtask in 0..3 {
        let mut writer = job.writer(subtask, 3, 3, &restored);
        if subtask == 2 {
            commit(&mut writer, &restored);
        }
    }
    assert_eq!(job.visible(), ["old 0", "one", "old 1", "old 2"]);
    assert_eq!(job.hidden(), 0);
}

/// All subtasks sweep, commit their share and write at the same time. Every subtask's committed and new output survives the
/// others' sweeps, every leftover is gone.
#[test]
fn subtasks_recover_at_the_same_time() {
    const SUBTASKS: u32 = 6;
    let job = Job::new();
    let mut restored = Vec::new();
    for subtask in 0..SUBTASKS {
        let mut writer = job.writer(subtask, SUBTASKS, 1, &[]);
        for n in 0..5 {
            write(&mut writer, &[&format!("old {subtask} {n}")]);
            restored.extend(prepare(&mut writer, n + 1));
        }
        for n in 0..20 {
            write(&mut writer, &["aborted"]);
            prepare(&mut writer, n + 6);
        }
        write(&mut writer, &["unprepared"]);
    }
    assert_eq!(job.hidden(), 6 * 26);
    let barrier = std::sync::Barrier::new(SUBTASKS as usize);
    std::thread::scope(|scope| {
        for subtask in 0..SUBTASKS {
            let (job, restored, barrier) = (&job, &restored, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let mut writer = job.writer(subtask, SUBTASKS, 2, restored);
                let share = restored
                    .iter()
                    .skip(subtask as usize)
                    .step_by(SUBTASKS as usize);
                commit(&mut writer, &share.cloned().collect::<Vec<_>>());
                write(&mut writer, &[&format!("new {subtask}")]);
                let next = prepare(&mut writer, 40);
                commit(&mut writer, &next);
            });
        }
    });
    let mut expected = Vec::new();
    for subtask in 0..SUBTASKS {
        expected.extend((0..5).map(|n| format!("old {subtask} {n}")));
        expected.push(format!("new {subtask}"));
    }
    assert_eq!(job.visible(), expected);
    assert_eq!(job.hidden(), 0);
}

/// The attempt before ours lives on behind a broken link and commits what it was told to, while we do.
#[test]
fn two_attempts_commit_the_same_output_at_the_same_time() {
    for _ in 0..50 {
        let job = Job::new();
        let mut old = job.writer(0, 1, 1, &[]);
        write(&mut old, &["a"]);
        let prepared = prepare(&mut old, 1);
        let mut new = job.writer(0, 1, 2, &prepared);
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for writer in [&mut old, &mut new] {
                let (barrier, prepared) = (&barrier, &prepared);
                scope.spawn(move || {
                    barrier.wait();
                    commit(writer, prepared);
                });
            }
        });
        assert_eq!((job.visible(), job.hidden()), (vec!["a".to_owned()], 0));
    }
}

/// Subtask 0 and its part of the job restart; subtask 1 goes on under the number of the former attempt.
#[test]
fn a_partial_restart_spares_a_neighbour_that_is_still_writing() {
    let job = Job::new();
    let mut first = job.writer(0, 2, 1, &[]);
    let mut neighbour = job.writer(1, 2, 1, &[]);
    write(&mut first, &["a"]);
    write(&mut neighbour, &["b"]);
    let pending = prepare(&mut neighbour, 1);
    write(&mut neighbour, &["c"]);
    drop(first);
    let _first = job.writer(0, 2, 2, &[]);
    assert_eq!(job.hidden(), 2);
    commit(&mut neighbour, &pending);
    let pending = prepare(&mut neighbour, 2);
    commit(&mut neighbour, &pending);
    assert_eq!(job.visible(), ["b", "c"]);
}

#[test]
fn recovery_spares_other_jobs_operators_and_newer_attempts() {
    let job = Job::new();
    let sink = FileSink::<String, _>::lines(job.output());
    let mut other_job = context(0, 1, 1, 1);
    other_job.attempt.job.0 += 1;
    let mut other_operator = context(0, 1, 1, 1);
    other_operator.uid = "another-out".to_owned();
    let newer = context(0, 2, 2, 1);
    let mut writers = [other_job, other_operator, newer].map(|context| {
        let mut writer = sink.writer(&context).unwrap();
        write(&mut writer, &["kept"]);
        writer
    });
    let _ours = job.writer(0, 2, 9, &[]);
    assert_eq!(job.hidden(), 3);
    for (checkpoint, writer) in (7..).zip(&mut writers) {
        let prepared = prepare(writer, checkpoint);
        commit(writer, &prepared);
    }
    assert_eq!(job.visible(), ["kept"; 3]);
}

#[test]
fn closing_removes_what_is_not_prepared_and_keeps_what_is() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let prepared = prepare(&mut writer, 1);
    write(&mut writer, &["b"]);
    assert_eq!(job.hidden(), 2);
    writer.close().unwrap();
    writer.close().unwrap();
    assert_eq!(job.hidden(), 1);
    commit(&mut job.writer(0, 1, 2, &prepared), &prepared);
    assert_eq!(job.visible(), ["a"]);
}

#[test]
fn output_prepared_before_the_directory_was_changed_is_committed_where_it_is() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let prepared = prepare(&mut writer, 1);
    let sink = FileSink::<String, _>::lines(job.directory.path().join("elsewhere"));
    let mut writer = sink.writer(&context(0, 1, 1, 2)).unwrap();
    writer.recover(&prepared).unwrap();
    commit(&mut writer, &prepared);
    assert_eq!(job.visible(), ["a"]);
}

#[test]
fn lost_output_fails_the_job_naming_the_span() {
    let job = Job::new();
    let mut writer = job.writer(2, 3, 1, &[]);
    write(&mut writer, &["a"]);
    prepare(&mut writer, 4);
    write(&mut writer, &["b", "c"]);
    let prepared = prepare(&mut writer, 5);
    for entry in fs::read_dir(job.output()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let error = writer.commit(&prepared[0]).unwrap_err();
    assert!(error.is_unrecoverable());
    let text = error.to_string();
    let span = "2 records of subtask 2 (attempt 1.1) between checkpoint 4 and 5 are lost";
    assert!(text.contains(span), "{text}");

    let sink = FileSink::<String, _>::lines(job.output()).when_missing(WhenMissing::AssumeTaken);
    let mut writer = sink.writer(&context(2, 3, 1, 2)).unwrap();
    commit(&mut writer, &prepared);
}

#[test]
fn damaged_or_taken_output_is_never_made_visible() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let prepared = prepare(&mut writer, 1);
    let file = PreparedFile::decode(&prepared[0]).unwrap();
    let (hidden, part) = (
        job.output().join(&file.hidden),
        job.output().join(&file.part),
    );

    fs::write(&part, "somebody else's\n").unwrap();
    let error = writer.commit(&prepared[0]).unwrap_err();
    assert!(matches!(cause(&error), FileSinkError::Taken { .. }));
    assert_eq!(job.visible(), ["somebody else's"]);

    fs::remove_file(&part).unwrap();
    fs::write(&hidden, "").unwrap();
    let error = writer.commit(&prepared[0]).unwrap_err();
    assert!(matches!(
        cause(&error),
        FileSinkError::WrongLength {
            expected: 2,
            actual: 0,
            ..
        }
    ));
    assert_eq!(job.visible(), [""; 0]);
}

#[test]
fn foreign_or_hostile_committables_are_refused() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    write(&mut writer, &["a"]);
    let prepared = prepare(&mut writer, 1).remove(0);
    let good = PreparedFile::decode(&prepared).unwrap();
    let encode = |file: PreparedFile| rmp_serde::to_vec_named(&file).unwrap();
    for bytes in [
        vec![],
        b"garbage".to_vec(),
        encode(PreparedFile {
            format: 2,
            ..good.clone()
        }),
        encode(PreparedFile {
            part: "../part".to_owned(),
            ..good.clone()
        }),
        encode(PreparedFile {
            hidden: "..".to_owned(),
            ..good
        }),
    ] {
        let committable = Committable {
            checkpoint: CheckpointId(1),
            bytes,
        };
        for error in [
            writer.commit(&committable).unwrap_err(),
            writer.recover(&[committable]).unwrap_err(),
        ] {
            assert!(matches!(cause(&error), FileSinkError::Committable { .. }));
            assert!(error.is_unrecoverable());
        }
    }
    commit(&mut writer, &[prepared]);
    assert_eq!(job.visible(), ["a"]);
}

#[test]
fn a_directory_that_cannot_be_written_fails_the_start() {
    let job = Job::new();
    let file = job.directory.path().join("file");
    fs::write(&file, "").unwrap();
    // No attempt can write below a file; what else a file system says may pass.
    for (directory, is_hopeless) in [
        (file.clone(), true),
        (file.join("below"), true),
        (PathBuf::from("/proc/nothing"), false),
    ] {
        let sink = FileSink::<String, _>::lines(&directory);
        let error = sink.writer(&context(0, 1, 1, 1)).err().unwrap();
        assert_eq!(error.is_unrecoverable(), is_hopeless, "{error:?}");
        assert_eq!(
            matches!(cause(&error), FileSinkError::Unusable { .. }),
            is_hopeless,
            "{error:?}"
        );
        assert!(
            error.to_string().contains(directory.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn a_uri_is_no_directory() {
    for uri in ["s3://bucket/output", "file:///output"] {
        let sink = FileSink::<String, _>::lines(uri);
        let error = sink.writer(&context(0, 1, 1, 1)).err().unwrap();
        assert!(error.is_unrecoverable());
        assert!(error.to_string().contains(uri), "{error}");
    }
}

/// `/dev/full` answers every write with "no space left", which is how a full disk is met without filling one.
#[test]
fn a_full_disk_is_a_typed_error_and_the_file_is_never_prepared() {
    let job = Job::new();
    let name = HiddenName::new("out", &context(0, 1, 1, 1).attempt, 1).to_string();
    let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut writer = FileWriter {
        context: context(0, 1, 1, 1),
        uid: "out".to_owned(),
        directory: job.directory.path().to_owned(),
        encoder: DisplayLines,
        when_missing: WhenMissing::Fail,
        buffer: Vec::new(),
        open: Some(OpenFile {
            name,
            file,
            bytes: 0,
            records: 0,
            is_broken: false,
        }),
        files: 1,
        since: None,
    };
    writer.write(&mut batch(&["a"])).unwrap();
    let error = SinkWriter::<String>::prepare_commit(&mut writer, CheckpointId(1)).unwrap_err();
    assert!(!error.is_unrecoverable());
    let FileSinkError::Io { source, .. } = cause(&error) else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    let error = SinkWriter::<String>::prepare_commit(&mut writer, CheckpointId(2)).unwrap_err();
    assert!(matches!(cause(&error), FileSinkError::Broken { .. }));
}

#[test]
fn a_record_that_is_no_line_fails_and_its_file_is_never_prepared() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    let error = writer.write(&mut batch(&["a", "b\nc"])).unwrap_err();
    assert!(error.to_string().contains(r#""b\nc""#), "{error}");
    assert!(writer.prepare_commit(CheckpointId(1)).is_err());

    let sink = FileSink::<String, _>::json(job.output());
    let mut writer = sink.writer(&context(0, 1, 1, 2)).unwrap();
    write(&mut writer, &["b\nc"]);
    let prepared = prepare(&mut writer, 1);
    commit(&mut writer, &prepared);
    assert_eq!(job.visible(), [r#""b\nc""#]);
}

#[test]
fn output_larger_than_the_buffer_is_whole() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    let lines = (0..60_000)
        .map(|n| format!("record {n:06}"))
        .collect::<Vec<_>>();
    for lines in lines.chunks(1000) {
        write(
            &mut writer,
            &lines.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }
    let prepared = prepare(&mut writer, 1);
    commit(&mut writer, &prepared);
    assert_eq!(job.visible(), lines);
}

/// A job fails after a savepoint and goes back to the checkpoint before it; later somebody starts from the savepoint.
#[test]
fn what_a_savepoint_holds_outlasts_recoveries() {
    let job = Job::new();
    let mut writer = job.writer(0, 1, 1, &[]);
    writer.write(&mut batch(&["a"])).unwrap();
    let bytes = writer.prepare_savepoint(CheckpointId(2)).unwrap().unwrap();
    let checkpoint = CheckpointId(2);
    let saved = Committable { checkpoint, bytes };
    drop(writer);
    drop(job.writer(0, 1, 2, &[]));
    assert_eq!((job.visible(), job.hidden()), (vec![], 1));
    let mut from_savepoint = job.writer(0, 1, 3, std::slice::from_ref(&saved));
    from_savepoint.commit(&saved).unwrap();
    from_savepoint.commit(&saved).unwrap();
    assert_eq!((job.visible(), job.hidden()), (vec!["a".to_owned()], 0));
}
