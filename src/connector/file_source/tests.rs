use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::test_support::{context, drain, reader};
use super::*;
use crate::error::FunctionError;

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            fs::write(directory.path(name), content).unwrap();
        }
        directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lines(&self) -> LinesSource {
        LinesSource::directory(self.0.path())
    }
}

fn all<D: LineDecoder>(source: &FileSource<D>) -> Vec<D::Item> {
    drain(&mut *reader(source, source.splits(1).unwrap()), 7).values
}

/// Polls until the error.
fn error_of<D: LineDecoder>(source: &FileSource<D>) -> FunctionError {
    let mut reader = reader(source, source.splits(1).unwrap());
    let mut out = Batch::default();
    loop {
        match reader.poll(&mut out, 10, Instant::now()) {
            Ok(SourceStatus::More) => {}
            Ok(status) => panic!("{status:?}"),
            Err(error) => return error,
        }
    }
}

fn cause(error: &FunctionError) -> &FileSourceError {
    error.source().downcast_ref().unwrap()
}

/// Lines and the offsets at which they begin, by the standard library.
fn reference(content: &str) -> Vec<(u64, String)> {
    let begin = content.as_ptr() as usize;
    let offset = |line: &str| (line.as_ptr() as usize - begin) as u64;
    content
        .lines()
        .map(|line| (offset(line), line.to_owned()))
        .collect()
}

#[test]
fn a_file_that_grows_behind_its_last_line_is_refused() {
    let files = Files::new(&[("a", b"x\ny")]);
    let source = files.lines();
    let mut reader = reader(&source, source.splits(1).unwrap());
    let mut out = Batch::default();
    reader.poll(&mut out, 2, Instant::now()).unwrap();
    assert_eq!(out.values, ["x", "y"]);
    fs::write(files.path("a"), "x\nyz\n").unwrap();
    let error = reader.poll(&mut out, 2, Instant::now()).unwrap_err();
    let cause = cause(&error);
    assert!(matches!(cause, FileSourceError::Changed { .. }), "{cause}");
}

#[test]
fn a_limit_of_everything_is_none() {
    let files = Files::new(&[("a", b"ab\nc\n")]);
    for limit in [usize::MAX, usize::MAX - 1] {
        assert_eq!(all(&files.lines().line_length_max(limit)), ["ab", "c"]);
    }
}

proptest! {
    /// Random text with multi-byte characters, CRLF, bare CR, blank lines, with or without a last line end; read in random
    /// portions, each by a new reader from the snapshot before. Lines, their offsets and the positions between are those of
    /// the reference.
    #[test]
    fn lines_and_offsets_are_exact_wherever_reading_stops(
        contents in prop::collection::vec("(a|é|漢|🌱|\r|\n|\r\n|longer text ){0,60}", 1..4),
        portions in prop::collection::vec(1_usize..9, 1..200),
    ) {
        let files = Files::new(&[]);
        let mut expected = Vec::new();
        for (number, content) in contents.iter().enumerate() {
            let path = files.path(&format!("{number}.txt"));
            fs::write(&path, content).unwrap();
            let id = path.to_str().unwrap().to_owned();
            expected.extend(reference(content).into_iter().map(|(offset, line)| (id.clone(), offset, line)));
        }
        let source = files.lines();
        let mut splits = source.splits(1).unwrap();
        let mut actual = Vec::new();
        for portion in portions.into_iter().cycle() {
            let mut reader = reader(&source, splits);
            let mut status = SourceStatus::More;
            for _ in 0..portion {
                let mut out = Batch::default();
                status = reader.poll(&mut out, 3, Instant::now()).unwrap();
                for (index, line) in out.values.into_iter().enumerate() {
                    let (id, offset) = reader.position(index).unwrap();
                    actual.push((id, offset, line));
                }
            }
            splits = reader.snapshot();
            for split in &splits {
                let content = fs::read(&split.id).unwrap();
                let position = split.position as usize;
                prop_assert!(position == 0 || position == content.len() || content[position - 1] == b'\n');
            }
            if status == SourceStatus::Finished {
                break;
            }
        }
        prop_assert_eq!(actual, expected);
    }

    /// Any bytes at all: lines or a typed error, never a panic.
    #[test]
    fn any_bytes_are_read_or_refused(content: Vec<u8>, skip: u64) {
        let files = Files::new(&[("a", &content)]);
        let source = JsonSource::<u8>::directory(files.0.path()).skip_bad_lines(skip);
        let mut reader = reader(&source, source.splits(1).unwrap());
        while let Ok(SourceStatus::More) = reader.poll(&mut Batch::default(), 3, Instant::now()) {}
    }
}

