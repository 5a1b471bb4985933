//! From acknowledgements to a decided record.

use super::*;

impl State {
    pub(super) fn on_ack(&mut self, instance: InstanceId, ack: CheckpointAck) {
        let checkpoint = ack.checkpoint;
        let keys: Vec<String> = ack.objects.iter().map(|o| o.key.clone()).collect();
        let Some(underway) = self.underway.get_mut(&checkpoint) else {
            // Completing or complete: a repeated ack, its objects are in use. Else: too late.
            self.discard(checkpoint, keys);
            return;
        };
        let pause = ack.subtasks.iter().map(|s| s.longest_pause_us).max();
        match underway.pending.acknowledge(instance, ack) {
            result @ (AckResult::Success | AckResult::Complete) => {
                let progress = underway.pending.progress();
                let bytes = checkpoint::new_bytes(underway.pending.acks());
                if let Some(status) = self.history_entry(checkpoint) {
                    status.acknowledged = progress;
                    status.bytes = bytes;
                    status.longest_pause_us = status.longest_pause_us.max(pause.unwrap_or(0));
                }
                if result == AckResult::Complete {
                    self.on_all_acknowledged(checkpoint);
                }
            }
            AckResult::Duplicate => {}
            AckResult::Unknown | AckResult::Discarded => {
                tracing::debug!(%checkpoint, %instance, "acknowledgement of an attempt that takes no part");
                self.discard(checkpoint, keys);
            }
        }
    }

    /// Deletes objects that nothing will refer to: never those of a number that may still complete.
    pub(super) fn discard(&mut self, checkpoint: CheckpointId, keys: Vec<String>) {
        if keys.is_empty() || self.completing.contains_key(&checkpoint) {
            return;
        }
        if let Some((_, store)) = self.dead_savepoints.iter().find(|(n, _)| *n == checkpoint) {
            let store = Arc::clone(store);
            self.delete(store, keys);
            return;
        }
        // Only what was written for this very number; and of a running one, only the keys that no part of it uses.
        let in_use: BTreeSet<&str> = self
            .underway
            .get(&checkpoint)
            .map(|u| u.pending.acks().iter().flat_map(|a| &a.objects))
            .into_iter()
            .flatten()
            .map(|o| o.key.as_str())
            .collect();
        let keys: Vec<String> = keys
            .into_iter()
            .filter(|k| !in_use.contains(k.as_str()))
            .filter(|k| checkpoint::parse_object_key(k).is_some_and(|p| p.checkpoint == checkpoint))
            .collect();
        if checkpoint > self.sequence.last_decided() {
            self.garbage.entry(checkpoint).or_default().extend(keys);
            return;
        }
        let needed = self.needed();
        let keys = keys.into_iter().filter(|k| !needed.contains(k)).collect();
        self.delete(Arc::clone(&self.config.store), keys);
    }

    pub(super) fn delete(&mut self, store: Arc<dyn Store>, keys: Vec<String>) {
        if keys.is_empty() {
            return;
        }
        let entropy = self.config.entropy.clone();
        self.spawn(async move {
            io::delete_all(&*store, keys, &entropy, Patience::Brief).await;
            Message::Cleaned
        });
    }

    pub(super) fn on_all_acknowledged(&mut self, checkpoint: CheckpointId) {
        let Some(underway) = self.underway.remove(&checkpoint) else {
            return;
        };
        let Underway {
            pending,
            triggered_ms,
            target,
        } = underway;
        let header = Header {
            checkpoint,
            epoch: self.config.epoch,
            kind: pending.kind,
            timestamp_ms: triggered_ms,
            duration_ms: self.now().duration_since(pending.triggered).as_millis() as u64,
        };
        let base = pending
            .base
            .and_then(|b| self.completed.get(&b)?.manifest.clone());
        let objects = pending
            .acks()
            .iter()
            .flat_map(|a| a.objects.iter().map(|o| o.key.clone()))
            .collect();
        let composed = checkpoint::compose(
            header,
            &self.config.graph,
            &self.max_parallelism,
            base.as_deref(),
            pending.acks(),
        );
        let manifest = match composed {
            Ok(manifest) => Arc::new(manifest),
            Err(error) => {
                self.give_up(
                    checkpoint,
                    pending.kind,
                    target,
                    objects,
                    Reason::FinalizeFailure,
                    &error.to_string(),
                );
                return;
            }
        };
        // Older ones must be decided first (dense sequence), so they give way now and not after our record.
        if pending.kind != SnapshotKind::Savepoint {
            let older: Vec<_> = self.underway.range(..checkpoint).map(|(n, _)| *n).collect();
            for older in older {
                let is_subsumable = self
                    .underway
                    .get(&older)
                    .is_some_and(|u| !u.pending.kind.is_savepoint());
                if is_subsumable {
                    self.fail(
                        older,
                        Reason::Subsumed,
                        &format!("subsumed by {checkpoint}"),
                    );
                }
            }
        }
        match &target {
            None => self
                .sequence
                .resolve(checkpoint, Intent::Complete(Arc::clone(&manifest))),
            Some(target) => {
                let record = Record {
                    checkpoint,
                    epoch: self.config.epoch,
                    token: self.config.entropy.u128(),
                    outcome: RecordOutcome::Completed(Box::new((*manifest).clone())),
                };
                let (store, uri) = (Arc::clone(&target.store), target.uri.clone());
                let ledger = self.ledger.clone();
                let is_recorded = pending.kind != SnapshotKind::Savepoint;
                self.spawn(async move {
                    let mut result = io::write_savepoint(&*store, &record, &ledger.entropy).await;
                    if is_recorded && result.is_ok() {
                        // Order matters: the record must find the note that says where its objects lie.
                        let key = checkpoint::savepoint_note_key(checkpoint, ledger.epoch);
                        result =
                            io::put_note(&*ledger.store, &key, Bytes::from(uri), &ledger.entropy)
                                .await
                                .map_err(|e| e.to_string());
                    }
                    Message::SavepointWritten { checkpoint, result }
                });
            }
        }
        self.completing.insert(
            checkpoint,
            Completing {
                kind: pending.kind,
                manifest,
                base: pending.base,
                target,
                objects,
            },
        );
    }

