//! The process environment, as a value.
//!
//! Invariant: [`Environment::from_process`] is the only place in the workspace that reads the environment, so whatever is tested
//! with a given [`Environment`] behaves the same in a process.

/// `PERENNIAL_PROPERTIES`: lines like those of the file.
pub(crate) const PROPERTIES: &str = "PERENNIAL_PROPERTIES";
/// Flink's name of the same.
pub(crate) const FLINK_PROPERTIES: &str = "FLINK_PROPERTIES";
/// Begins the variables that set one key each.
pub(crate) const PREFIX: &str = "PERENNIAL_";
/// Stand-ins of `s3.*`, the first of a key wins.
pub(crate) const AWS: &[(&str, &str)] = &[
    ("AWS_ACCESS_KEY_ID", "s3.access-key"),
    ("AWS_SECRET_ACCESS_KEY", "s3.secret-key"),
    ("AWS_SESSION_TOKEN", "s3.session-token"),
    ("AWS_REGION", "s3.region"),
    ("AWS_DEFAULT_REGION", "s3.region"),
    ("AWS_ENDPOINT_URL_S3", "s3.endpoint"),
    ("AWS_ENDPOINT_URL", "s3.endpoint"),
];
/// Begins the variables of this project's own tests and scripts, which are never keys.
const OF_TESTS: &str = "PERENNIAL_TEST_";

/// The variables that concern a configuration, sorted by name.
///
/// One rule: `PERENNIAL_` and the key in capitals, with `.` and `-` as `_`, sets that key
/// (`PERENNIAL_EXECUTION_CHECKPOINTING_INTERVAL=10s`); and `PERENNIAL_PROPERTIES` holds lines like the file does, for keys with a
/// free part and for whole blocks (Flink's `FLINK_PROPERTIES` is read as its alias). A named variable wins over the block. The
/// variables of AWS (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_DEFAULT_REGION`,
/// `AWS_ENDPOINT_URL`) stand in for `s3.*` keys that no source sets; the token only beside AWS's own access key.
///
/// ```
/// use perennial_config::{Environment, Settings, Sources};
/// let environment = Environment::new([("PERENNIAL_PARALLELISM_DEFAULT", "4"), ("HOME", "/root")]);
/// let loaded = Settings::load(&Sources { environment, ..Sources::default() }).unwrap();
/// assert_eq!(loaded.settings.job.parallelism, 4);
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
    unreadable: Vec<String>,
}

impl Environment {
    /// Keeps those of the given variables that concern a configuration.
    pub fn new<K: Into<String>, V: Into<String>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Environment {
        let mut variables: Vec<(String, String)> = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .filter(|(name, _)| concerns_us(name))
            .collect();
        variables.sort();
        Environment {
            variables,
            unreadable: Vec::new(),
        }
    }

    /// The environment of this process.
    pub fn from_process() -> Environment {
        let mut variables = Vec::new();
        let mut unreadable = Vec::new();
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            match value.into_string() {
                Ok(value) => variables.push((name, value)),
                Err(_) if concerns_us(&name) => unreadable.push(name),
                Err(_) => {}
            }
        }
        unreadable.sort();
        Environment {
            unreadable,
            ..Environment::new(variables)
        }
    }

    /// The value of one variable. An empty one counts as unset, as for AWS's own tools.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// All that are not empty.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(_, value)| !value.is_empty())
    }

    /// Variables that are ours and not UTF-8.
    pub(crate) fn unreadable(&self) -> &[String] {
        &self.unreadable
    }
}

impl std::fmt::Debug for Environment {
    // Values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.variables.iter().map(|(name, _)| name))
            .finish()
    }
}

/// The variable that sets a key.
pub(crate) fn variable_of(key: &str) -> String {
    let folded: String = key
        .chars()
        .map(|c| match c {
            '.' | '-' => '_',
            other => other.to_ascii_uppercase(),
        })
        .collect();
    format!("{PREFIX}{folded}")
}

fn concerns_us(name: &str) -> bool {
    (name.starts_with(PREFIX) && !name.starts_with(OF_TESTS))
        || name == FLINK_PROPERTIES
        || AWS.iter().any(|(known, _)| *known == name)
}
