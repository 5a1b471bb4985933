//! What is left of a run: a table for the terminal, `results.json`, and one page with pictures that needs nothing else.

mod page;
mod picture;
pub mod results;
mod tables;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::bars;
use results::Results;

/// Everything that was measured.
pub const JSON: &str = "results.json";
/// For people.
pub const PAGE: &str = "report.html";

/// What can be done instead of going on.
const ADVICE: &str = "choose another --out, or leave --resume away to measure everything anew";

/// Results cannot be added to.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The file cannot be read.
    #[error("cannot read {}; {ADVICE}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There are no results in the file, or those of another version.
    #[error("{} has no results that this program knows; {ADVICE}", path.display())]
    Unknown {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// Figures would be put side by side that are not comparable.
    #[error("{} has results of {what} {before}, and this call is of {now}; {ADVICE}", path.display())]
    Other {
        /// Which.
        path: PathBuf,
        /// In what they differ.
        what: &'static str,
        /// That of the file.
        before: String,
        /// That of this call.
        now: String,
    },
    /// An outcome is replaced whole, and a peer that it has takes no part in this call.
    #[error(
        "{workload} is to be measured anew, and its results of {peer} would be lost, which takes no part in this call; \
         name all peers with --peers and see to it that they are there, or choose another --out"
    )]
    Loss {
        /// What is measured.
        workload: String,
        /// Whose results.
        peer: &'static str,
    },
}

/// The results that a directory has, with this call added to those that made them; `new` where there are none.
///
/// That both calls measure the same build of Perennial is up to the caller.
///
/// # Errors
/// See [`ResumeError`].
pub fn resume(directory: &Path, new: Results) -> Result<Results, ResumeError> {
    #[derive(Deserialize)]
    struct Kept {
        results: Results,
    }
    let path = directory.join(JSON);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(new),
        Err(source) => return Err(ResumeError::Unreadable { path, source }),
    };
    let Kept { mut results } = match serde_json::from_str(&text) {
        Ok(kept) => kept,
        Err(source) => return Err(ResumeError::Unknown { path, source }),
    };
    let machine = |of: &Results| format!("{} x {}", of.processors, of.processor);
    for (what, before, now) in [
        (
            "profile",
            format!("{:?}", results.profile),
            format!("{:?}", new.profile),
        ),
        ("scale", results.scale.to_string(), new.scale.to_string()),
        ("processor", machine(&results), machine(&new)),
    ] {
        if before != now {
            return Err(ResumeError::Other {
                path,
                what,
                before,
                now,
            });
        }
    }
    results.calls.extend(new.calls);
    // Each call says anew what it lacks.
    results.notes = new.notes;
    Ok(results)
}

/// Writes both files; called again after every group.
///
/// # Errors
/// When the directory cannot be written to.
pub fn write(results: &Results, directory: &Path) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        // Under its name only when it is whole: whoever interrupts this must not lose what was measured before.
        let partial = path.with_extension("partial");
        std::fs::write(&partial, text)
            .and_then(|()| std::fs::rename(&partial, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    };
    let bars = bars::judge(results);
    let json = serde_json::json!({ "results": results, "bars": bars });
    write(JSON, serde_json::to_string_pretty(&json)?)?;
    write(PAGE, page::render(results, &bars)?)
}

/// For the terminal.
#[must_use]
pub fn text(results: &Results) -> String {
    tables::text(results, &bars::judge(results))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Profile;

    /// What was written is gone on with, and what is not comparable or not readable is refused with what to do.
    #[test]
    fn only_results_of_the_same_kind_are_added_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let new = || Results::new(Profile::Full, 0.3);
        assert_eq!(resume(at, new()).unwrap().calls.len(), 1);
        write(&new(), at).unwrap();
        write(&resume(at, new()).unwrap(), at).unwrap();
        assert_eq!(resume(at, new()).unwrap().calls.len(), 3);
        let other_machine = Results {
            processors: new().processors + 1,
            ..new()
        };
        for (what, other) in [
            ("of profile Full,", Results::new(Profile::Quick, 0.3)),
            ("of scale 0.3,", Results::new(Profile::Full, 1.0)),
            ("of processor ", other_machine),
        ] {
            let error = resume(at, other).unwrap_err().to_string();
            assert!(error.contains(what) && error.ends_with(ADVICE), "{error}");
        }
        for text in ["", "{\"results\": {\"profile\": \"full\"}}"] {
            std::fs::write(at.join(JSON), text).unwrap();
            let error = resume(at, new()).unwrap_err();
            assert!(matches!(error, ResumeError::Unknown { .. }), "{error}");
        }
        std::fs::remove_file(at.join(JSON)).unwrap();
        std::fs::create_dir(at.join(JSON)).unwrap();
        let error = resume(at, new()).unwrap_err();
        assert!(matches!(error, ResumeError::Unreadable { .. }), "{error}");
    }
}
