//! Weighs the layers against each other and gives every setting its verdict.
//!
//! Invariant: each setting of each source becomes exactly one row, and each reason to refuse becomes exactly one error, in the order
//! of the sources; nothing stops at the first. No secret enters a row or an error.

use std::collections::{BTreeMap, BTreeSet};

use crate::draft::{Draft, Finished};
use crate::error::{ConfigError, ConfigErrors, Notice, Origin};
use crate::keys::{self, Key, Kind, Meaning, Refusal, Scope, Verdict};
use crate::settings::Settings;
use crate::sources::{Layer, Layers, Repeats, Setting, Sources};
use crate::value::fold;

/// What stands in place of a secret.
const MASK: &str = "******";

/// Comparing a name with the whole table takes a while: in a file with more unknown keys than this, spelling is not the problem.
const SUGGESTIONS_MAX: usize = 32;

/// One line of `config check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// As it is written in its source; of a default, the native name.
    pub key: String,
    /// The native key that it means, where that is another one.
    pub native: Option<String>,
    /// As it is written, or masked; empty for a key without a default.
    pub value: String,
    /// Where it stands.
    pub origin: Origin,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why.
    pub note: String,
    /// The stronger source that sets the same.
    pub overridden_by: Option<Origin>,
}

impl Row {
    /// False: a default that no source touched.
    pub fn is_set(&self) -> bool {
        self.origin != Origin::Default
    }
}

/// What a check found: enough for `config check`, and for a node to start or refuse.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Everything that is set, in the order of the sources, then the defaults.
    pub table: Vec<Row>,
    /// What a node says at start.
    pub notices: Vec<Notice>,
    /// Why a node would not start.
    pub errors: ConfigErrors,
    /// What was understood; only complete without errors.
    pub(crate) settings: Settings,
}

/// Reads and weighs all sources. Never fails and never stops early: what is wrong is in [`Checked::errors`].
pub fn check(sources: &Sources) -> Checked {
    check_with_job(sources, &[])
}

pub(crate) fn check_with_job(sources: &Sources, job: &[(String, String)]) -> Checked {
    let layers = Layers::of(sources, job);
    let mut scale = Scale::default();
    scale.notices.extend(layers.notices);
    for layer in layers.layers {
        scale.add(layer);
    }
    scale.finish(layers.errors)
}

/// The strongest setting of a key so far.
struct Winner {
    key: &'static Key,
    written: String,
    /// As the native key reads it.
    value: String,
    row: usize,
}

#[derive(Default)]
struct Scale {
    table: Vec<Row>,
    notices: Vec<Notice>,
    /// With the row they are about, so that they can be told in the order of the sources.
    errors: Vec<(usize, ConfigError)>,
    winners: BTreeMap<String, Winner>,
    unknown: usize,
}

impl Scale {
    fn add(&mut self, layer: Layer) {
        let mut written: BTreeMap<String, Origin> = BTreeMap::new();
        let mut meant: BTreeMap<String, (String, String, Origin)> = BTreeMap::new();
        for setting in layer.settings {
            if layer.repeats == Repeats::Refused {
                if let Some(first) = written.get(&setting.key) {
                    self.refuse(ConfigError::Duplicate {
                        key: setting.key,
                        origin: setting.origin,
                        first: first.clone(),
                    });
                    continue;
                }
                written.insert(setting.key.clone(), setting.origin.clone());
            }
            self.add_setting(setting, &mut meant);
        }
    }

    /// An error about the row that comes next.
    fn refuse(&mut self, error: ConfigError) {
        self.errors.push((self.table.len(), error));
    }

