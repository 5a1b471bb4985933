//! The JobManager's state, and where each message goes. The only thing that a handler awaits is the spawning of a
//! JobMaster, whose `pre_start` only builds plain state.

mod ended;
mod job_masters;
mod slots;
mod task_managers;

use std::collections::{BTreeMap, VecDeque};

use ractor::ActorRef;
use tokio::sync::oneshot;

use self::ended::unreadable;
pub(super) use self::job_masters::{JobEntry, Runner};
pub(super) use self::task_managers::TaskManagerEntry;
use super::store::{JobStore, StoredJob};
use super::{JobManagerEnd, JobManagerMessage, JobManagerOptions};
use crate::fault::ActorKind;
use crate::job_master::JobMasterMessage;
use crate::model::message::StoreProbe;
use crate::model::{FailureKind, InstanceId, JobId, JobStatus};
use crate::peer::PeerEvent;
use crate::slot_pool::SlotPool;
use crate::supervision::ExpectedExits;

/// What a TaskManager's own watchdog gets on top of `task.cancellation.timeout`.
pub(super) const STOP_MARGIN: std::time::Duration = std::time::Duration::from_secs(5);

/// The actor's state.
pub(crate) struct Manager {
    pub(super) options: JobManagerOptions,
    pub(super) jobs_store: JobStore,
    stored: BTreeMap<JobId, StoredJob>,
    probe: Option<StoreProbe>,
    end: Option<oneshot::Sender<JobManagerEnd>>,
    pub(super) pool: SlotPool,
    pub(super) task_managers: BTreeMap<InstanceId, TaskManagerEntry>,
    pub(super) jobs: BTreeMap<JobId, JobEntry>,
    /// Oldest first.
    pub(super) history: VecDeque<JobStatus>,
    /// Jobs that wait for slots, first come first served.
    waiting: VecDeque<JobId>,
    expected: ExpectedExits,
    is_settled: bool,
}

impl Manager {
    pub(super) fn new(
        options: JobManagerOptions,
        jobs_store: JobStore,
        stored: BTreeMap<JobId, StoredJob>,
        probe: Option<StoreProbe>,
        end: oneshot::Sender<JobManagerEnd>,
    ) -> Self {
        Self {
            options,
            jobs_store,
            stored,
            probe,
            end: Some(end),
            pool: SlotPool::default(),
            task_managers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            history: VecDeque::new(),
            waiting: VecDeque::new(),
            expected: ExpectedExits::default(),
            is_settled: true,
        }
    }

    pub(super) async fn start(&mut self, myself: &ActorRef<JobManagerMessage>) {
        let epoch = self.options.epoch;
        tracing::info!(%epoch, jobs = self.stored.len(), "JobManager leads");
        let mut ended = Vec::new();
        for (job, stored) in std::mem::take(&mut self.stored) {
            match stored {
                StoredJob::Open(record, past) => {
                    self.is_settled = false;
                    let cause = FailureKind::Actor {
                        actor: "JobManager".to_owned(),
                        message: format!("epoch {epoch} takes the job over from its predecessor"),
                    };
                    self.run(myself, *record, past, Some(cause)).await;
                }
                StoredJob::Ended(status) => ended.push(*status),
                StoredJob::Unreadable(why) => {
                    tracing::error!(%job, why, "stored job cannot be read; it is left alone");
                    ended.push(unreadable(job, &why));
                }
            }
        }
        for status in ended {
            self.remember(status);
        }
        if !self.is_settled {
            let heartbeat = &self.options.settings.cluster.heartbeat;
            let window = heartbeat.reconnect_window + heartbeat.interval;
            drop(myself.send_after(window, || JobManagerMessage::Settled));
        }
    }

    pub(super) async fn handle(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        message: JobManagerMessage,
    ) {
        if self.end.is_none() {
            return; // What comes while the actor stops is for nobody; replies are dropped.
        }
        match message {
            JobManagerMessage::Peer(PeerEvent::Registered { registration, peer }) => {
                self.on_registered(myself, registration, peer).await;
            }
            JobManagerMessage::Peer(PeerEvent::Message { instance, message }) => {
                self.on_task_manager_message(myself, instance, message)
                    .await;
            }
            JobManagerMessage::Peer(PeerEvent::Lost { instance, cause }) => {
                self.lose(myself, instance, &cause).await;
            }
            JobManagerMessage::Fault(fault) => fault.strike(ActorKind::JobManager).await,
            JobManagerMessage::Peer(PeerEvent::Request { request, reply }) => {
                self.on_request(myself, request, reply);
            }
            JobManagerMessage::Report(report) => self.on_report(myself, report).await,
            JobManagerMessage::Submitted {
                record,
                result,
                reply,
            } => self.on_submitted(myself, *record, result, reply).await,
            JobManagerMessage::ResultStored(job) => self.on_result_stored(job),
            JobManagerMessage::HistoryStored { job, result } => {
                if let Err(error) = result {
                    // What happens next is written with the next change.
                    tracing::warn!(%job, %error, "job history cannot be stored");
                }
                self.on_history_stored(myself, job);
            }
            JobManagerMessage::JobMasterBroke { job, cause } => {
                self.on_job_master_broke(myself, job, cause).await;
            }
            JobManagerMessage::Settled => {
                self.is_settled = true;
                self.serve_slots();
            }
            JobManagerMessage::StopTimeout(instance, told) => {
                if let Some(entry) = self.task_managers.get(&instance)
                    && !entry.to_stop.is_disjoint(&told)
                {
                    let cause = FailureKind::TaskManagerLost {
                        resource: entry.location.resource.clone(),
                        instance,
                        message: format!("{} former tasks did not end", entry.to_stop.len()),
                    };
                    self.declare_lost(myself, instance, &cause).await;
                }
            }
            JobManagerMessage::End(end) => self.finish(myself, end),
        }
    }

    /// Ends; everything stays as it is.
    fn finish(&mut self, myself: &ActorRef<JobManagerMessage>, end: JobManagerEnd) {
        tracing::info!(epoch = %self.options.epoch, ?end, "JobManager ends");
        for entry in self.jobs.values() {
            if let Runner::Active(master) = &entry.runner {
                let reason = format!("{end:?}");
                drop(master.cast(JobMasterMessage::Suspend { reason }));
            }
        }
        if let Some(sender) = self.end.take() {
            // Nobody may be waiting.
            let _ = sender.send(end);
        }
        myself.stop(Some("JobManager ends".to_owned()));
    }
}