/// Larger than the read buffer, so that lines straddle its fills; and polls of many lines.
#[test]
fn a_large_file_is_continued_exactly() {
    let content = (0..60_000)
        .map(|n| format!("zeile {n} ü{}\r\n", "x".repeat(n % 37)))
        .collect::<String>();
    let files = Files::new(&[("big", content.as_bytes())]);
    let source = files.lines();
    let mut splits = source.splits(1).unwrap();
    let mut actual = Vec::new();
    for portion in [1, 10_000, 333, 20_000, 1] {
        let mut reader = reader(&source, splits);
        let mut out = Batch::default();
        reader.poll(&mut out, portion, Instant::now()).unwrap();
        assert_eq!(out.len(), portion);
        assert!(!out.has_timestamps());
        actual.extend(out.values);
        splits = reader.snapshot();
    }
    actual.extend(drain(&mut *reader(&source, splits), 5000).values);
    assert_eq!(actual, content.lines().collect::<Vec<_>>());
}

#[test]
fn files_are_split_in_the_order_of_their_names() {
    let files = Files::new(&[
        ("b", b"3\n"),
        ("a", b"1\n2"),
        ("c", b""),
        (".hidden", b"no\n"),
    ]);
    fs::create_dir(files.path("directory")).unwrap();
    assert_eq!(files.lines().splits(2).unwrap().len(), 3);
    assert_eq!(all(&files.lines()), ["1", "2", "3"]);
    let given = LinesSource::files([files.path("b"), files.path("a")]);
    assert_eq!(all(&given), ["1", "2", "3"]);
}

#[test]
fn a_poll_of_long_lines_is_bounded_in_bytes() {
    let line = "x".repeat(1_000_000) + "\n";
    let files = Files::new(&[("long", line.repeat(12).as_bytes())]);
    let source = files.lines();
    let mut reader = reader(&source, source.splits(1).unwrap());
    let mut out = Batch::default();
    reader.poll(&mut out, 1000, Instant::now()).unwrap();
    assert_eq!(out.len(), 5);
}

