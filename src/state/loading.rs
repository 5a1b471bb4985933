//! Stored entries that wait for their state to be registered, because only then their types are known.

use std::collections::BTreeMap;

use bytes::Bytes;
use perennial_actors::model::{KeyGroup, SegmentKind, StateMeta};

use super::StateError;
use super::encoding::for_each_section;

/// Sections by group, in chain order.
#[derive(Default)]
pub(super) struct Waiting {
    metas: BTreeMap<String, StateMeta>,
    groups: BTreeMap<KeyGroup, Vec<(String, Bytes)>>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.values().all(Vec::is_empty)
    }

    /// Splits a group's bytes by state. A full segment makes what came before it void.
    pub(super) fn add(
        &mut self,
        kind: SegmentKind,
        states: &[StateMeta],
        group: KeyGroup,
        bytes: &Bytes,
    ) -> Result<Vec<(String, Bytes)>, StateError> {
        for meta in states {
            self.metas
                .entry(meta.name.clone())
                .or_insert_with(|| meta.clone());
        }
        if kind == SegmentKind::Full {
            self.groups.remove(&group);
        }
        let mut sections = Vec::new();
        for_each_section(bytes, |index, section| {
            let Some(meta) = states.iter().find(|m| m.index == index) else {
                return Err(super::DecodeError(format!(
                    "holds entries of state number {index}, which the manifest does not name"
                )));
            };
            sections.push((meta.name.clone(), bytes.slice_ref(section)));
            Ok(())
        })
        .map_err(|e| StateError::Decode {
            name: "(any)".to_owned(),
            group,
            message: e.to_string(),
        })?;
        Ok(sections)
    }

    pub(super) fn keep(&mut self, name: &str, group: KeyGroup, section: Bytes) {
        let group = self.groups.entry(group).or_default();
        group.push((name.to_owned(), section));
    }

    /// Takes a state's sections.
    pub(super) fn take(&mut self, name: &str) -> Vec<(KeyGroup, Bytes)> {
        let mut taken = Vec::new();
        for (group, sections) in &mut self.groups {
            sections.retain(|(n, section)| {
                if n == name {
                    taken.push((*group, section.clone()));
                }
                n != name
            });
        }
        taken
    }

    /// Whether the stored state of that name is of the registered kind; its stored number.
    pub(super) fn check(&self, meta: &StateMeta) -> Result<Option<u16>, StateError> {
        let Some(stored) = self.metas.get(&meta.name) else {
            return Ok(None);
        };
        let pairs = [
            ("kind", &stored.kind, &meta.kind),
            ("key type", &stored.key_type, &meta.key_type),
            ("serializer", &stored.serializer, &meta.serializer),
        ];
        for (what, was, is) in pairs {
            if was != is {
                return Err(StateError::Incompatible {
                    name: meta.name.clone(),
                    message: format!("its {what} is {was} in the snapshot and {is} in the job"),
                });
            }
        }
        if stored.version > meta.version {
            return Err(StateError::Incompatible {
                name: meta.name.clone(),
                message: format!(
                    "the snapshot has format version {}, this build reads up to {}",
                    stored.version, meta.version
                ),
            });
        }
        Ok(Some(stored.index))
    }

    pub(super) fn has_index(&self, index: u16) -> bool {
        self.metas.values().any(|m| m.index == index)
    }

    /// States that hold entries and were not taken, by name.
    pub(super) fn names_left(&self) -> Vec<String> {
        let all = self.groups.values().flatten().map(|(name, _)| name.clone());
        let mut names: Vec<String> = all.collect();
        names.sort();
        names.dedup();
        names
    }
}
