//! Who is connected with whom, and what the receivers' memory is shared out as.
//!
//! Invariant: an entry lives as long as one of its ends, and no longer. Lock order: registry, then output, then link.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_actors::model::InstanceId;

use super::consumer_link::ConsumerLink;
use super::frame::{BODY_BYTES_MAX, ChannelId, LinkError, Window};
use super::local::{CONTROLS_MAX, LocalChannel};
use super::producer_link::ProducerLink;
use super::remote_output::RemoteOutput;
use crate::batch::Record;

/// `Open`s that wait for their producers, over all connections. A task has a channel to each subtask before it, so this is
/// more than any sane job's; beyond it, connections are closed.
pub(super) const WAITING_MAX: usize = 65_536;
/// A channel's window in records: some batches of [`REMOTE_BATCH_RECORDS`](super::output::REMOTE_BATCH_RECORDS).
pub(super) const WINDOW_RECORDS: u32 = 32 * 1024;
/// A channel's window when memory is plenty, in bytes.
pub(super) const WINDOW_BYTES: u64 = 1024 * 1024;
/// A channel's window when it is not.
pub(super) const WINDOW_BYTES_MIN: u64 = 16 * 1024;

#[derive(Default)]
pub(super) struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    local: BTreeMap<ChannelId, LocalEntry>,
    outputs: BTreeMap<ChannelId, Arc<RemoteOutput>>,
    waiting: BTreeMap<ChannelId, Waiting>,
    links: BTreeMap<InstanceId, Arc<ConsumerLink>>,
    memory: Memory,
}

struct LocalEntry {
    channel: Arc<dyn Any + Send + Sync>,
    ends: [bool; 2],
}

struct Waiting {
    link: Arc<ProducerLink>,
    alias: u32,
    window: Window,
}

#[derive(Default)]
struct Memory {
    total: u64,
    channels: u64,
    reserved: u64,
}

/// One end of a channel within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Producer,
    Consumer,
}

/// Sizes of everything that must be empty when all tasks are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExchangeUsage {
    /// Channels within the process.
    pub local_channels: usize,
    /// Producing ends of channels to other processes.
    pub remote_outputs: usize,
    /// Consumers of other processes that wait for a producer here.
    pub waiting_consumers: usize,
    /// Connections dialed by consumers here.
    pub links: usize,
    /// Consuming ends of channels from other processes.
    pub remote_inputs: u64,
    /// Memory reserved for them, in bytes.
    pub reserved_bytes: u64,
}

