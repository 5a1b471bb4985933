//! Which snapshot a restart begins with.

use super::*;
use crate::checkpoint::start_from;

impl State {
    pub(super) fn quarantine(&mut self, damaged: Vec<(CheckpointId, String)>) {
        for (checkpoint, reason) in damaged {
            if self.started_from == Some(checkpoint) {
                // The number of the snapshot that the user named, not of one of ours.
                self.emit(CoordinatorEvent::Notice(format!(
                    "the snapshot the job started from is damaged: {reason}"
                )));
                self.start_from_damage = Some(reason);
                continue;
            }
            let Some(entry) = self.completed.get_mut(&checkpoint) else {
                continue;
            };
            if entry.damage.is_some() {
                continue;
            }
            entry.damage = Some(reason.clone());
            tracing::error!(%checkpoint, reason, "checkpoint is damaged and quarantined");
            self.emit(CoordinatorEvent::Notice(format!(
                "checkpoint {checkpoint} is damaged and quarantined: {reason}"
            )));
            let (store, entropy) = (Arc::clone(&self.config.store), self.config.entropy.clone());
            self.spawn(async move {
                let key = checkpoint::quarantine_key(checkpoint);
                if let Err(error) = io::put_note(&*store, &key, Bytes::from(reason), &entropy).await
                {
                    tracing::warn!(%error, "quarantine not noted; the next leader finds out anew");
                }
                Message::Cleaned
            });
        }
    }

    pub(super) fn choose_restores(&mut self) {
        // Until a record that may exist is settled, no restart chooses its target.
        let is_unsettled = self
            .completing
            .values()
            .any(|c| c.kind != SnapshotKind::Savepoint);
        if self.phase != Phase::Leading || is_unsettled {
            return;
        }
        for reply in std::mem::take(&mut self.restores) {
            self.choose_restore(reply);
        }
    }

    pub(super) fn choose_restore(&mut self, reply: RestoreReply) {
        if let Err(error) = self.hit(FaultSite::OnRestoreChoice) {
            let message = error.to_string();
            let _ = reply.send(Err(FailureKind::Io { message })); // May have gone.
            return;
        }
        let graph = Arc::clone(&self.config.graph);
        let mut rungs: Vec<Rung> = self
            .completed
            .iter()
            .map(|(n, c)| Rung {
                checkpoint: *n,
                manifest: c.manifest.clone(),
                damage: c.damage.clone(),
            })
            .collect();
        if self.config.faults.is_sabotaged(Sabotage::RestoreOlder) && rungs.len() > 1 {
            rungs.pop();
        }
        let chosen = checkpoint::choose(
            &rungs,
            graph.start_from.is_some(),
            graph.is_transactional(),
            graph.settings.checkpointing.allow_repeat,
        );
        let (choice, skipped) = match chosen {
            Ok(chosen) => chosen,
            Err(failure) => {
                let _ = reply.send(Err(failure)); // May have gone.
                return;
            }
        };
        for words in &skipped {
            self.emit(CoordinatorEvent::Notice(format!(
                "restore skipped: {words}"
            )));
        }
        let own = match choice {
            Choice::Own(checkpoint) => self
                .completed
                .get(&checkpoint)
                .and_then(|c| Some((checkpoint, c.manifest.clone()?, c.external.clone()))),
            Choice::StartFrom | Choice::Empty => None,
        };
        let snapshot = match (own, &graph.start_from) {
            (Some((checkpoint, manifest, external)), _) => {
                self.base = external.is_none().then_some(checkpoint);
                self.started_from = None;
                let is_own_checkpoint = external.is_none();
                Some(RestoredSnapshot {
                    manifest,
                    directory: external.unwrap_or_else(|| self.config.store.uri().to_owned()),
                    is_own_checkpoint,
                })
            }
            (None, Some(start)) if choice == Choice::StartFrom => {
                if let Some(reason) = &self.start_from_damage {
                    let _ = reply.send(Err(FailureKind::IncompatibleState {
                        message: format!("snapshot {} is damaged: {reason}", start.path),
                    })); // May have gone.
                    return;
                }
                let (stores, path) = (Arc::clone(&self.config.stores), start.path.clone());
                self.spawn(async move {
                    let found = start_from::load(&*stores, &path).await;
                    let result = found.map(|(manifest, directory)| RestoredSnapshot {
                        manifest,
                        directory,
                        is_own_checkpoint: false,
                    });
                    Message::StartFromLoaded {
                        skipped,
                        result,
                        reply,
                    }
                });
                return;
            }
            (None, _) => {
                self.base = None;
                None
            }
        };
        self.answer_restore(snapshot, skipped, reply);
    }

    pub(super) fn on_start_from_loaded(
        &mut self,
        skipped: Vec<String>,
        result: Result<RestoredSnapshot, FailureKind>,
        reply: RestoreReply,
    ) {
        match result {
            Ok(snapshot) => {
                // The first checkpoint after it is whole: nothing depends on the user's files (Flink's claim mode NO_CLAIM).
                self.base = None;
                self.started_from = Some(crate::model::TaskRestore::OF_ANOTHER_JOB);
                self.answer_restore(Some(snapshot), skipped, reply);
            }
            Err(failure) => {
                let _ = reply.send(Err(failure)); // May have gone.
            }
        }
    }

    pub(super) fn answer_restore(
        &mut self,
        snapshot: Option<RestoredSnapshot>,
        skipped: Vec<String>,
        reply: RestoreReply,
    ) {
        self.max_parallelism.clear();
        if let Some(snapshot) = &snapshot {
            for vertex in &self.config.graph.vertices {
                // A snapshot that does not fit is refused when the restore is planned; here only the number is needed.
                if let Ok(max) = checkpoint::effective_max_parallelism(vertex, &snapshot.manifest) {
                    self.max_parallelism.insert(vertex.id, max);
                }
            }
        }
        tracing::info!(job = %self.config.graph.job, checkpoint = ?snapshot.as_ref().map(|s| s.manifest.checkpoint), ?skipped, "restore chosen");
        let _ = reply.send(Ok(RestoreChoice { snapshot, skipped })); // May have gone.
    }
}