    fn add_setting(
        &mut self,
        setting: Setting,
        meant: &mut BTreeMap<String, (String, String, Origin)>,
    ) {
        let Setting { key, value, origin } = setting;
        let Some((found, parts)) = keys::find(&key) else {
            self.unknown += 1;
            let is_suggested = self.unknown <= SUGGESTIONS_MAX;
            let nearest = is_suggested.then(|| keys::nearest(&key)).flatten();
            // A misspelt secret is still one; without a comparison nobody knows.
            let is_secret = !is_suggested || nearest.as_deref().is_some_and(keys::is_secret);
            let shown = if is_secret {
                MASK.to_owned()
            } else {
                shown(&key, &value)
            };
            let note = nearest
                .as_ref()
                .map_or_else(String::new, |key| format!("did you mean {key}?"));
            self.refuse(ConfigError::Unknown {
                key: key.clone(),
                origin: origin.clone(),
                nearest,
            });
            self.table.push(Row {
                key,
                native: None,
                value: shown,
                origin,
                verdict: Verdict::Unknown,
                note,
                overridden_by: None,
            });
            return;
        };
        let shown = shown(&key, &value);
        let (target, native, translated) = match found.meaning {
            Meaning::Alias { to, translate } => {
                let native = keys::fill(to, &parts);
                match keys::find(&native) {
                    Some((target, _)) => (target, native, translate.apply(&value)),
                    // Not reachable while the table's own test holds.
                    None => (found, key.clone(), value.clone()),
                }
            }
            Meaning::Native { .. }
            | Meaning::Ignored
            | Meaning::Later { .. }
            | Meaning::Rejected => (found, key.clone(), value.clone()),
        };
        self.judge(&key, &origin, target);
        if native != key {
            self.notices.push(Notice {
                origin: origin.clone(),
                text: format!("{key}: {shown} is read as {native} ({})", found.note),
            });
        }
        if let Err(Refusal::Invalid(reason)) = attempt(target, &translated) {
            self.refuse(ConfigError::Invalid {
                key: key.clone(),
                value: quoted(&key, &value),
                origin: origin.clone(),
                reason,
            });
        }
        match meant.get(&native) {
            Some((other, known, first)) if *other != key && !agree(target, known, &translated) => {
                self.refuse(ConfigError::Contradiction {
                    key: key.clone(),
                    other: other.clone(),
                    native: native.clone(),
                    origin: origin.clone(),
                    first: first.clone(),
                });
            }
            _ => {
                meant.insert(
                    native.clone(),
                    (key.clone(), translated.clone(), origin.clone()),
                );
            }
        }
        let note = if native == key {
            found.note.to_owned()
        } else {
            format!("means {native}; {}", found.note)
        };
        let row = self.table.len();
        self.table.push(Row {
            native: (native != key).then(|| native.clone()),
            key: key.clone(),
            value: shown,
            origin: origin.clone(),
            verdict: found.verdict(),
            note,
            overridden_by: None,
        });
        let winner = Winner {
            key: target,
            written: key,
            value: translated,
            row,
        };
        if let Some(loser) = self.winners.insert(native, winner) {
            self.table[loser.row].overridden_by = Some(origin);
        }
    }

    /// What the name alone decides, whoever wins.
    fn judge(&mut self, key: &str, origin: &Origin, target: &Key) {
        if matches!(target.meaning, Meaning::Rejected) {
            self.refuse(ConfigError::Rejected {
                key: key.to_owned(),
                origin: origin.clone(),
                note: target.note.to_owned(),
            });
        }
        if matches!(target.meaning, Meaning::Ignored) {
            self.notices.push(Notice {
                origin: origin.clone(),
                text: format!("{key} has no effect: {}", target.note),
            });
        }
        let is_cluster_key = matches!(
            target.meaning,
            Meaning::Native {
                scope: Scope::Cluster,
                ..
            }
        );
        if *origin == Origin::Job && is_cluster_key {
            self.refuse(ConfigError::NotAJobKey {
                key: key.to_owned(),
            });
        }
    }

    fn finish(mut self, mut errors: Vec<ConfigError>) -> Checked {
        self.drop_foreign_token();
        let mut draft = Draft::blank();
        for key in keys::keys() {
            if let (Meaning::Native { set, .. }, Some(default)) = (key.meaning, key.default) {
                let outcome = set(&mut draft, default);
                debug_assert_eq!(outcome, Ok(()), "default of {}", key.name);
            }
        }
        draft.said.clear();
        let mut invalid = BTreeSet::new();
        for (native, winner) in &self.winners {
            let refusal = match winner.key.meaning {
                Meaning::Native { set, .. } => set(&mut draft, &winner.value),
                Meaning::Later { today } if today.map(fold) == Some(fold(&winner.value)) => {
                    self.table[winner.row].verdict = if *native == winner.written {
                        Verdict::Native
                    } else {
                        Verdict::Alias
                    };
                    Ok(())
                }
                Meaning::Later { .. } => Err(Refusal::NotYet(winner.key.note)),
                Meaning::Ignored | Meaning::Rejected | Meaning::Alias { .. } => Ok(()),
            };
            let row = &mut self.table[winner.row];
            for text in draft.said.drain(..) {
                row.note = text.clone();
                self.notices.push(Notice {
                    origin: row.origin.clone(),
                    text: format!("{}: {}: {text}", winner.written, row.value),
                });
            }
            // Reported when its row was made.
            if let Err(Refusal::Invalid(_)) = refusal {
                invalid.insert(native.clone());
            }
            if let Err(Refusal::NotYet(note)) = refusal {
                row.verdict = Verdict::NotYet;
                row.note = note.to_owned();
                let error = ConfigError::NotYet {
                    key: winner.written.clone(),
                    native: native.clone(),
                    origin: row.origin.clone(),
                    note: note.to_owned(),
                };
                self.errors.push((winner.row, error));
            }
        }
        // Stable: several errors about one row keep their order.
        self.errors.sort_by_key(|(row, _)| *row);
        errors.extend(self.errors.drain(..).map(|(_, error)| error));

        let finished = draft.finish(&|key| self.at(key));
        self.remark(&finished);
        errors.extend(
            finished
                .complaints
                .into_iter()
                .filter(|complaint| complaint.keys.iter().all(|key| !invalid.contains(*key)))
                .map(|complaint| ConfigError::Inconsistent {
                    message: complaint.message,
                }),
        );
        self.add_defaults();
        Checked {
            table: self.table,
            notices: self.notices,
            errors: ConfigErrors(errors),
            settings: finished.settings,
        }
    }

