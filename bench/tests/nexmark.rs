//! Every query of Nexmark gives what a fold over the same file gives, on a real cluster in a process of its own, at any parallelism.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;

use perennial_bench::jobs::digest::Digest;
use perennial_bench::nexmark::event::Event;
use perennial_bench::nexmark::format::{FormatError, read};
use perennial_bench::nexmark::generate::generate;
use perennial_bench::nexmark::{NAME, QUERIES, Query};
use perennial_bench::{marks, nexmark};

/// 10 s of event time: more than an auction lasts, and every window twice.
const EVENTS: u64 = 200_000;
const SEED: u64 = 0;

fn events(path: &Path) -> Vec<Event> {
    let mut events = Vec::new();
    let file = BufReader::new(File::open(path).unwrap());
    read(&mut { file }, |event| events.push(event)).unwrap();
    events
}

/// The answer of the engine.
fn run(query: &Query, input: &Path, sources: u32, parallelism: u32) -> Digest {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_perennial-bench-node"))
        .args(["run", NAME, "--local", "--taskmanagers", "1"])
        .args(["--query", query.name, "--sources", &sources.to_string()])
        .arg("--input")
        .arg(input)
        .arg("--marks")
        .arg(directory.path())
        .args(["-D", &format!("parallelism.default={parallelism}")])
        .args(["-D", "execution.checkpointing.interval=50ms"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", query.name);
    let mut digest = Digest::default();
    let marks = marks::read(directory.path()).unwrap();
    for mark in marks.iter().filter(|mark| mark.what == "digest") {
        digest.merge(Digest {
            count: mark.number("count").unwrap(),
            sum: mark.number("sum").unwrap(),
        });
    }
    digest
}

#[test]
fn every_query_gives_what_a_fold_gives_at_any_parallelism() {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("events");
    let header = generate(&input, EVENTS, SEED).unwrap();
    let events = events(&input);
    assert_eq!(events.len() as u64, EVENTS);
    assert!(header.last_time - header.first_time > 19_000, "{header:?}");
    let mut wrong = Vec::new();
    for query in QUERIES {
        let expected = (query.expected)(&events);
        println!("{}: {expected}", query.name);
        assert!(expected.count > 0, "{} answers nothing", query.name);
        for (sources, parallelism) in [(1, 1), (2, 2), (3, 2)] {
            let found = run(query, &input, sources, parallelism);
            if found != expected {
                wrong.push(format!(
                    "{} with {sources} sources at parallelism {parallelism}: {found}, expected {expected}",
                    query.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Twice the same, another seed something else; a whole file is left alone, a damaged one made anew.
#[test]
fn the_input_is_a_function_of_count_and_seed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let header = generate(&path("one"), 1000, 7).unwrap();
    assert_eq!(generate(&path("two"), 1000, 7).unwrap(), header);
    assert_ne!(
        generate(&path("three"), 1000, 8).unwrap().checksum,
        header.checksum
    );
    let whole = fs::read(path("one")).unwrap();
    assert_eq!(whole, fs::read(path("two")).unwrap());

    let mut damaged = whole.clone();
    damaged[64 * 500 + 20] ^= 1;
    let error = read(&mut damaged.as_slice(), |_| {}).unwrap_err();
    assert!(matches!(error, FormatError::Damaged { .. }), "{error}");
    let error = read(&mut &whole[..whole.len() - 64], |_| {}).unwrap_err();
    assert!(
        matches!(error, FormatError::Damaged { found: 999, .. }),
        "{error}"
    );
    let error = read(&mut &whole[64..], |_| {}).unwrap_err();
    assert!(matches!(error, FormatError::NotOurs), "{error}");
    fs::write(path("one"), damaged).unwrap();
    assert_eq!(generate(&path("one"), 1000, 7).unwrap(), header);
    assert_eq!(fs::read(path("one")).unwrap(), whole);
    assert!(
        nexmark::generate::events(7)
            .take(1000)
            .all(|event| Event::decode(&event.encode()).is_ok_and(|read| read == event))
    );
}
