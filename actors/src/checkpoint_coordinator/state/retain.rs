//! What is deleted after a completion and at the end of the job.

use super::*;

impl State {
    pub(super) fn pinned(&self) -> BTreeSet<CheckpointId> {
        self.underway
            .values()
            .filter_map(|u| u.pending.base)
            .chain(self.completing.values().filter_map(|c| c.base))
            .chain(self.base)
            .collect()
    }

    fn retained(&self) -> BTreeMap<CheckpointId, Retained<'_>> {
        self.completed
            .iter()
            .filter_map(|(n, c)| {
                Some((
                    *n,
                    Retained {
                        manifest: c.manifest.as_deref()?,
                        is_damaged: c.damage.is_some(),
                        is_external: c.external.is_some(),
                    },
                ))
            })
            .collect()
    }

    /// How many may go and have to wait, because those before them are still being deleted.
    pub(super) fn undeleted(&self) -> u32 {
        if !self.is_retaining {
            return 0; // The next completion takes them all.
        }
        let num_retained = self.config.graph.settings.checkpointing.num_retained;
        let retained = self.retained();
        let kept = checkpoint::kept(&retained, num_retained, &self.pinned());
        (retained.len() - kept.len()) as u32
    }

    pub(super) fn retain(&mut self) {
        if self.is_retaining {
            return; // The next completion comes by again.
        }
        let num_retained = self.config.graph.settings.checkpointing.num_retained;
        let retained = self.retained();
        let pinned = self.pinned();
        let plan = checkpoint::retention_plan(&retained, num_retained, &pinned);
        let kept = checkpoint::kept(&retained, num_retained, &pinned);
        // Damaged records below what is kept have nothing left to say.
        let unreadable: Vec<_> = self
            .completed
            .iter()
            .filter(|(n, c)| c.manifest.is_none() && kept.iter().next().is_some_and(|k| *n < k))
            .map(|(n, _)| *n)
            .collect();
        let last = self.sequence.last_decided();
        let lowest = kept.iter().next().copied().unwrap_or(last);
        let records =
            checkpoint::deletable_records(self.deleted_below, lowest, last, RECORDS_DELETED_MAX);
        let deleted_below = records.last().map_or(self.deleted_below, |n| n.next());
        // What could not be replaced is tried again, unless the record itself is deleted by now.
        let standing = std::mem::take(&mut self.retiring).split_off(&self.deleted_below);
        let retire: BTreeSet<_> = plan
            .retire
            .into_iter()
            .chain(unreadable)
            .chain(standing)
            .collect();
        if retire.is_empty() && records.is_empty() {
            return;
        }
        // Not to be chosen from here on, whatever the store does.
        let notes = retire
            .iter()
            .flat_map(|n| {
                [
                    Some(checkpoint::quarantine_key(*n))
                        .filter(|_| self.completed.get(n).is_some_and(|c| c.damage.is_some())),
                    self.completed.get(n).and_then(|c| {
                        c.external.as_ref()?;
                        let epoch = c.manifest.as_ref()?.epoch;
                        Some(checkpoint::savepoint_note_key(*n, epoch))
                    }),
                ]
            })
            .flatten()
            .collect::<Vec<_>>();
        for checkpoint in &retire {
            self.completed.remove(checkpoint);
        }
        self.is_retaining = true;
        self.retiring.clone_from(&retire);
        let ledger = self.ledger.clone();
        self.spawn(async move {
            let mut standing = BTreeSet::new();
            for checkpoint in retire {
                if !io::retire(&ledger, checkpoint, Patience::Brief).await {
                    standing.insert(checkpoint);
                }
            }
            // Order matters: while a record stands, a restore may choose it, so its objects must stand too.
            let mut undeleted = plan.delete;
            if standing.is_empty() {
                undeleted =
                    io::delete_all(&*ledger.store, undeleted, &ledger.entropy, Patience::Brief)
                        .await;
                io::delete_all(&*ledger.store, notes, &ledger.entropy, Patience::Brief).await;
            }
            let records = records.into_iter().map(checkpoint::record_key).collect();
            io::delete_all(&*ledger.store, records, &ledger.entropy, Patience::Brief).await;
            Message::Retained {
                deleted_below,
                standing,
                undeleted,
            }
        });
    }

    /// Plain savepoints are not among them: they commit nothing.
    pub(super) fn tell_last_completed(&mut self) {
        if self.underway.is_empty() && self.completing.is_empty() {
            let last = self.completed.keys().next_back().copied();
            for reply in self.asked_for_last.drain(..) {
                let _ = reply.send(last); // May have gone.
            }
        }
    }

    pub(super) fn end_if_asked(&mut self) {
        if self.phase != Phase::Leading || !self.completing.is_empty() {
            return;
        }
        if let Some(ending) = self.ending.as_mut().filter(|e| !e.is_allotted) {
            ending.is_allotted = true;
            let intent = Intent::Terminal(ending.state, ending.message.clone());
            let number = self.sequence.allot();
            self.sequence.resolve(number, intent);
        }
    }

    pub(super) fn on_terminal(&mut self) {
        let Some(ending) = &self.ending else {
            return;
        };
        let settings = &self.config.graph.settings.checkpointing;
        let survives = checkpoint::survives(ending.state, settings.retention);
        let is_readable = self.completed.values().all(|c| c.manifest.is_some());
        // Order matters: until they are retired their records stand, and a successor that clears up must find them.
        let hint = self.hint();
        let mut known = self.needed();
        known.append(&mut self.undeleted);
        // What could not be replaced before: its objects go now.
        let mut retire = std::mem::take(&mut self.retiring);
        if !survives {
            retire.extend(std::mem::take(&mut self.completed).into_keys());
        }
        let needed = self.needed();
        let ledger = self.ledger.clone();
        self.spawn(async move {
            hint.write(&*ledger.store).await;
            let patience = Patience::at_end();
            let mut may_sweep = is_readable || !survives;
            for checkpoint in retire {
                may_sweep &= io::retire(&ledger, checkpoint, patience).await;
            }
            if may_sweep {
                // By name, since a listing may be stale; and what nobody knows by name.
                let known = known.difference(&needed).cloned().collect();
                io::delete_all(&*ledger.store, known, &ledger.entropy, patience).await;
                // Nothing follows the end: whatever is under way belongs to nobody any more.
                io::sweep(&ledger, CheckpointId(u64::MAX), needed, patience).await;
            }
            io::sweep_unfinished(&*ledger.store).await;
            Message::Ended
        });
    }
}
