//! R1 to R5: what a job leaves behind when it has ended.
//!
//! Invariant: it is looked at until all is released or the budget is over, since nothing says when the last thing is.

use std::time::Duration;

use perennial_actors::clock::Instant;

use super::super::super::resources::{files_below, open_files, resident_bytes, task_threads};
use super::super::watch::View;
use super::super::{Run, is_finished};
use crate::checker::Struck;
use crate::plan::{Fault, Invariant};

/// R1-R4: how long after the end of a job its resources may take to come back, its objects to be swept.
const RELEASE_BUDGET: Duration = Duration::from_secs(20);
/// R5: what a node may hold more than before, in bytes: pools and caches that stay, allocator included.
const RESIDENT_TOLERANCE: u64 = 96 << 20;
/// R2: descriptors that a node may hold more than before: idle connections to the store, and of nodes that joined.
const DESCRIPTOR_TOLERANCE: usize = 12;

/// What a node held before the job.
#[derive(Debug, Clone)]
pub(super) struct Baseline {
    pid: u32,
    files: usize,
    resident: u64,
}

impl Baseline {
    pub(super) fn of(pid: u32) -> Self {
        Self {
            pid,
            files: open_files(pid).len(),
            resident: resident_bytes(pid),
        }
    }
}

impl Run<'_> {
    pub(super) fn check_leftovers(&mut self, view: &View) {
        let deadline = Instant::now() + RELEASE_BUDGET;
        let mut left = self.leftovers(view);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            left = self.leftovers(view);
        }
        for invariant in [
            Invariant::R1,
            Invariant::R2,
            Invariant::R3,
            Invariant::R4,
            Invariant::R5,
        ] {
            let of_it = left.iter().filter(|(i, _)| *i == invariant);
            let of_it = of_it.map(|(_, detail)| detail.clone()).collect();
            self.judge.all(invariant, of_it);
        }
    }

    fn leftovers(&mut self, view: &View) -> Vec<(Invariant, String)> {
        let mut left = Vec::new();
        let nodes = self.watcher.view().task_managers;
        let expected = self.cluster.task_manager_names().len();
        if nodes.len() != expected {
            let names: Vec<_> = nodes.iter().map(|n| &n.resource.0).collect();
            left.push((
                Invariant::R1,
                format!("{names:?} are registered of {expected}"),
            ));
        }
        for node in &nodes {
            if node.slots.0 != node.slots.1 {
                let (free, all) = node.slots;
                let what = format!("{} has {free} of {all} slots free", node.resource);
                left.push((Invariant::R1, what));
            }
        }
        for (name, before) in &self.judge.baseline {
            let Some(node) = self.cluster.nodes.get(name) else {
                continue;
            };
            let pid = node.pid();
            let threads = task_threads(pid);
            if !threads.is_empty() {
                left.push((Invariant::R2, format!("{name} has threads {threads:?}")));
            }
            let files = open_files(pid);
            if files.len() > before.files + DESCRIPTOR_TOLERANCE {
                let what = format!("{name} has {files:?} open, {} before", before.files);
                left.push((Invariant::R2, what));
            }
            let resident = resident_bytes(pid);
            // A process that was started anew has its own beginning.
            if pid == before.pid && resident > before.resident + RESIDENT_TOLERANCE {
                let what = format!("{name} holds {resident} bytes, {} before", before.resident);
                left.push((Invariant::R5, what));
            }
        }
        for directory in ["work", "tmp"] {
            let files = files_below(&self.cluster.path(directory));
            if !files.is_empty() {
                left.push((Invariant::R3, format!("nodes left {files:?}")));
            }
        }
        if is_finished(view) {
            // What was prepared for a savepoint stays, since a job may start from it at any time.
            let hidden: Vec<String> = files_below(&self.output)
                .into_iter()
                .filter(|path| path.contains("/.") && path.contains(&self.job))
                .filter(|path| !path.ends_with(".savepoint"))
                .collect();
            if !hidden.is_empty() {
                left.push((Invariant::R3, format!("uncommitted output {hidden:?}")));
            }
            match self.objects() {
                Ok(objects)
                    if objects.is_empty() || ended_without_a_store(&self.struck, self.ended_ms) => {
                }
                Ok(objects) => left.push((Invariant::R4, format!("the store keeps {objects:?}"))),
                Err(error) => left.push((Invariant::R4, format!("no inventory: {error:#}"))),
            }
        }
        left
    }

    /// State objects of the job that are still in the store.
    fn objects(&self) -> anyhow::Result<Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let storage = self.cluster.storage();
        let store = storage
            .open()
            .open(&storage.uri(&format!("checkpoints/{}", self.job)))?;
        let found = runtime.block_on(store.list("shared/"))?;
        Ok(found.into_iter().map(|o| o.key).collect())
    }
}

/// Whether the store was broken when the job ended, so that its last clean-up was in vain: nothing comes by again.
fn ended_without_a_store(struck: &[Struck], ended_ms: Option<u64>) -> bool {
    struck.iter().any(|s| {
        let is_store = matches!(s.what, Fault::Store(_));
        is_store
            && s.healed_ms
                .is_none_or(|healed| ended_ms.is_some_and(|end| end < healed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{StoreFault, StoreRequests};

    #[test]
    fn objects_may_be_left_only_while_the_store_was_broken_at_the_end() {
        let struck = |what, healed_ms| Struck {
            fault: 0,
            what,
            nodes: Vec::new(),
            is_data_link: false,
            is_store_link: false,
            hits_job_manager: false,
            at_ms: 1000,
            healed_ms,
        };
        let store = || {
            Fault::Store(StoreFault::Answer {
                status: 503,
                percent: 100,
                requests: StoreRequests::All,
                down: Duration::from_secs(1),
            })
        };
        let kill = Fault::Kill {
            down: Duration::from_secs(1),
        };
        for (struck, expected) in [
            (struck(store(), None), true),
            (struck(store(), Some(3001)), true),
            (struck(store(), Some(3000)), false),
            (struck(kill, None), false),
        ] {
            assert_eq!(
                ended_without_a_store(std::slice::from_ref(&struck), Some(3000)),
                expected,
                "{struck:?}"
            );
        }
    }
}
