//! Nexmark: the queries over one generated file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::table::TOGETHER;
use super::{Kind, Profile, Throughput, Workload};
use crate::jobs::digest::Digest;
use crate::nexmark::event::Event;
use crate::nexmark::format::read;
use crate::nexmark::generate::generate;
use crate::nexmark::{NAME, QUERIES, Query};
use crate::peer::Submission;

/// Where files are kept; one has 64 bytes an event.
const DIRECTORY: &str = ".perennial/nexmark";
/// What events are drawn from.
const SEED: u64 = 0;

/// What the quick profile has time for: nothing kept, sliding windows, sessions.
const QUICK: [&str; 3] = ["q0", "q5", "q11"];

/// The queries of a profile over so many events.
pub(super) fn workloads(
    profile: Profile,
    events: u64,
    runs: usize,
) -> impl Iterator<Item = Workload> {
    let is_measured = move |query: &&Query| match profile {
        Profile::Quick => QUICK.contains(&query.name),
        Profile::Full => true,
    };
    QUERIES.iter().filter(is_measured).map(move |query| {
        let throughput = Throughput {
            submission: Submission::new(NAME, "perennial.bench.nexmark.Nexmark")
                .setting("parallelism.default", 2)
                .argument("query", query.name),
            expected: expected(query, events),
            bare: None,
            input: Some(Box::new(move || input(events))),
        };
        let name = format!("nexmark-{}", query.name);
        let kind = Kind::Throughput(throughput);
        Workload::new(name, query.about, TOGETHER, kind)
            .keys(0)
            .events(events)
            .runs(runs)
    })
}

/// The file, made if it is not there.
fn input(events: u64) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(DIRECTORY)?;
    let path = Path::new(DIRECTORY).canonicalize()?;
    let path = path.join(format!("events-{events}-{SEED}"));
    generate(&path, events, SEED).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// Folds once for each number of events.
fn expected(query: &'static Query, all: u64) -> Box<dyn Fn(u64, u64) -> anyhow::Result<Digest>> {
    let known: RefCell<BTreeMap<u64, Digest>> = RefCell::default();
    Box::new(move |events, _keys| {
        if let Some(digest) = known.borrow().get(&events) {
            return Ok(*digest);
        }
        let file = File::open(input(all)?)?;
        let mut first: Vec<Event> = Vec::new();
        read(&mut BufReader::with_capacity(1 << 20, file), |event| {
            if (first.len() as u64) < events {
                first.push(event);
            }
        })?;
        let digest = (query.expected)(&first);
        known.borrow_mut().insert(events, digest);
        Ok(digest)
    })
}
