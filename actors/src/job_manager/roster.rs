//! Which jobs there are, without LIST: `roster/<n>`, a dense sequence of entries, each created once.
//!
//! Invariant: a job is enrolled before its submission is answered, and a leader begins by an entry of its own that names all jobs that it
//! knows. An entry that a former leader would write behind that finds its number taken, reads by whom, and fails: what a new leader has
//! not read, nobody was promised. Entries are small and stay, as epochs do, so that the newest is found by number; `roster/newest` is
//! only where to begin. Whether a job still exists is for the job's own objects to say.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::store::{create, decode, encode};
use crate::checkpoint::{Created, Store, StoreError, StoreResult};
use crate::model::{JobId, LeaderEpoch};

/// Where the search begins; never more than a hint.
const HINT_KEY: &str = "roster/newest";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Entry {
    /// A leader begins: these are all jobs up to here.
    All {
        epoch: LeaderEpoch,
        jobs: BTreeSet<JobId>,
    },
    /// One more.
    Job { epoch: LeaderEpoch, job: JobId },
}

impl Entry {
    fn epoch(&self) -> LeaderEpoch {
        match self {
            Self::All { epoch, .. } | Self::Job { epoch, .. } => *epoch,
        }
    }
}

fn key(number: u64) -> String {
    format!("roster/{number}")
}

/// One leader's view of it.
pub(super) struct Roster {
    store: Arc<dyn Store>,
    epoch: LeaderEpoch,
    /// The first number that was free when we looked.
    next: u64,
    jobs: BTreeSet<JobId>,
}

impl Roster {
    pub(super) fn new(store: Arc<dyn Store>, epoch: LeaderEpoch) -> Self {
        Self {
            store,
            epoch,
            next: 1,
            jobs: BTreeSet::new(),
        }
    }

    /// All jobs ever enrolled since the last leader began.
    pub(super) fn jobs(&self) -> &BTreeSet<JobId> {
        &self.jobs
    }

    /// Reads up to the first free number.
    pub(super) async fn read(&mut self) -> StoreResult<()> {
        self.next = match self.store.get(HINT_KEY, None).await {
            Ok(bytes) => decode(&bytes).unwrap_or(1),
            Err(StoreError::NotFound { .. }) => 1,
            Err(error) => return Err(error),
        };
        if self.next > 1 && !self.read_next().await? {
            // A hint that leads nowhere.
            self.next = 1;
        }
        while self.read_next().await? {}
        Ok(())
    }

    /// Writes down that this leader begins, with the jobs that still exist. Jobs that were enrolled meanwhile are returned: it is to be
    /// tried again with them.
    pub(super) async fn begin(&mut self, jobs: BTreeSet<JobId>) -> StoreResult<BTreeSet<JobId>> {
        let entry = Entry::All {
            epoch: self.epoch,
            jobs: jobs.clone(),
        };
        let number = loop {
            let number = self.next;
            if self.append(&entry).await? {
                break number;
            }
            let unread: BTreeSet<_> = self.jobs.difference(&jobs).copied().collect();
            if !unread.is_empty() {
                return Ok(unread);
            }
            // A stale leader wrote there, and nothing new: only an entry of our own, behind that one, keeps it from enrolling more.
        };
        self.jobs = jobs;
        if let Err(error) = self.store.put(HINT_KEY, encode(&number)).await {
            tracing::debug!(%error, "hint not written; the search only takes longer");
        }
        Ok(BTreeSet::new())
    }

    /// Enrolls a job, unless it is.
    pub(super) async fn enroll(&mut self, job: JobId) -> StoreResult<()> {
        let epoch = self.epoch;
        while !self.jobs.contains(&job) {
            if self.append(&Entry::Job { epoch, job }).await? {
                self.jobs.insert(job);
            }
        }
        Ok(())
    }

    /// `false`: another entry was there, which is read now.
    async fn append(&mut self, entry: &Entry) -> StoreResult<bool> {
        let key = key(self.next);
        let bytes = encode(entry);
        let is_ours = match create(&*self.store, &key, bytes.clone()).await? {
            Created::New => true,
            // Perhaps by a try of ours whose answer was lost.
            Created::Exists => self.store.get(&key, None).await? == bytes,
        };
        if is_ours {
            self.next += 1;
        } else {
            self.read_next().await?;
        }
        Ok(is_ours)
    }

