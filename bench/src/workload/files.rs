//! A job from files to files. Input is generated once and lies in the page cache; output is read back and compared.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use perennial::jobs::keyed_count::{Event, event};

use super::throughput::{DEADLINE, Spent, of_checkpoints};
use super::{Context, Workload, WrongOutput};
use crate::figures::{Measurement, Metric};
use crate::jobs::digest::Digest;
use crate::jobs::file_to_file;
use crate::peer::{Peer, Submission};

/// One for each subtask.
const FILES: u64 = 2;

pub(super) fn measure(
    peer: &mut dyn Peer,
    workload: &Workload,
    events: u64,
    context: Context<'_>,
    scratch: &Path,
) -> anyhow::Result<Measurement> {
    let keys = workload.keys;
    let input = generated(context.inputs, events, keys)?;
    let output = scratch.join("output");
    let submission = Submission::new(file_to_file::NAME, "perennial.bench.FileToFile")
        .setting("parallelism.default", FILES)
        .setting("execution.checkpointing.interval", "1s")
        .argument("input", input.display())
        .argument("output", output.display());
    let spent = Spent::begin(peer);
    let job = peer.submit(&submission)?;
    let took = peer.wait_until_finished(&job, DEADLINE)?;
    let mut measurement = Measurement::default();
    spent.end(peer, events, &mut measurement);
    measurement.set(Metric::Rate, events as f64 / 1e6 / took.as_secs_f64());
    of_checkpoints(&peer.checkpoints(&job)?, &mut measurement);
    let output = committed(&output)?;
    let expected = file_to_file::expected(events, keys);
    ensure!(output == expected, WrongOutput { output, expected });
    measurement.output = Some(output);
    Ok(measurement)
}

/// A directory with all events, each once; made when it is not there yet.
fn generated(inputs: &Path, events: u64, keys: u64) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(inputs)?;
    let directory = inputs
        .canonicalize()?
        .join(format!("events-{events}-{keys}"));
    if directory.is_dir() {
        return Ok(directory);
    }
    // Under its name only when it is whole.
    let partial = directory.with_extension("partial");
    if partial.is_dir() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir(&partial)?;
    for part in 0..FILES {
        let mut file = BufWriter::new(File::create(partial.join(format!("part-{part}.jsonl")))?);
        for sequence in (part..events).step_by(FILES as usize) {
            serde_json::to_writer(&mut file, &event(sequence, keys))?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
    }
    std::fs::rename(&partial, &directory)?;
    Ok(directory)
}

/// What lies in the visible files of a directory.
fn committed(directory: &Path) -> anyhow::Result<Digest> {
    let mut digest = Digest::default();
    let entries = std::fs::read_dir(directory).context("the job has put nothing out")?;
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("part-") {
            continue;
        }
        for line in BufReader::new(File::open(entry.path())?).lines() {
            digest.add(&serde_json::from_str::<Event>(&line?)?);
        }
    }
    Ok(digest)
}
