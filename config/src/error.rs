//! What can be wrong with a configuration, and the lines that are said without being wrong.
//!
//! Invariant: all errors of all sources are reported together, each with its place, and no message holds a secret value.

use std::fmt;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table of keys.
    Default,
    /// A compiled-in profile, by line.
    Profile {
        /// `production`, `staging` or `development`.
        name: String,
        /// From 1.
        line: usize,
    },
    /// The configuration file, by line.
    File {
        /// As it was given.
        name: String,
        /// From 1.
        line: usize,
    },
    /// An environment variable; with a line where it holds a block of properties.
    Environment {
        /// The variable.
        variable: String,
        /// From 1, in `PERENNIAL_PROPERTIES`.
        line: Option<usize>,
    },
    /// `-D key=value`.
    Override,
    /// Settings of one job.
    Job,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Profile { name, line } => write!(f, "profile {name}:{line}"),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment {
                variable,
                line: None,
            } => write!(f, "env {variable}"),
            Origin::Environment {
                variable,
                line: Some(line),
            } => write!(f, "env {variable}:{line}"),
            Origin::Override => f.write_str("-D"),
            Origin::Job => f.write_str("job"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not the YAML that is accepted.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What.
        message: String,
    },
    /// A file could not be read.
    #[error("{name}: cannot be read: {message}")]
    Unreadable {
        /// The file or variable.
        name: String,
        /// The system's words.
        message: String,
    },
    /// No table knows the key.
    #[error("{origin}: unknown key {key}{}", suggest(.nearest))]
    Unknown {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// The same key twice in one source.
    #[error("{origin}: key {key} is set twice, first at {first}; keep one")]
    Duplicate {
        /// As written.
        key: String,
        /// The second place.
        origin: Origin,
        /// The first place.
        first: Origin,
    },
    /// Two names of one setting with two values in one source.
    #[error("{origin}: {key} contradicts {other} at {first}: both mean {native}; keep one")]
    Contradiction {
        /// The second name.
        key: String,
        /// The first name.
        other: String,
        /// What both mean.
        native: String,
        /// The second place.
        origin: Origin,
        /// The first place.
        first: Origin,
    },
    /// The value cannot be read or is out of bounds.
    #[error("{origin}: {key}: {value}: {reason}")]
    Invalid {
        /// As written.
        key: String,
        /// Quoted, or masked.
        value: String,
        /// Where.
        origin: Origin,
        /// What would be accepted.
        reason: String,
    },
    /// The intent is known, its effect is not built yet.
    #[error("{origin}: NOT YET: {key}{}: {note}", meaning(.key, .native))]
    NotYet {
        /// As written.
        key: String,
        /// The native key.
        native: String,
        /// Where.
        origin: Origin,
        /// What happens instead and what to do.
        note: String,
    },
    /// The key is refused for good; the note names the right one.
    #[error("{origin}: {key} is not accepted: {note}")]
    Rejected {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// What to use.
        note: String,
    },
    /// Two settings that exclude each other.
    #[error("{message}")]
    Inconsistent {
        /// Both keys, both values, both places.
        message: String,
    },
    /// A job set a key that belongs to a node.
    #[error("{key} belongs to the node, not to a job: set it in the node's configuration")]
    NotAJobKey {
        /// As written.
        key: String,
    },
    /// There is no such profile.
    #[error("unknown profile {name}; there are: {known}")]
    UnknownProfile {
        /// As given.
        name: String,
        /// The names.
        known: String,
    },
}

fn suggest(nearest: &Option<String>) -> String {
    match nearest {
        Some(key) => format!("; did you mean {key}?"),
        None => "; `perennial config show` lists the keys that have an effect".to_owned(),
    }
}

fn meaning(key: &str, native: &str) -> String {
    if key == native {
        String::new()
    } else {
        format!(" (means {native})")
    }
}

/// Everything that is wrong, in the order of the sources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(
            f,
            "the configuration is refused for {} reason{plural}",
            self.0.len()
        )?;
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> ConfigErrors {
        ConfigErrors(vec![error])
    }
}

/// One line that a node says at start about its configuration: an alias, a key without effect, a value that stands in for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Where the value stands.
    pub origin: Origin,
    /// One line.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}
