//! What a person sees.

use super::*;

impl State {
    pub(super) fn remember(&mut self, status: CheckpointStatus) {
        self.history.push_back(status);
        let max = self.config.graph.settings.checkpoint_history_size.max(1) as usize;
        while self.history.len() > max {
            self.history.pop_front();
        }
    }

    /// Begins with what a former leader told; what it had under way is decided by now, one way or the other.
    pub(super) fn recall_history(&mut self) {
        for mut status in std::mem::take(&mut self.config.history) {
            if status.state == CheckpointState::InProgress {
                status.state = CheckpointState::Failed;
                status.failure = Some("its JobManager ended before it was complete".to_owned());
            }
            self.remember(status);
        }
    }

    /// A completed one that lies in the store. The former leader's entry knows more about it, if it got as far as telling.
    pub(super) fn remember_found(&mut self, found: CheckpointStatus) {
        match self.history_entry(found.checkpoint) {
            Some(known) if known.state == CheckpointState::Completed => {
                known.failure = found.failure;
            }
            Some(known) => *known = found,
            None => {
                self.remember(found);
                self.history.make_contiguous().sort_by_key(|s| s.checkpoint);
            }
        }
    }

    pub(super) fn history_entry(
        &mut self,
        checkpoint: CheckpointId,
    ) -> Option<&mut CheckpointStatus> {
        self.history
            .iter_mut()
            .rev()
            .find(|s| s.checkpoint == checkpoint)
    }

    pub(super) fn path_of(&self, checkpoint: CheckpointId, external: Option<&str>) -> String {
        external.map_or_else(
            || format!("{}/chk-{checkpoint}", self.config.store.uri()),
            str::to_owned,
        )
    }

    pub(super) fn complete_status(&mut self, checkpoint: CheckpointId, completing: &Completing) {
        let wall = self.config.clock.wall_ms_at(self.now());
        let path = self.path_of(
            checkpoint,
            completing.target.as_ref().map(|t| t.uri.as_str()),
        );
        let full_bytes = checkpoint::full_bytes(&completing.manifest);
        if let Some(status) = self.history_entry(checkpoint) {
            status.state = CheckpointState::Completed;
            status.duration_ms = wall.saturating_sub(status.triggered_ms);
            status.full_bytes = full_bytes;
            status.path = Some(path);
        }
    }

    pub(super) fn completed_status(
        &self,
        manifest: &Manifest,
        external: Option<&str>,
        damage: Option<String>,
    ) -> CheckpointStatus {
        let subtasks: usize = manifest.operators.iter().map(|o| o.subtasks.len()).sum();
        CheckpointStatus {
            checkpoint: manifest.checkpoint,
            kind: manifest.kind,
            state: CheckpointState::Completed,
            triggered_ms: manifest.timestamp_ms,
            duration_ms: manifest.duration_ms,
            bytes: 0,
            full_bytes: checkpoint::full_bytes(manifest),
            longest_pause_us: 0,
            acknowledged: (subtasks as u32, subtasks as u32),
            failure: damage,
            path: Some(self.path_of(manifest.checkpoint, external)),
        }
    }

    pub(super) fn status(&self) -> Vec<CheckpointStatus> {
        let wall = self.config.clock.wall_ms_at(self.now());
        self.history
            .iter()
            .cloned()
            .map(|mut status| {
                if status.state == CheckpointState::InProgress {
                    status.duration_ms = wall.saturating_sub(status.triggered_ms);
                }
                status
            })
            .collect()
    }
}