impl Registry {
    pub(super) fn new(network_memory: u64) -> Self {
        Self(Mutex::new(State {
            memory: Memory {
                total: network_memory,
                ..Memory::default()
            },
            ..State::default()
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usage(&self) -> ExchangeUsage {
        let state = self.lock();
        ExchangeUsage {
            local_channels: state.local.len(),
            remote_outputs: state.outputs.len(),
            waiting_consumers: state.waiting.len(),
            links: state.links.len(),
            remote_inputs: state.memory.channels,
            reserved_bytes: state.memory.reserved,
        }
    }

    /// The channel within the process, made by whoever comes first; an error text when this end was opened before.
    pub(super) fn local<T: Record>(
        &self,
        id: ChannelId,
        end: End,
    ) -> Result<Arc<LocalChannel<T>>, String> {
        let mut state = self.lock();
        let entry = state.local.entry(id).or_insert_with(|| LocalEntry {
            channel: Arc::new(LocalChannel::<T>::new()),
            ends: [false; 2],
        });
        let Ok(channel) = Arc::clone(&entry.channel).downcast::<LocalChannel<T>>() else {
            return Err(format!(
                "{id} carries other records than {}",
                std::any::type_name::<T>()
            ));
        };
        let is_open = &mut entry.ends[end as usize];
        if *is_open {
            return Err(format!("the {end:?} end of {id} was opened twice"));
        }
        *is_open = true;
        Ok(channel)
    }

    pub(super) fn drop_local(&self, id: ChannelId, end: End) {
        let mut state = self.lock();
        if let Some(entry) = state.local.get_mut(&id) {
            entry.ends[end as usize] = false;
            if entry.ends == [false; 2] {
                state.local.remove(&id);
            }
        }
    }

    /// Adds a producing end, and connects the consumer if it waits; `false` when it was added before.
    pub(super) fn add_output(&self, id: ChannelId, output: &Arc<RemoteOutput>) -> bool {
        let mut state = self.lock();
        if state.outputs.contains_key(&id) {
            return false;
        }
        state.outputs.insert(id, Arc::clone(output));
        if let Some(Waiting {
            link,
            alias,
            window,
        }) = state.waiting.remove(&id)
        {
            output.attach(&link, alias, window);
        }
        true
    }

    pub(super) fn drop_output(&self, id: ChannelId) {
        self.lock().outputs.remove(&id);
    }

    /// A consumer of another process asks for a channel.
    pub(super) fn open(
        &self,
        link: &Arc<ProducerLink>,
        alias: u32,
        id: ChannelId,
        window: Window,
    ) -> Result<(), LinkError> {
        // A peer's claim bounds our queue of frames to write, so it has limits of its own.
        let window = Window {
            records: window.records.clamp(1, WINDOW_RECORDS),
            bytes: window.bytes.clamp(1, BODY_BYTES_MAX as u64),
            controls: window.controls.clamp(1, CONTROLS_MAX as u32),
        };
        let mut state = self.lock();
        if let Some(output) = state.outputs.get(&id) {
            if !output.attach(link, alias, window) {
                link.refuse(alias, "the channel had a consumer before");
            }
        } else if state.waiting.contains_key(&id) {
            link.refuse(alias, "the channel has a consumer");
        } else if state.waiting.len() >= WAITING_MAX {
            return Err(LinkError::TooManyWaiting { max: WAITING_MAX });
        } else {
            link.wait(alias, id);
            let link = Arc::clone(link);
            state.waiting.insert(
                id,
                Waiting {
                    link,
                    alias,
                    window,
                },
            );
        }
        Ok(())
    }

    /// A waiting consumer is gone.
    pub(super) fn forget(&self, link: &Arc<ProducerLink>, id: ChannelId) {
        let mut state = self.lock();
        if state
            .waiting
            .get(&id)
            .is_some_and(|w| Arc::ptr_eq(&w.link, link))
        {
            state.waiting.remove(&id);
        }
    }

    pub(super) fn link(&self, instance: InstanceId) -> Option<Arc<ConsumerLink>> {
        self.lock().links.get(&instance).cloned()
    }

    /// Makes this the connection to its peer, for channels to come.
    pub(super) fn set_link(&self, link: &Arc<ConsumerLink>) {
        self.lock()
            .links
            .insert(link.peer().instance, Arc::clone(link));
    }

    /// Removes it, unless another has taken its place.
    pub(super) fn drop_link(&self, link: &Arc<ConsumerLink>) {
        let mut state = self.lock();
        let instance = link.peer().instance;
        if state
            .links
            .get(&instance)
            .is_some_and(|l| Arc::ptr_eq(l, link))
        {
            state.links.remove(&instance);
        }
    }

    /// Counts consuming ends in, before their windows are cut.
    pub(super) fn add_inputs(&self, count: u64) {
        self.lock().memory.channels += count;
    }

    /// Cuts a window: `min(default, memory / channels)`, no more than is left, but at least the floor. Windows that were cut
    /// before keep their size, so that with very many channels, and with batches larger than a window, memory may be
    /// exceeded by the floor or the batch of each channel.
    pub(super) fn reserve(&self) -> Window {
        let memory = &mut self.lock().memory;
        let share = memory.total / memory.channels.max(1);
        let left = memory.total.saturating_sub(memory.reserved);
        let bytes = WINDOW_BYTES.min(share).min(left).max(WINDOW_BYTES_MIN);
        memory.reserved += bytes;
        Window {
            records: WINDOW_RECORDS,
            bytes,
            controls: CONTROLS_MAX as u32,
        }
    }

    /// Gives back what a consuming end had.
    pub(super) fn drop_input(&self, reserved: Option<Window>) {
        let memory = &mut self.lock().memory;
        memory.channels = memory.channels.saturating_sub(1);
        memory.reserved = memory
            .reserved
            .saturating_sub(reserved.map_or(0, |w| w.bytes));
    }
}