    /// `key (value, place)`.
    fn at(&self, key: &str) -> String {
        match self.winners.get(key) {
            Some(winner) => {
                let row = &self.table[winner.row];
                format!("{} ({}, {})", row.key, row.value, row.origin)
            }
            None => {
                let default = keys::find(key).and_then(|(key, _)| key.default);
                format!("{key} ({}, default)", default.unwrap_or("unset"))
            }
        }
    }

    /// A token of AWS's variables goes with the access key of AWS's variables: beside another key it would only break that one.
    fn drop_foreign_token(&mut self) {
        let is_of_aws = |native: &str| {
            self.winners.get(native).is_some_and(|winner| {
                matches!(&self.table[winner.row].origin, Origin::Environment { variable, .. } if variable.starts_with("AWS_"))
            })
        };
        if is_of_aws("s3.session-token")
            && !is_of_aws("s3.access-key")
            && let Some(token) = self.winners.remove("s3.session-token")
        {
            self.table[token.row].note =
                "not used: it goes with AWS_ACCESS_KEY_ID, and s3.access-key is another".to_owned();
        }
    }

    fn remark(&mut self, finished: &Finished) {
        for (key, text) in &finished.remarks {
            let origin = match self.winners.get(*key) {
                Some(winner) => self.table[winner.row].origin.clone(),
                None => Origin::Default,
            };
            self.notices.push(Notice {
                origin,
                text: format!("{key}: {text}"),
            });
        }
        for (native, winner) in &self.winners {
            let is_of_a_strategy =
                native.matches('.').count() == 2 && native.starts_with("restart-strategy.");
            let is_chosen = finished
                .strategy
                .prefix()
                .is_some_and(|prefix| native.starts_with(prefix));
            let row = &self.table[winner.row];
            // A profile's own parameters are meant to lie idle when the file chooses another strategy.
            if is_of_a_strategy && !is_chosen && !matches!(row.origin, Origin::Profile { .. }) {
                self.notices.push(Notice {
                    origin: row.origin.clone(),
                    text: format!(
                        "{} is not used, because restart-strategy.type is another",
                        winner.written
                    ),
                });
            }
        }
    }

    fn add_defaults(&mut self) {
        for key in keys::keys() {
            if matches!(key.meaning, Meaning::Native { .. }) && !self.winners.contains_key(key.name)
            {
                self.table.push(Row {
                    key: key.name.to_owned(),
                    native: None,
                    value: key.default.unwrap_or("").to_owned(),
                    origin: Origin::Default,
                    verdict: Verdict::Native,
                    note: key.note.to_owned(),
                    overridden_by: None,
                });
            }
        }
    }
}

/// Whether two spellings are one value. Only words may differ in case: paths and secrets may not.
fn agree(key: &Key, one: &str, other: &str) -> bool {
    match key.kind {
        Kind::Word | Kind::Flag => fold(one) == fold(other),
        Kind::Duration
        | Kind::Size
        | Kind::Count
        | Kind::Decimal
        | Kind::Share
        | Kind::Cpu
        | Kind::Text
        | Kind::Secret
        | Kind::Directory
        | Kind::Ports
        | Kind::List => one.trim() == other.trim(),
    }
}

/// Whether a value could be taken, tried on a draft that is thrown away.
fn attempt(key: &Key, value: &str) -> Result<(), Refusal> {
    match key.meaning {
        Meaning::Native { set, .. } => set(&mut Draft::blank(), value),
        Meaning::Ignored | Meaning::Later { .. } => Ok(key.kind.check(value)?),
        Meaning::Rejected | Meaning::Alias { .. } => Ok(()),
    }
}

fn shown(key: &str, value: &str) -> String {
    if keys::is_secret(key) && !value.is_empty() {
        MASK.to_owned()
    } else {
        value.to_owned()
    }
}

fn quoted(key: &str, value: &str) -> String {
    if keys::is_secret(key) {
        MASK.to_owned()
    } else {
        format!("{value:?}")
    }
}
