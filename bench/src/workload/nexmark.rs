//! Nexmark: queries over one file, generated once, which both systems read from the page cache.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::table::TOGETHER;
use super::{Kind, Profile, Throughput, Workload, throughput};
use crate::figures::Measurement;
use crate::jobs::digest::Digest;
use crate::nexmark::event::Event;
use crate::nexmark::format::read;
use crate::nexmark::generate::generate;
use crate::nexmark::{NAME, QUERIES, Query};
use crate::peer::{Peer, Submission};

/// What events are drawn from.
const SEED: u64 = 0;

/// What the quick profile has time for: nothing kept, sliding windows, sessions.
const QUICK: [&str; 3] = ["q0", "q5", "q11"];

/// A query, and what it answers to the first so many events, as far as that was asked for.
pub struct Asked {
    query: &'static Query,
    /// Of the file that all queries read, or begin to read.
    pub(super) file_events: u64,
    known: RefCell<BTreeMap<u64, Digest>>,
}

/// The queries of a profile over one file of so many events.
pub(super) fn workloads(
    profile: Profile,
    file_events: u64,
    runs: usize,
) -> impl Iterator<Item = Workload> {
    let is_measured = move |query: &&Query| match profile {
        Profile::Quick => QUICK.contains(&query.name),
        Profile::Full => true,
    };
    QUERIES.iter().filter(is_measured).map(move |query| {
        // Flink is slow in these, and takes about ten seconds for half of the full profile's file. A run of ours is over in a fraction of a
        // second.
        let events = match query.name {
            "q4" | "q5" | "q7" | "q11" => file_events / 2,
            _ => file_events,
        };
        let asked = Asked {
            query,
            file_events,
            known: RefCell::default(),
        };
        let name = format!("nexmark-{}", query.name);
        Workload::new(name, query.about, TOGETHER, Kind::Nexmark(asked))
            .keys(0)
            .events(events)
            .runs(runs)
    })
}

/// Measures a query over the first events of the file.
pub(super) fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    asked: &Asked,
    (events, inputs): (u64, &Path),
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let input = input(inputs, asked.file_events)?;
    let answer = asked.answer(&input, events)?;
    let throughput = Throughput {
        submission: Submission::new(NAME, "perennial.bench.nexmark.Nexmark")
            .setting("parallelism.default", 2)
            .argument("query", asked.query.name)
            .argument("input", input.display()),
        expected: Box::new(move |_, _| answer),
        bare: None,
    };
    throughput::measure(peer, workload, &throughput, events, scratch)
}

/// The file, made if it is not there.
fn input(inputs: &Path, events: u64) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(inputs)?;
    let path = inputs.canonicalize()?;
    let path = path.join(format!("nexmark-{events}-{SEED}"));
    generate(&path, events, SEED).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

impl Asked {
    /// By a fold.
    fn answer(&self, input: &Path, events: u64) -> anyhow::Result<Digest> {
        if let Some(digest) = self.known.borrow().get(&events) {
            return Ok(*digest);
        }
        let mut first: Vec<Event> = Vec::new();
        let mut file = BufReader::with_capacity(1 << 20, File::open(input)?);
        read(&mut file, |event| {
            if (first.len() as u64) < events {
                first.push(event);
            }
        })?;
        let digest = (self.query.expected)(&first);
        self.known.borrow_mut().insert(events, digest);
        Ok(digest)
    }
}
