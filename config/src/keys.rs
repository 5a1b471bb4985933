//! The table of every known key: its name, value, default and what becomes of it.
//!
//! Invariant: a key is in exactly one place of the table, an alias ends at a key that is not an alias, and a native key is one whose
//! `set` function fills [`Settings`](crate::Settings). Tests hold the table to that.
//! It does not read sources or weigh them against each other: that is `load.rs`.

mod aliases;
mod cluster;
mod ignored;
mod job;
mod later;

use std::fmt;

use crate::draft::Draft;
use crate::value;

/// Longer names are not compared with the table: no key is nearly as long.
const NAME_BYTES_MAX: usize = 256;

/// What becomes of a key that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It has its effect.
    Native,
    /// It is another name of a key that has its effect.
    Alias,
    /// Accepted, and nothing comes of it: it exists only because of the JVM or Netty.
    NoEffect,
    /// The intent is known, the effect is not built: a node that is started with it refuses.
    NotYet,
    /// Refused for good; the note names the right key.
    Rejected,
    /// No table knows it.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Native => "NATIVE",
            Verdict::Alias => "ALIAS",
            Verdict::NoEffect => "NO EFFECT",
            Verdict::NotYet => "NOT YET",
            Verdict::Rejected => "REJECTED",
            Verdict::Unknown => "UNKNOWN",
        })
    }
}

/// The syntax of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `60s`, `10min`, `PT10S`, bare milliseconds.
    Duration,
    /// `512m`, `1g`, bare bytes.
    Size,
    /// A whole number.
    Count,
    /// A decimal number.
    Decimal,
    /// `0.8` or `80%`.
    Share,
    /// `1.0` or `1000m`.
    Cpu,
    /// `true` or `false`.
    Flag,
    /// One of some words; case, `-` and `_` do not matter.
    Word,
    /// Any text.
    Text,
    /// Any text, never shown.
    Secret,
    /// `file://` or `s3://`.
    Directory,
    /// A port, a range or a list of them.
    Ports,
    /// Items separated by `;`, or a YAML list.
    List,
}

impl Kind {
    /// Checks the syntax alone, for keys that have no effect yet.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        match self {
            Kind::Duration => value::parse_duration(text).map(drop),
            Kind::Size => value::parse_size(text).map(drop),
            Kind::Count => value::parse_count(text, i64::MIN, i64::MAX).map(drop),
            Kind::Decimal => value::parse_decimal(text).map(drop),
            Kind::Share => value::parse_share(text).map(drop),
            Kind::Cpu => value::parse_cpu(text).map(drop),
            Kind::Flag => value::parse_flag(text).map(drop),
            Kind::Directory => value::parse_directory(text).map(drop),
            Kind::Ports => value::parse_ports(text).map(drop),
            Kind::Word | Kind::Text | Kind::Secret | Kind::List => Ok(()),
        }
    }
}

/// Why a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be read or is out of bounds.
    Invalid(String),
    /// It asks for something that is not built.
    NotYet(&'static str),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal::Invalid(reason)
    }
}

/// Puts a value where it belongs.
pub(crate) type Set = fn(&mut Draft, &str) -> Result<(), Refusal>;

/// Whose key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A job may set it for itself.
    Job,
    /// Only the node's configuration sets it.
    Cluster,
}