    pub(super) fn on_savepoint_written(
        &mut self,
        checkpoint: CheckpointId,
        result: Result<(), String>,
    ) {
        let Some(completing) = self.completing.get(&checkpoint) else {
            return;
        };
        match (result, completing.kind) {
            (Ok(()), SnapshotKind::Savepoint) => {
                if let Some(mut completing) = self.completing.remove(&checkpoint) {
                    self.complete_status(checkpoint, &completing);
                    if let Some(target) = &mut completing.target {
                        tracing::info!(%checkpoint, uri = %target.uri, "savepoint complete");
                        let uri = target.uri.clone();
                        target.answer(Ok(uri));
                    }
                    // No event: tasks must not commit by a plain savepoint.
                }
            }
            (
                Ok(()),
                SnapshotKind::StopWithSavepoint | SnapshotKind::Final | SnapshotKind::Checkpoint,
            ) => {
                let intent = Intent::Complete(Arc::clone(&completing.manifest));
                self.sequence.resolve(checkpoint, intent);
            }
            (Err(error), _kind) => {
                if let Some(c) = self.completing.remove(&checkpoint) {
                    self.give_up(
                        checkpoint,
                        c.kind,
                        c.target,
                        c.objects,
                        Reason::FinalizeFailure,
                        &error,
                    );
                }
            }
        }
    }

    pub(super) fn write_next_record(&mut self) {
        if self.phase != Phase::Leading {
            return;
        }
        if let Some((checkpoint, intent)) = self.sequence.start() {
            let ledger = self.ledger.clone();
            let (faults, job) = (self.config.faults.clone(), self.config.graph.job);
            self.spawn(async move {
                if let Intent::Complete(_) = intent {
                    let site = FaultSite::AfterManifestBeforeRecord;
                    if let Err(error) = faults.reach(site, FaultPlace::Job(job)).await {
                        tracing::warn!(%checkpoint, %error, "the record is written nevertheless");
                    }
                }
                let decision = ledger
                    .write(checkpoint, intent.outcome(), intent.on_failure())
                    .await;
                Message::Decided {
                    checkpoint,
                    intent,
                    decision,
                }
            });
        }
    }

    pub(super) fn on_decided(
        &mut self,
        checkpoint: CheckpointId,
        intent: Intent,
        decision: Decision,
    ) {
        let Decision { fate, refusal } = decision;
        if let Fate::Fenced { epoch } = fate
            && !self.config.faults.is_sabotaged(Sabotage::IgnoreEpoch)
        {
            self.fence(epoch);
            return;
        }
        self.sequence.decided(checkpoint);
        match (intent, fate) {
            (Intent::Complete(_), Fate::Written) => {
                if let Err(error) = self.hit(FaultSite::AfterRecordBeforeNotify) {
                    tracing::warn!(%checkpoint, %error, "the checkpoint is complete nevertheless");
                }
                self.on_completed(checkpoint);
            }
            (Intent::Complete(_), _not_written) => {
                // Over the same base the next record would be as long, and none would be written any more.
                if refusal.is_some() {
                    self.base = None;
                }
                if let Some(c) = self.completing.remove(&checkpoint) {
                    let text = match refusal {
                        Some(error) => format!("its record could not be written: {error}"),
                        None => "its record could not be written".to_owned(),
                    };
                    self.give_up_decided(checkpoint, c, Reason::FinalizeFailure, &text);
                }
            }
            (Intent::Abort(_), _any) => {}
            (Intent::Terminal(..), Fate::Written) => self.on_terminal(),
            (Intent::Terminal(..), _not_written) => {
                if let Some(ending) = &mut self.ending {
                    ending.is_allotted = false; // Once more, under the next number.
                }
            }
        }
        if let Some(keys) = self.garbage.remove(&checkpoint) {
            self.discard(checkpoint, keys);
        }
    }

    pub(super) fn on_completed(&mut self, checkpoint: CheckpointId) {
        let Some(mut completing) = self.completing.remove(&checkpoint) else {
            return;
        };
        let now = self.now();
        self.counter.on_success(checkpoint);
        self.queue.completed(now);
        self.complete_status(checkpoint, &completing);
        let external = completing.target.as_ref().map(|t| t.uri.clone());
        // What lies in a savepoint's directory is the user's: nothing may depend on it.
        self.base = external.is_none().then_some(checkpoint);
        self.started_from = None;
        self.completed.insert(
            checkpoint,
            Completed {
                manifest: Some(Arc::clone(&completing.manifest)),
                external: external.clone(),
                damage: None,
            },
        );
        tracing::info!(%checkpoint, kind = ?completing.kind, "checkpoint complete");
        self.emit(CoordinatorEvent::Completed {
            checkpoint,
            kind: completing.kind,
        });
        if let (Some(target), Some(uri)) = (&mut completing.target, external) {
            target.answer(Ok(uri));
        }
        if matches!(
            completing.kind,
            SnapshotKind::Final | SnapshotKind::StopWithSavepoint
        ) {
            // Tasks end now; whatever was asked for meanwhile comes too late.
            for request in self.queue.stop() {
                let _ = request.reply.send(Err("the job ends".into())); // May have gone.
            }
        }
        self.retain();
        self.write_hint();
    }
}
