//! What follows when a snapshot will not complete: the record, the objects, the tasks, the job.

use super::*;

impl State {
    /// Aborts one that still waits for acknowledgements; does nothing to any other.
    pub(super) fn fail(&mut self, checkpoint: CheckpointId, reason: Reason, text: &str) {
        let Some(underway) = self.underway.get_mut(&checkpoint) else {
            return;
        };
        if !underway.pending.abort(reason) {
            return;
        }
        if let Some(underway) = self.underway.remove(&checkpoint) {
            let objects = underway
                .pending
                .acks()
                .iter()
                .flat_map(|a| a.objects.iter().map(|o| o.key.clone()))
                .collect();
            self.give_up(
                checkpoint,
                underway.pending.kind,
                underway.target,
                objects,
                reason,
                text,
            );
        }
    }

    /// For one whose number is not decided yet, or was spent as a savepoint's.
    pub(super) fn give_up(
        &mut self,
        checkpoint: CheckpointId,
        kind: SnapshotKind,
        target: Option<Target>,
        objects: Vec<String>,
        reason: Reason,
        text: &str,
    ) {
        if kind != SnapshotKind::Savepoint {
            self.sequence
                .resolve(checkpoint, Intent::Abort(format!("{reason:?}: {text}")));
        }
        self.report_failure(checkpoint, kind, target, objects, reason, text);
    }

    pub(super) fn give_up_decided(
        &mut self,
        checkpoint: CheckpointId,
        c: Completing,
        reason: Reason,
        text: &str,
    ) {
        let text = match &c.target {
            Some(target) => format!("{text}; the savepoint {} itself is complete", target.uri),
            None => text.to_owned(),
        };
        let (target, objects) = match c.target {
            // Complete and usable: it stays.
            Some(mut target) => {
                target.answer(Err(text.clone()));
                (None, Vec::new())
            }
            None => (None, c.objects),
        };
        self.report_failure(checkpoint, c.kind, target, objects, reason, &text);
    }

    pub(super) fn report_failure(
        &mut self,
        checkpoint: CheckpointId,
        kind: SnapshotKind,
        target: Option<Target>,
        objects: Vec<String>,
        reason: Reason,
        text: &str,
    ) {
        tracing::warn!(%checkpoint, ?kind, ?reason, text, "checkpoint failed");
        let now = self.now();
        let wall = self.config.clock.wall_ms_at(now);
        if let Some(status) = self.history_entry(checkpoint) {
            status.state = CheckpointState::Failed;
            status.duration_ms = wall.saturating_sub(status.triggered_ms);
            status.failure = Some(format!("{reason:?}: {text}"));
        }
        self.emit(CoordinatorEvent::Aborted {
            checkpoint,
            reason: text.to_owned(),
        });
        if let Some(mut target) = target {
            target.answer(Err(text.to_owned()));
            self.dead_savepoints
                .push_back((checkpoint, Arc::clone(&target.store)));
            while self.dead_savepoints.len() > DEAD_SAVEPOINTS_MAX {
                self.dead_savepoints.pop_front();
            }
            self.delete(target.store, objects);
        } else {
            self.discard(checkpoint, objects);
        }
        let must_fail_over = match kind {
            SnapshotKind::Savepoint => false,
            // Its sources have stopped at the barrier: only a restart gets them going again.
            SnapshotKind::StopWithSavepoint => reason.is_counted(),
            SnapshotKind::Checkpoint => self.counter.on_failure(checkpoint, reason),
            SnapshotKind::Final => {
                self.queue.final_failed(now);
                self.counter.on_failure(checkpoint, reason)
            }
        };
        if must_fail_over {
            self.emit(CoordinatorEvent::Failure(FailureKind::Checkpoints {
                message: format!("checkpoint {checkpoint}: {text}"),
            }));
        }
    }

    pub(super) fn suspend(&mut self, reason: Reason, text: &str) {
        for request in self
            .queue
            .stop()
            .into_iter()
            .chain(self.final_savepoint.take())
        {
            let _ = request.reply.send(Err(text.to_owned())); // May have gone.
        }
        let all: Vec<_> = self.underway.keys().copied().collect();
        for checkpoint in all {
            self.fail(checkpoint, reason, text);
        }
        self.participants.clear();
    }

    pub(super) fn expire(&mut self) {
        let now = self.now();
        let due: Vec<_> = self
            .underway
            .iter()
            .filter(|(_, u)| u.pending.deadline().is_some_and(|d| d <= now))
            .map(|(n, u)| (*n, u.pending.progress()))
            .collect();
        for (checkpoint, (got, all)) in due {
            let timeout = self.config.graph.settings.checkpointing.timeout;
            let text = format!("expired after {timeout:?} with {got} of {all} tasks acknowledged");
            self.fail(checkpoint, Reason::Expired, &text);
        }
    }
}