/// What stands behind a name.
#[derive(Clone, Copy)]
pub(crate) enum Meaning {
    /// Fills the settings.
    Native { scope: Scope, set: Set },
    /// Another name of `to`; the value is written as `translate` says.
    Alias {
        to: &'static str,
        translate: Translate,
    },
    /// Nothing comes of it.
    Ignored,
    /// Not built; `today` is the value that says what happens anyway.
    Later { today: Option<&'static str> },
    /// Refused for good.
    Rejected,
}

/// How the value of an alias becomes the value of its key.
#[derive(Clone, Copy)]
pub(crate) enum Translate {
    /// As it is.
    Same,
    /// A bare number counts seconds.
    Seconds,
    /// The flag says the opposite.
    Not,
    /// Word by word.
    Words(&'static [(&'static str, &'static str)]),
}

impl Translate {
    pub(crate) fn apply(self, text: &str) -> String {
        let text = text.trim();
        match self {
            Translate::Same => text.to_owned(),
            Translate::Seconds if text.bytes().all(|b| b.is_ascii_digit()) => format!("{text}s"),
            Translate::Seconds => text.to_owned(),
            Translate::Not => match value::parse_flag(text) {
                Ok(flag) => (!flag).to_string(),
                Err(_) => text.to_owned(),
            },
            Translate::Words(words) => words
                .iter()
                .find(|(from, _)| value::fold(from) == value::fold(text))
                .map_or_else(|| text.to_owned(), |(_, to)| (*to).to_owned()),
        }
    }
}

/// One line of the table. In a name, `*` stands for one part between dots, a last `**` for one or more.
#[derive(Clone, Copy)]
pub struct Key {
    /// As a user writes it.
    pub name: &'static str,
    /// Syntax of its value; of an alias, look at its key.
    pub kind: Kind,
    /// The text that is read when no source sets it.
    pub default: Option<&'static str>,
    /// What it does, stands for, or why it does nothing.
    pub note: &'static str,
    pub(crate) meaning: Meaning,
}

impl Key {
    /// What becomes of it, when its value does not change that.
    pub fn verdict(&self) -> Verdict {
        match self.meaning {
            Meaning::Native { .. } => Verdict::Native,
            Meaning::Alias { to, .. } => match find(to) {
                Some((key, _)) if key.verdict() == Verdict::Native => Verdict::Alias,
                Some((key, _)) => key.verdict(),
                None => Verdict::Unknown,
            },
            Meaning::Ignored => Verdict::NoEffect,
            Meaning::Later { .. } => Verdict::NotYet,
            Meaning::Rejected => Verdict::Rejected,
        }
    }

    /// The key that an alias stands for.
    pub fn alias_of(&self) -> Option<&'static str> {
        match self.meaning {
            Meaning::Alias { to, .. } => Some(to),
            Meaning::Native { .. }
            | Meaning::Ignored
            | Meaning::Later { .. }
            | Meaning::Rejected => None,
        }
    }

    pub(crate) fn is_pattern(&self) -> bool {
        self.name.contains('*')
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, {})", self.name, self.verdict())
    }
}

const fn native(
    scope: Scope,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    note: &'static str,
    set: Set,
) -> Key {
    Key {
        name,
        kind,
        default,
        note,
        meaning: Meaning::Native { scope, set },
    }
}

/// All keys: native ones first, in the order of the tables.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    [
        job::KEYS,
        cluster::KEYS,
        aliases::KEYS,
        later::KEYS,
        ignored::KEYS,
    ]
    .into_iter()
    .flatten()
}

/// The key that a written name means, with the parts that its `*` stand for. A full name wins over a pattern.
pub(crate) fn find(written: &str) -> Option<(&'static Key, Vec<String>)> {
    if let Some(key) = keys().find(|key| key.name == written) {
        return Some((key, Vec::new()));
    }
    keys()
        .filter(|key| key.is_pattern())
        .find_map(|key| matches(key.name, written).map(|parts| (key, parts)))
}

/// The known name that looks most like an unknown one, if any looks like it at all.
pub(crate) fn nearest(written: &str) -> Option<String> {
    if written.len() > NAME_BYTES_MAX {
        return None;
    }
    let folded = written.to_lowercase();
    let length = folded.chars().count();
    let limit = (length / 3).max(2);
    keys()
        // The distance is at least the difference of the lengths.
        .filter(|key| !key.is_pattern() && key.name.len().abs_diff(length) <= limit)
        .map(|key| {
            let distance = strsim::osa_distance(&folded, &key.name.to_lowercase());
            (distance, key)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, key)| (*distance, key.verdict(), key.name))
        .map(|(_, key)| key.name.to_owned())
}

/// Puts the parts into the `*` of an alias' target.
pub(crate) fn fill(pattern: &str, parts: &[String]) -> String {
    let mut parts = parts.iter();
    let filled = pattern.split('.').map(|part| match part {
        "*" | "**" => parts.next().map_or(part, String::as_str),
        part => part,
    });
    filled.collect::<Vec<_>>().join(".")
}

