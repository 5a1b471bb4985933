//! Operator state: lists of items that belong to an operator and not to a key, redistributed when the parallelism changes:
//! split, given whole to each, or copied, as in Flink.

use std::any::Any;
use std::marker::PhantomData;

use perennial_actors::model::FailureKind;
use serde::{Deserialize, Serialize};

use super::{OperatorError, RestoredOperator};
use crate::state::StateValue;

/// How items are spread over subtasks at a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Redistribution {
    /// Each item to one subtask, round robin.
    Split,
    /// Every item to every subtask.
    Union,
    /// Each subtask gets the list of one subtask; all hold the same.
    Broadcast,
}

/// A list as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedList {
    /// Unique within the operator.
    pub name: String,
    /// See there.
    pub redistribution: Redistribution,
    /// Each with named fields (rmp-serde).
    pub items: Vec<Vec<u8>>,
}

/// The stored form of all lists of one operator in one subtask.
pub(crate) fn encode_lists(lists: &[NamedList]) -> Vec<u8> {
    rmp_serde::to_vec_named(lists).expect("names and bytes always encode")
}

/// Reads [`encode_lists`]; any bytes are safe.
pub(crate) fn decode_lists(bytes: &[u8]) -> Result<Vec<NamedList>, FailureKind> {
    rmp_serde::from_slice(bytes).map_err(|error| FailureKind::State {
        message: format!("operator state does not decode: {error}"),
    })
}

/// A handle to a list of operator state.
#[derive(Debug)]
pub struct OperatorList<T> {
    index: usize,
    _type: PhantomData<fn() -> T>,
}

impl<T> Clone for OperatorList<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for OperatorList<T> {}

trait AnyItems: Send {
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn encode(&self) -> Result<Vec<Vec<u8>>, rmp_serde::encode::Error>;
}

impl<T: StateValue> AnyItems for Vec<T> {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn encode(&self) -> Result<Vec<Vec<u8>>, rmp_serde::encode::Error> {
        self.iter().map(rmp_serde::to_vec_named).collect()
    }
}

struct Entry {
    name: String,
    redistribution: Redistribution,
    items: Box<dyn AnyItems>,
}

/// The lists of one operator in one subtask.
#[derive(Default)]
pub(crate) struct OperatorStateStore {
    entries: Vec<Entry>,
    restored: Vec<NamedList>,
}

impl OperatorStateStore {
    /// Takes what a snapshot holds; it waits for the registration of its list.
    pub(crate) fn restore(&mut self, restored: &mut RestoredOperator) {
        self.restored = std::mem::take(&mut restored.lists);
    }

    /// What was restored and nobody has registered.
    pub(crate) fn unclaimed(&mut self) -> Vec<NamedList> {
        std::mem::take(&mut self.restored)
    }

    /// Registers a list and fills it with what was restored.
    pub(crate) fn register<T: StateValue>(
        &mut self,
        name: &str,
        redistribution: Redistribution,
    ) -> Result<OperatorList<T>, OperatorError> {
        if self.entries.iter().any(|e| e.name == name) {
            return Err(OperatorError(FailureKind::IncompatibleState {
                message: format!("operator state `{name}` is registered twice"),
            }));
        }
        let mut items = Vec::<T>::new();
        if let Some(position) = self.restored.iter().position(|l| l.name == name) {
            let list = self.restored.remove(position);
            for item in list.items {
                items.push(rmp_serde::from_slice(&item).map_err(|error| {
                    OperatorError(FailureKind::IncompatibleState {
                        message: format!(
                            "an item of operator state `{name}` does not decode as {}: {error}",
                            std::any::type_name::<T>()
                        ),
                    })
                })?);
            }
        }
        self.entries.push(Entry {
            name: name.to_owned(),
            redistribution,
            items: Box::new(items),
        });
        Ok(OperatorList {
            index: self.entries.len() - 1,
            _type: PhantomData,
        })
    }

    /// The items.
    ///
    /// # Panics
    /// When the handle comes from another operator.
    pub(crate) fn get_mut<T: StateValue>(&mut self, list: OperatorList<T>) -> &mut Vec<T> {
        self.entries[list.index]
            .items
            .as_any_mut()
            .downcast_mut()
            .expect("a handle belongs to the store that made it")
    }

