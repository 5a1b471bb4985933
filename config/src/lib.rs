//! The typed settings of Perennial: `config/` tells.
//!
//! Invariant: nothing is swallowed. A key either has its effect, or a line says why it has none, or the node refuses with the word
//! that explains it.
//!
//! Sources, weakest first: defaults, the AWS variables, a profile, the file, the environment, a job's own settings, `-D key=value`.
//!
//! ```
//! use perennial_config::{ConfigFile, Settings, Sources, check};
//!
//! let mut sources = Sources {
//!     profile: Some("development".into()),
//!     file: Some(ConfigFile::new("config.yaml", "execution:\n  checkpointing.interval: 10s\n")),
//!     ..Sources::default()
//! };
//! sources.set("taskmanager.numberOfTaskSlots=4")?;
//! let loaded = Settings::load(&sources)?;
//! assert_eq!(loaded.settings.cluster.task_slots, 4);
//! assert_eq!(loaded.settings.job.parallelism, 2);
//!
//! // What is not built refuses, and all reasons come together.
//! sources.set("state.backend=rocksdb")?;
//! sources.set("paralelism.default=2")?;
//! let errors = Settings::load(&sources).unwrap_err();
//! assert_eq!(errors.0.len(), 2);
//! assert!(errors.to_string().contains("NOT YET"));
//! assert!(errors.to_string().contains("did you mean parallelism.default?"));
//!
//! // `config check` shows the same without refusing.
//! for row in check(&sources).table.iter().filter(|row| row.is_set()) {
//!     let _ = format!("{} {} {} {} {}", row.key, row.value, row.origin, row.verdict, row.note);
//! }
//! # Ok::<(), perennial_config::ConfigErrors>(())
//! ```

mod check;
mod draft;
mod environment;
mod error;
mod keys;
mod load;
mod profile;
mod settings;
mod sources;
pub mod value;
mod yaml;

pub use check::{Checked, Row, check};
pub use environment::Environment;
pub use error::{ConfigError, ConfigErrors, Notice, Origin};
pub use keys::{Key, Kind, Scope, Verdict, keys};
pub use load::Loaded;
pub use profile::{profile_names, profile_text};
pub use settings::*;
pub use sources::{ConfigFile, Sources};
pub use yaml::{CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX, CONFIG_KEYS_MAX};