fn matches(pattern: &str, written: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = Some(written);
    for part in pattern.split('.') {
        let text = rest?;
        if part == "**" {
            found.push(text.to_owned());
            return (!text.is_empty()).then_some(found);
        }
        let (head, tail) = match text.split_once('.') {
            Some((head, tail)) => (head, Some(tail)),
            None => (text, None),
        };
        if part == "*" && !head.is_empty() {
            found.push(head.to_owned());
        } else if part != head {
            return None;
        }
        rest = tail;
    }
    rest.is_none().then_some(found)
}

/// Whether a value must not be shown, by the table or by the look of the name.
pub(crate) fn is_secret(written: &str) -> bool {
    let kind = find(written).map(|(key, _)| match key.alias_of().and_then(find) {
        Some((target, _)) => target.kind,
        None => key.kind,
    });
    let folded = value::fold(written);
    kind == Some(Kind::Secret)
        || [
            "secret",
            "password",
            "token",
            "credential",
            "apikey",
            "accesskey",
            "access.key",
            "servicekey",
            "integrationkey",
            "webhook",
            "basicauth",
            "jaas",
            "accountkey",
        ]
        .iter()
        .any(|word| folded.contains(word))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::environment::variable_of;

    #[test]
    fn each_name_stands_once_and_each_alias_ends_at_a_key() {
        let mut seen = BTreeMap::new();
        for key in keys() {
            assert!(seen.insert(key.name, key).is_none(), "{} twice", key.name);
            if let Some(to) = key.alias_of() {
                let (target, _) = find(to).unwrap_or_else(|| panic!("{}: {to}", key.name));
                assert!(
                    target.alias_of().is_none(),
                    "{} -> {to} is a chain",
                    key.name
                );
                assert_eq!(key.name.matches('*').count(), to.matches('*').count());
            }
        }
        assert!(seen.len() > 300, "{}", seen.len());
    }

    #[test]
    fn every_key_says_what_it_does_and_refusals_name_another_key() {
        for key in keys() {
            assert!(!key.note.is_empty(), "{}", key.name);
            if key.verdict() == Verdict::Rejected {
                assert!(
                    keys().any(|other| !other.is_pattern() && key.note.contains(other.name)),
                    "{} names no key",
                    key.name
                );
            }
        }
    }

    // Two keys with one variable would make the environment ambiguous.
    #[test]
    fn each_environment_variable_means_one_key() {
        let mut seen = BTreeMap::new();
        for key in keys().filter(|key| !key.is_pattern()) {
            let native = key.alias_of().unwrap_or(key.name);
            if let Some(other) = seen.insert(variable_of(key.name), native) {
                assert_eq!(other, native, "{}", variable_of(key.name));
            }
        }
    }

    #[test]
    fn a_typing_error_is_answered_with_the_key_that_was_meant() {
        for (typed, meant) in [
            (
                "execution.checkpointing.intervall",
                "execution.checkpointing.interval",
            ),
            (
                "taskmanager.numberoftaskslots",
                "taskmanager.numberOfTaskSlots",
            ),
            (
                "restart-strategy.fixed-delay.attempt",
                "restart-strategy.fixed-delay.attempts",
            ),
            ("parallelism.defualt", "parallelism.default"),
        ] {
            assert_eq!(nearest(typed).as_deref(), Some(meant));
        }
        assert_eq!(nearest("completely.different.thing"), None);
    }

    #[test]
    fn patterns_match_whole_parts() {
        assert_eq!(matches("a.*.b", "a.x.b"), Some(vec!["x".into()]));
        assert_eq!(matches("a.**", "a.x.y"), Some(vec!["x.y".into()]));
        for (pattern, written) in [
            ("a.*.b", "a.b"),
            ("a.*", "a.x.y"),
            ("a.**", "a"),
            ("a.*", "a."),
            ("a.**", "a."),
        ] {
            assert_eq!(matches(pattern, written), None, "{pattern} {written}");
        }
        assert_eq!(fill("p.*.q.*", &["x".into(), "y".into()]), "p.x.q.y");
    }

    #[test]
    fn what_looks_like_a_secret_is_one() {
        for key in [
            "s3.secret-key",
            "s3.access.key",
            "security.cluster-secret",
            "my.passwordd",
            "fs.s3a.secret.key",
        ] {
            assert!(is_secret(key), "{key}");
        }
        assert!(!is_secret("execution.checkpointing.interval"));
    }
}
