//! What is begun, when, and on what base.

use super::*;

impl State {
    pub(super) fn on_savepoint(&mut self, request: SavepointRequest) {
        if let Err(error) = self.hit(FaultSite::OnSavepoint) {
            let _ = request.reply.send(Err(error.to_string())); // May have gone.
            return;
        }
        match request.kind {
            SnapshotKind::Savepoint | SnapshotKind::StopWithSavepoint => {
                if let Err((request, reason)) = self.queue.savepoint(request) {
                    let text = match reason {
                        Reason::TooManyRequests => {
                            "too many savepoints are waiting: try again later"
                        }
                        _other => {
                            "not all tasks of the job are running: try again when it is RUNNING"
                        }
                    };
                    let _ = request.reply.send(Err(text.to_owned())); // May have gone.
                }
            }
            SnapshotKind::Final => {
                let is_taken = self
                    .underway
                    .values()
                    .any(|u| u.pending.kind == SnapshotKind::Final)
                    || self
                        .completing
                        .values()
                        .any(|c| c.kind == SnapshotKind::Final);
                if is_taken || self.final_savepoint.is_some() {
                    let _ = request
                        .reply
                        .send(Err("the final checkpoint is already being taken".into())); // May have gone.
                } else {
                    self.final_savepoint = Some(request);
                }
            }
            SnapshotKind::Checkpoint => {
                let _ = request
                    .reply
                    .send(Err("a checkpoint has no directory of its own".into())); // May have gone.
            }
        }
    }

    pub(super) fn trigger_what_is_due(&mut self) {
        loop {
            let is_stopping = self
                .underway
                .values()
                .map(|u| u.pending.kind)
                .chain(self.completing.values().map(|c| c.kind))
                .any(|kind| matches!(kind, SnapshotKind::StopWithSavepoint | SnapshotKind::Final));
            let load = Load {
                pending: (self.underway.len() + self.completing.len()) as u32,
                undeleted: self.undeleted(),
                is_sequence_full: self.sequence.undecided() >= UNDECIDED_MAX,
                is_stopping: is_stopping || self.ending.is_some(),
            };
            let now = self.now();
            match self.queue.next(now, load) {
                None => return self.tell_if_held(),
                Some(Begin::Periodic) => self.begin(SnapshotKind::Checkpoint, None, now),
                Some(Begin::Final) => {
                    let request = self.final_savepoint.take();
                    self.begin(SnapshotKind::Final, request, now);
                }
                Some(Begin::Savepoint(request)) => self.begin(request.kind, Some(request), now),
            }
        }
    }

    /// Nothing that was asked for before is left to begin.
    fn tell_if_held(&mut self) {
        if self.is_hold_asked && self.queue.has_no_savepoints() {
            self.is_hold_asked = false;
            self.emit(CoordinatorEvent::Held);
        }
    }

    pub(super) fn open_target(
        &self,
        request: SavepointRequest,
    ) -> Result<Target, (SavepointReply, String)> {
        let settings = &self.config.graph.settings.checkpointing;
        let Some(directory) = request
            .directory
            .or_else(|| settings.savepoint_directory.clone())
        else {
            return Err((
                request.reply,
                "no savepoint directory: name one, or set execution.checkpointing.savepoint-dir"
                    .into(),
            ));
        };
        let job = self.config.graph.job.to_string();
        let uri = format!(
            "{}/savepoint-{}-{:012x}",
            directory.trim_end_matches('/'),
            job.get(..6).unwrap_or(&job),
            self.config.entropy.u64() >> 16
        );
        match self.config.stores.open(&uri) {
            Ok(store) => Ok(Target {
                store,
                uri,
                reply: Some(request.reply),
            }),
            Err(error) => Err((request.reply, error.to_string())),
        }
    }

    pub(super) fn begin(
        &mut self,
        kind: SnapshotKind,
        request: Option<SavepointRequest>,
        now: Instant,
    ) {
        let target = match request.map(|r| self.open_target(r)).transpose() {
            Ok(target) => target,
            Err((reply, why)) => {
                let _ = reply.send(Err(why)); // May have gone.
                if kind == SnapshotKind::Final {
                    self.queue.final_failed(now);
                }
                return;
            }
        };
        let settings = self.config.graph.settings.checkpointing.clone();
        let checkpoint = self.sequence.allot();
        let base = match &target {
            None if settings.is_incremental => self
                .base
                .and_then(|b| self.completed.get(&b)?.manifest.clone())
                .and_then(|m| checkpoint::next_base(&m)),
            // A savepoint is whole in itself.
            None | Some(_) => None,
        };
        if kind == SnapshotKind::Savepoint {
            let uri = target.as_ref().map_or("", |t| t.uri.as_str());
            self.sequence
                .resolve(checkpoint, Intent::Abort(format!("savepoint {uri}")));
        }
        let triggered_ms = self.config.clock.wall_ms_at(now);
        let pending = PendingCheckpoint::new(
            checkpoint,
            kind,
            base,
            now,
            now + settings.timeout,
            &self.participants,
        );
        let directory = target
            .as_ref()
            .map_or(self.config.store.uri(), |t| t.uri.as_str());
        let subtasks = self.participants.iter().map(|(_, a)| a.len()).sum();
        let inline_threshold = checkpoint::inline_threshold(settings.inline_threshold, subtasks);
        let plans = self
            .participants
            .iter()
            .map(|(instance, attempts)| {
                let plan = CheckpointPlan {
                    job: self.config.graph.job,
                    epoch: self.config.epoch,
                    barrier: CheckpointBarrier {
                        checkpoint,
                        base,
                        kind,
                        timestamp_ms: triggered_ms,
                    },
                    attempts: attempts.clone(),
                    directory: directory.to_owned(),
                    inline_threshold,
                };
                (*instance, plan)
            })
            .collect();
        tracing::debug!(%checkpoint, ?kind, ?base, "checkpoint triggered");
        self.remember(CheckpointStatus {
            checkpoint,
            kind,
            state: CheckpointState::InProgress,
            triggered_ms,
            duration_ms: 0,
            bytes: 0,
            full_bytes: 0,
            longest_pause_us: 0,
            acknowledged: pending.progress(),
            failure: None,
            path: None,
        });
        self.underway.insert(
            checkpoint,
            Underway {
                pending,
                triggered_ms,
                target,
            },
        );
        self.emit(CoordinatorEvent::Trigger(plans));
        if let Err(error) = self.hit(FaultSite::WithCheckpointPending) {
            self.fail(checkpoint, Reason::Declined, &error.to_string());
        }
    }
}
