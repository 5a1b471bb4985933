//! The arguments of a job: texts by name, equal at the client and on every TaskManager.

use std::collections::BTreeMap;
use std::str::FromStr;

/// An argument does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// It does not parse.
    #[error("--{name} {value}: {message}")]
    Malformed {
        /// Of the argument.
        name: String,
        /// As given.
        value: String,
        /// What is expected.
        message: String,
    },
    /// It is needed.
    #[error("--{0} is missing")]
    Missing(String),
    /// The job has no such option.
    #[error("job `{job}` has no option --{name}{}; its options: {known}", suggestion.as_ref().map(|s| format!(" (did you mean --{s}?)")).unwrap_or_default())]
    Unknown {
        /// The job.
        job: String,
        /// As given.
        name: String,
        /// The nearest one.
        suggestion: Option<String>,
        /// All of them.
        known: String,
    },
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// From pairs.
    #[must_use]
    pub fn new(values: BTreeMap<String, String>) -> Self {
        Self(values)
    }

    /// All pairs.
    #[must_use]
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// An argument that may be left out.
    pub fn optional<T: FromStr>(&self, name: &str) -> Result<Option<T>, ArgumentError>
    where
        T::Err: std::fmt::Display,
    {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        // 1_000_000 is easier to get right than 1000000.
        let plain = value.replace('_', "");
        value
            .parse()
            .or_else(|error| plain.parse().map_err(|_| error))
            .map(Some)
            .map_err(|error: T::Err| ArgumentError::Malformed {
                name: name.to_owned(),
                value: value.clone(),
                message: error.to_string(),
            })
    }

    /// An argument with a default.
    pub fn or<T: FromStr>(&self, name: &str, default: T) -> Result<T, ArgumentError>
    where
        T::Err: std::fmt::Display,
    {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// An argument that must be given.
    pub fn required<T: FromStr>(&self, name: &str) -> Result<T, ArgumentError>
    where
        T::Err: std::fmt::Display,
    {
        self.optional(name)?
            .ok_or_else(|| ArgumentError::Missing(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers may be grouped; what does not parse names the option.
    #[test]
    fn arguments_parse_or_say_which_one_does_not() {
        let arguments = Arguments::new(BTreeMap::from([
            ("events".into(), "1_000".into()),
            ("rate".into(), "fast".into()),
        ]));
        assert_eq!(arguments.or("events", 0_u64), Ok(1000));
        assert_eq!(arguments.or("keys", 7_u64), Ok(7));
        let error = arguments.or("rate", 1.0_f64).unwrap_err().to_string();
        assert!(error.starts_with("--rate fast:"), "{error}");
        assert_eq!(
            arguments.required::<u64>("seed"),
            Err(ArgumentError::Missing("seed".into()))
        );
    }
}
