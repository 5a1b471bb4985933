//! Where settings come from, as plain data, and how each source becomes a layer of entries.
//!
//! Invariant: reading a source never judges its keys; it only reports what is not readable. Weighing is the business of `check.rs`.

use std::fmt;
use std::io::Read;
use std::path::Path;

use crate::environment::{AWS, Environment, FLINK_PROPERTIES, PREFIX, PROPERTIES, variable_of};
use crate::error::{ConfigError, ConfigErrors, Notice, Origin};
use crate::keys::{keys, nearest};
use crate::profile::{profile_names, profile_text};
use crate::yaml::{self, CONFIG_BYTES_MAX};

/// The text of a configuration file and the name that messages call it by.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Usually the path, as it was given.
    pub name: String,
    /// YAML: flat keys, nested keys or both.
    pub content: String,
}

impl ConfigFile {
    /// The names that [`ConfigFile::find`] looks for, in this order.
    pub const NAMES: [&'static str; 2] = ["config.yaml", "flink-conf.yaml"];

    /// Takes text that was read elsewhere.
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> ConfigFile {
        ConfigFile {
            name: name.into(),
            content: content.into(),
        }
    }

    /// Takes bytes of any kind.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<ConfigFile, ConfigErrors> {
        let name = name.into();
        match String::from_utf8(bytes) {
            Ok(content) => Ok(ConfigFile { name, content }),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                Err(ConfigError::Syntax {
                    origin: Origin::File { name, line },
                    message: "not UTF-8 text".into(),
                }
                .into())
            }
        }
    }

    /// Reads a file, at most [`CONFIG_BYTES_MAX`] bytes of it.
    pub fn read(path: &Path) -> Result<ConfigFile, ConfigErrors> {
        let name = path.display().to_string();
        let unreadable = |error: std::io::Error| ConfigError::Unreadable {
            name: name.clone(),
            message: error.to_string(),
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        // One byte more, so that a longer file is refused instead of cut.
        file.take(CONFIG_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::Unreadable {
                name,
                message: format!("longer than {CONFIG_BYTES_MAX} bytes"),
            }
            .into());
        }
        ConfigFile::from_bytes(name, bytes)
    }

    /// Reads `config.yaml` or Flink's older `flink-conf.yaml` from a directory; both at once are refused.
    pub fn find(directory: &Path) -> Result<Option<ConfigFile>, ConfigErrors> {
        let mut found = Vec::new();
        for name in ConfigFile::NAMES {
            let path = directory.join(name);
            match path.try_exists() {
                Ok(true) => found.push(path),
                Ok(false) => {}
                Err(error) => {
                    return Err(ConfigError::Unreadable {
                        name: path.display().to_string(),
                        message: error.to_string(),
                    }
                    .into());
                }
            }
        }
        match found.as_slice() {
            [] => Ok(None),
            [path] => ConfigFile::read(path).map(Some),
            [path, other, ..] => Err(ConfigError::Unreadable {
                name: path.display().to_string(),
                message: format!("there is {} as well; keep one", other.display()),
            }
            .into()),
        }
    }
}

impl fmt::Debug for ConfigFile {
    // The content may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigFile({}, {} bytes)", self.name, self.content.len())
    }
}

/// All that settings are loaded from.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// `development`, `staging` or `production`.
    pub profile: Option<String>,
    /// The configuration file.
    pub file: Option<ConfigFile>,
    /// The environment; empty unless given.
    pub environment: Environment,
    /// `-D key=value`, in the order given; the last one of a key wins.
    pub overrides: Vec<(String, String)>,
}

impl Sources {
    /// Adds one `-D` argument, `key=value`.
    pub fn set(&mut self, argument: &str) -> Result<(), ConfigErrors> {
        match argument.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.overrides
                    .push((key.trim().to_owned(), value.trim().to_owned()));
                Ok(())
            }
            _ => {
                // What follows may be a secret.
                let key = argument.split([':', '=', ' ']).next().unwrap_or_default();
                Err(ConfigError::Syntax {
                    origin: Origin::Override,
                    message: format!("{key}: expected key=value"),
                }
                .into())
            }
        }
    }
}

impl fmt::Debug for Sources {
    // Values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("profile", &self.profile)
            .field("file", &self.file)
            .field("environment", &self.environment)
            .field(
                "overrides",
                &self.overrides.iter().map(|(k, _)| k).collect::<Vec<_>>(),
            )
            .finish()
    }
}

/// One setting of one source.
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// What a key that stands twice in a layer means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// An error: nobody writes a key twice on purpose.
    Refused,
    /// The last one wins, as on every command line.
    LastWins,
}

/// The settings of one source; a later layer wins over an earlier one.
pub(crate) struct Layer {
    pub(crate) settings: Vec<Setting>,
    pub(crate) repeats: Repeats,
}