    /// The items, read only.
    ///
    /// # Panics
    /// When the handle comes from another operator.
    pub(crate) fn get<T: StateValue>(&self, list: OperatorList<T>) -> &Vec<T> {
        self.entries[list.index]
            .items
            .as_any()
            .downcast_ref()
            .expect("a handle belongs to the store that made it")
    }

    /// Encodes all lists for a snapshot.
    pub(crate) fn capture(&self) -> Result<Vec<NamedList>, OperatorError> {
        self.entries
            .iter()
            .map(|entry| {
                Ok(NamedList {
                    name: entry.name.clone(),
                    redistribution: entry.redistribution,
                    items: entry.items.encode().map_err(|error| {
                        OperatorError(FailureKind::State {
                            message: format!(
                                "operator state `{}` does not encode: {error}",
                                entry.name
                            ),
                        })
                    })?,
                })
            })
            .collect()
    }
}

/// The share of one subtask of what all subtasks stored. Pure: every subtask computes it from the same input.
pub(crate) fn redistribute(
    stored: &[Vec<NamedList>],
    subtask: usize,
    parallelism: usize,
) -> Vec<NamedList> {
    let mut shares: Vec<NamedList> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    for (owner, lists) in stored.iter().enumerate() {
        for list in lists {
            let place = match shares.iter().position(|s| s.name == list.name) {
                Some(place) => place,
                None => {
                    shares.push(NamedList {
                        name: list.name.clone(),
                        redistribution: list.redistribution,
                        items: Vec::new(),
                    });
                    counts.push(0);
                    shares.len() - 1
                }
            };
            match list.redistribution {
                // With unchanged parallelism each subtask keeps its own, so that nothing moves without need.
                Redistribution::Split if stored.len() == parallelism => {
                    if owner == subtask {
                        shares[place].items.extend(list.items.iter().cloned());
                    }
                }
                Redistribution::Split => {
                    for item in &list.items {
                        if counts[place] % parallelism == subtask {
                            shares[place].items.push(item.clone());
                        }
                        counts[place] += 1;
                    }
                }
                Redistribution::Union => shares[place].items.extend(list.items.iter().cloned()),
                Redistribution::Broadcast => {
                    if owner == subtask % stored.len() {
                        shares[place].items = list.items.clone();
                    }
                }
            }
        }
    }
    shares
}

/// All items of all subtasks, per list.
pub(crate) fn union(stored: &[Vec<NamedList>]) -> Vec<NamedList> {
    let mut all: Vec<NamedList> = Vec::new();
    for list in stored.iter().flatten() {
        match all.iter_mut().find(|l| l.name == list.name) {
            Some(known) => known.items.extend(list.items.iter().cloned()),
            None => all.push(list.clone()),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(redistribution: Redistribution, items: &[u8]) -> Vec<NamedList> {
        vec![NamedList {
            name: "l".into(),
            redistribution,
            items: items.iter().map(|i| vec![*i]).collect(),
        }]
    }

    /// Three subtasks stored; every change of parallelism gives each item to exactly one subtask.
    #[test]
    fn split_items_reach_exactly_one_subtask_at_every_parallelism() {
        let stored = [
            list(Redistribution::Split, &[1, 2, 3]),
            list(Redistribution::Split, &[]),
            list(Redistribution::Split, &[4, 5]),
        ];
        for parallelism in 1..7 {
            let mut seen: Vec<u8> = (0..parallelism)
                .flat_map(|subtask| redistribute(&stored, subtask, parallelism))
                .flat_map(|l| l.items)
                .map(|i| i[0])
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, [1, 2, 3, 4, 5], "parallelism {parallelism}");
        }
        let own: Vec<_> = redistribute(&stored, 2, 3).remove(0).items;
        assert_eq!(
            own,
            [vec![4], vec![5]],
            "unchanged parallelism moves nothing"
        );
    }

    /// Union gives everything to everybody, broadcast the same list to everybody.
    #[test]
    fn union_and_broadcast_items_reach_every_subtask() {
        let union = [
            list(Redistribution::Union, &[1]),
            list(Redistribution::Union, &[2]),
        ];
        let broadcast = [
            list(Redistribution::Broadcast, &[7]),
            list(Redistribution::Broadcast, &[7]),
        ];
        for subtask in 0..3 {
            assert_eq!(
                redistribute(&union, subtask, 3)[0].items,
                [vec![1], vec![2]]
            );
            assert_eq!(redistribute(&broadcast, subtask, 3)[0].items, [vec![7]]);
        }
    }
}