#[test]
fn a_line_may_be_as_long_as_the_bound_and_no_longer() {
    for (content, fits) in [
        ("12345\n", true),
        ("12345\r\n", true),
        ("12345", true),
        ("ab\n123456\n", false),
        ("ab\n123456\r\n", false),
        ("ab\n123456", false),
        ("ab\n1234567", false),
        ("ab\n12345678901234567890\n", false),
    ] {
        let files = Files::new(&[("a", content.as_bytes())]);
        let source = files.lines().line_length_max(5);
        if fits {
            assert_eq!(all(&source), ["12345"], "{content:?}");
            continue;
        }
        let error = error_of(&source);
        let text = error.to_string();
        assert!(
            text.contains("/a: the line at byte 3 is longer than 5 bytes"),
            "{text}"
        );
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Reading {
    sensor: String,
    value: f64,
}

#[test]
fn json_lines_become_records() {
    let files = Files::new(&[(
        "a",
        b"{\"sensor\":\"t1\",\"value\":1.5}\r\n\n  \n{\"value\":2,\"sensor\":\"\\u00e9\"}",
    )]);
    let source = JsonSource::<Reading>::directory(files.0.path());
    let reading = |sensor: &str, value| Reading {
        sensor: sensor.to_owned(),
        value,
    };
    assert_eq!(all(&source), [reading("t1", 1.5), reading("é", 2.0)]);
}

#[test]
fn a_bad_line_is_an_error_that_names_file_offset_and_line() {
    let files = Files::new(&[("a", b"1\n2\nthree\n4\n")]);
    let error = error_of(&JsonSource::<u32>::directory(files.0.path()));
    assert!(!error.is_unrecoverable());
    let FileSourceError::BadLine {
        path,
        offset,
        excerpt,
        ..
    } = cause(&error)
    else {
        panic!("{error}")
    };
    assert!(path.ends_with("/a"));
    assert_eq!((*offset, excerpt.as_str()), (4, "three"));

    let files = Files::new(&[("b", b"ok\nbad \xFF here\n")]);
    let error = error_of(&files.lines());
    assert!(
        error
            .to_string()
            .contains("/b: the line at byte 3 is bad: not UTF-8"),
        "{error}"
    );
}

#[test]
fn after_an_error_the_position_is_before_the_bad_line() {
    let files = Files::new(&[("a", b"1\nx\n3\n")]);
    let source = JsonSource::<u32>::directory(files.0.path());
    let mut reader = reader(&source, source.splits(1).unwrap());
    let mut out = Batch::default();
    for _ in 0..2 {
        assert!(reader.poll(&mut out, 10, Instant::now()).is_err());
        assert_eq!(reader.snapshot()[0].position, 2);
    }
    assert_eq!(out.values, [1]);
}

#[test]
fn skipped_bad_lines_are_counted_across_restarts() {
    let files = Files::new(&[("a", b"x\n1\ny\n2\nz\n3\n"), ("b", b"x\ny\n4\n")]);
    let source = JsonSource::<u32>::directory(files.0.path());
    assert_eq!(all(&source.clone().skip_bad_lines(3)), [1, 2, 3, 4]);

    let source = source.skip_bad_lines(2);
    let mut splits = source.splits(1).unwrap();
    let mut out = Batch::default();
    for _ in 0..4 {
        let mut reader = reader(&source, splits);
        reader.poll(&mut out, 1, Instant::now()).unwrap();
        splits = reader.snapshot();
    }
    assert_eq!(out.values, [1, 2]);
    let error = reader(&source, splits)
        .poll(&mut out, 1, Instant::now())
        .unwrap_err();
    assert!(!error.is_unrecoverable());
    let text = error.to_string();
    assert!(
        text.contains("more than 2 bad lines") && text.contains("byte 8"),
        "{text}"
    );
}

#[test]
fn a_file_that_does_not_fit_its_position_is_refused() {
    let files = Files::new(&[("a", b"one\ntwo\nthree")]);
    let source = files.lines();
    let mut first = reader(&source, source.splits(1).unwrap());
    first
        .poll(&mut Batch::default(), 2, Instant::now())
        .unwrap();
    let stored = first.snapshot();
    assert_eq!(stored[0].position, 8);
    let restore = || source.reader(&context(0, 1, 1, 2), stored.clone());
    assert!(restore().is_ok());

    fs::write(files.path("a"), "one\n").unwrap();
    let error = restore().err().unwrap();
    assert!(error.is_unrecoverable());
    let text = error.to_string();
    assert!(
        text.contains("read up to byte 8 and now has only 4"),
        "{text}"
    );

    fs::write(files.path("a"), "one two three four\n").unwrap();
    let error = restore().err().unwrap();
    assert!(error.to_string().contains("no line begins there"));

    fs::remove_file(files.path("a")).unwrap();
    let error = restore().err().unwrap();
    assert!(!error.is_unrecoverable());
    assert!(error.to_string().contains("cannot inspect"), "{error}");
}

/// The last line had no end when it was read: what is appended to it later is not a line of its own.
#[test]
fn a_last_line_that_grows_is_not_cut_in_two() {
    let files = Files::new(&[("a", b"one\ntw")]);
    let source = files.lines();
    let mut first = reader(&source, source.splits(1).unwrap());
    first
        .poll(&mut Batch::default(), 2, Instant::now())
        .unwrap();
    let stored = first.snapshot();
    assert!(source.reader(&context(0, 1, 1, 2), stored.clone()).is_ok());
    fs::write(files.path("a"), "one\ntwo\n").unwrap();
    assert!(source.reader(&context(0, 1, 1, 2), stored).is_err());
}

#[test]
fn a_file_read_to_its_end_is_not_needed_any_more() {
    let files = Files::new(&[("a", b"1\n"), ("b", b"2\n")]);
    let source = files.lines();
    let mut first = reader(&source, source.splits(1).unwrap());
    let mut out = Batch::default();
    while out.len() < 2 {
        first.poll(&mut out, 1, Instant::now()).unwrap();
    }
    let stored = first.snapshot();
    fs::remove_file(files.path("a")).unwrap();
    fs::write(files.path("b"), "2\n3\n").unwrap();
    assert_eq!(drain(&mut *reader(&source, stored), 10).values, ["3"]);
}

#[test]
fn what_cannot_be_read_fails_the_start() {
    let files = Files::new(&[("a", b"1\n")]);
    for (source, text) in [
        (
            LinesSource::files([files.path("nothing")]),
            "cannot inspect",
        ),
        (LinesSource::directory(files.path("nothing")), "cannot list"),
        (LinesSource::directory(files.path("a")), "cannot list"),
        (LinesSource::files([files.0.path()]), "not a regular file"),
        (LinesSource::files(["/dev/null"]), "not a regular file"),
        (
            LinesSource::files([files.path("a"), files.path("a")]),
            "given twice",
        ),
    ] {
        let error = source.splits(1).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn foreign_splits_are_refused() {
    let files = Files::new(&[("a", b"1\n")]);
    let good = files.lines().splits(1).unwrap().remove(0);
    for extra in [
        vec![],
        vec![9; 10],
        vec![SPLIT_FORMAT, 2, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0; 11],
    ] {
        let split = SourceSplit {
            extra,
            ..good.clone()
        };
        let error = files
            .lines()
            .reader(&context(0, 1, 1, 1), vec![split])
            .err()
            .unwrap();
        assert!(matches!(cause(&error), FileSourceError::Split { .. }));
        assert!(error.is_unrecoverable());
    }
}