/// The layers, weakest first, and what was wrong or worth saying on the way.
#[derive(Default)]
pub(crate) struct Layers {
    pub(crate) layers: Vec<Layer>,
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) notices: Vec<Notice>,
}

impl Layers {
    pub(crate) fn of(sources: &Sources, job: &[(String, String)]) -> Layers {
        let mut layers = Layers::default();
        layers.add_aws(&sources.environment);
        if let Some(name) = &sources.profile {
            match profile_text(name) {
                Some(text) => layers.add_text(text, |line| Origin::Profile {
                    name: name.clone(),
                    line,
                }),
                None => layers.errors.push(ConfigError::UnknownProfile {
                    name: name.clone(),
                    known: profile_names().collect::<Vec<_>>().join(", "),
                }),
            }
        }
        if let Some(file) = &sources.file {
            layers.add_text(&file.content, |line| Origin::File {
                name: file.name.clone(),
                line,
            });
        }
        layers.add_environment(&sources.environment);
        layers.add_pairs(job, &Origin::Job);
        layers.add_pairs(&sources.overrides, &Origin::Override);
        layers
    }

    fn add_text(&mut self, text: &str, origin: impl Fn(usize) -> Origin) {
        let (entries, errors) = yaml::read(text);
        let settings = entries.into_iter().map(|entry| Setting {
            key: entry.key,
            value: entry.value,
            origin: origin(entry.line),
        });
        self.layers.push(Layer {
            settings: settings.collect(),
            repeats: Repeats::Refused,
        });
        self.errors
            .extend(errors.into_iter().map(|error| ConfigError::Syntax {
                origin: origin(error.line),
                message: error.message,
            }));
    }

    fn add_pairs(&mut self, pairs: &[(String, String)], origin: &Origin) {
        let settings = pairs.iter().map(|(key, value)| Setting {
            key: key.clone(),
            value: value.clone(),
            origin: origin.clone(),
        });
        self.layers.push(Layer {
            settings: settings.collect(),
            repeats: Repeats::LastWins,
        });
    }

    fn add_aws(&mut self, environment: &Environment) {
        let mut settings: Vec<Setting> = Vec::new();
        for (variable, key) in AWS {
            if let Some(value) = environment.get(variable)
                && settings.iter().all(|known| known.key != *key)
            {
                settings.push(Setting {
                    key: (*key).to_owned(),
                    value: value.to_owned(),
                    origin: variable_origin(variable),
                });
            }
        }
        self.layers.push(Layer {
            settings,
            repeats: Repeats::Refused,
        });
    }

    fn add_environment(&mut self, environment: &Environment) {
        for name in environment.unreadable() {
            self.errors.push(ConfigError::Unreadable {
                name: name.clone(),
                message: "the variable is not UTF-8 text".into(),
            });
        }
        let ours = environment.get(PROPERTIES);
        let flinks = environment.get(FLINK_PROPERTIES);
        if ours.is_some() && flinks.is_some() {
            self.errors.push(ConfigError::Inconsistent {
                message: format!("{PROPERTIES} and {FLINK_PROPERTIES} are both set; keep one"),
            });
        }
        if let Some((variable, text)) = ours
            .map(|text| (PROPERTIES, text))
            .or(flinks.map(|text| (FLINK_PROPERTIES, text)))
        {
            if variable == FLINK_PROPERTIES {
                self.notices.push(Notice {
                    origin: variable_origin(variable),
                    text: format!("is read as {PROPERTIES}"),
                });
            }
            self.add_text(text, |line| Origin::Environment {
                variable: variable.to_owned(),
                line: Some(line),
            });
        }
        let mut settings = Vec::new();
        for (variable, value) in environment.iter() {
            if !variable.starts_with(PREFIX) || variable == PROPERTIES {
                continue;
            }
            let named = keys().find(|key| !key.is_pattern() && variable_of(key.name) == variable);
            match named {
                Some(key) => settings.push(Setting {
                    key: key.name.to_owned(),
                    value: value.to_owned(),
                    origin: variable_origin(variable),
                }),
                // Not an error: Kubernetes puts PERENNIAL_SERVICE_HOST and the like next to a service of that name.
                None => {
                    let name = variable[PREFIX.len()..].to_lowercase().replace('_', ".");
                    let hint = nearest(&name).map_or_else(String::new, |key| {
                        format!("; did you mean {}?", variable_of(&key))
                    });
                    self.notices.push(Notice {
                        origin: variable_origin(variable),
                        text: format!("names no key and is ignored{hint}"),
                    });
                }
            }
        }
        self.layers.push(Layer {
            settings,
            repeats: Repeats::Refused,
        });
    }
}

fn variable_origin(variable: &str) -> Origin {
    Origin::Environment {
        variable: variable.to_owned(),
        line: None,
    }
}