    /// `false`: there is no further one.
    async fn read_next(&mut self) -> StoreResult<bool> {
        let key = key(self.next);
        let bytes = match self.store.get(&key, None).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        self.next += 1;
        let entry: Entry = match decode(&bytes) {
            Ok(entry) => entry,
            Err(why) => {
                tracing::error!(
                    key,
                    why,
                    "an entry of the roster cannot be read; jobs are looked for by a listing only"
                );
                return Ok(true);
            }
        };
        if entry.epoch() > self.epoch {
            return Err(StoreError::Failed {
                operation: "create",
                uri: format!("{}/{key}", self.store.uri()),
                message: format!("epoch {} leads now", entry.epoch()),
            });
        }
        match entry {
            Entry::All { jobs, .. } => self.jobs = jobs,
            Entry::Job { job, .. } => {
                self.jobs.insert(job);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::{Fault, MemoryStore};

    fn roster(store: &Arc<MemoryStore>, epoch: u64) -> Roster {
        Roster::new(Arc::clone(store) as Arc<dyn Store>, LeaderEpoch(epoch))
    }

    async fn begin(store: &Arc<MemoryStore>, epoch: u64) -> Roster {
        let mut roster = roster(store, epoch);
        roster.read().await.unwrap();
        let jobs = roster.jobs().clone();
        assert!(roster.begin(jobs).await.unwrap().is_empty());
        roster
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_leader_knows_every_job_even_without_the_hint_and_after_lost_answers() {
        let store = MemoryStore::new("memory://ha");
        let mut n = 0;
        store.faults(move |op, _| {
            n += 1;
            (op == "create" && n % 2 == 0).then_some(Fault::LoseAnswer)
        });
        for epoch in 1..=4 {
            let mut roster = begin(&store, epoch).await;
            for job in 0..3 {
                roster
                    .enroll(JobId(u128::from(epoch) * 10 + job))
                    .await
                    .unwrap();
            }
            if epoch % 2 == 0 {
                store.remove(HINT_KEY);
            }
        }
        assert_eq!(begin(&store, 5).await.jobs().len(), 12);
    }

    /// Two leaders at once: what the old one enrolls is either read by the new one or refused.
    #[tokio::test(start_paused = true)]
    async fn a_job_that_the_new_leader_has_not_read_is_refused_by_the_old_one() {
        let store = MemoryStore::new("memory://ha");
        let mut old = begin(&store, 1).await;
        let mut new = roster(&store, 2);
        new.read().await.unwrap();
        old.enroll(JobId(1)).await.unwrap();
        let missed = new.begin(BTreeSet::new()).await.unwrap();
        assert_eq!(missed, BTreeSet::from([JobId(1)]));
        assert!(new.begin(missed).await.unwrap().is_empty());
        let error = old.enroll(JobId(2)).await.unwrap_err().to_string();
        assert!(error.contains("epoch 2 leads now"), "{error}");
        new.enroll(JobId(3)).await.unwrap();
        assert_eq!(begin(&store, 3).await.jobs().len(), 2);
    }

    /// Both begin with the same jobs at the same number: the stale leader's entry does not stand for the new one's.
    #[tokio::test(start_paused = true)]
    async fn a_leader_begins_by_an_entry_of_its_own_behind_an_equal_one_of_a_stale_leader() {
        let store = MemoryStore::new("memory://ha");
        let (mut old, mut new) = (roster(&store, 1), roster(&store, 2));
        old.read().await.unwrap();
        new.read().await.unwrap();
        assert!(old.begin(BTreeSet::new()).await.unwrap().is_empty());
        assert!(new.begin(BTreeSet::new()).await.unwrap().is_empty());
        let error = old.enroll(JobId(1)).await.unwrap_err().to_string();
        assert!(error.contains("epoch 2 leads now"), "{error}");
        new.enroll(JobId(2)).await.unwrap();
        assert_eq!(begin(&store, 3).await.jobs().len(), 1);
    }
}
