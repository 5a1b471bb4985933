//! From the wish to run to the deployment: everyone has stopped, the delay is over, a snapshot is chosen, slots are granted.
//!
//! Invariant: nothing is sent before all of these hold. What failed on the way is decided in `failures`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{CoordinatorState, EndStage, Master, Phase, Slots, cast, subtask_of};
use crate::checkpoint_coordinator::{CoordinatorMessage, RestoreChoice};
use crate::execution_graph::TaskReport;
use crate::failover::SubtaskId;
use crate::fault::FaultSite;
use crate::job_master::deploy::{Restore, deployments};
use crate::job_master::{
    CoordinatorContext, GrantedSlot, JobMasterMessage, JobMasterReport, StartedCoordinator, Timer,
};
use crate::model::message::ToTaskManager;
use crate::model::{FailureKind, InstanceId, LeaderEpoch, TaskFailure};
use crate::restart::Incident;
use crate::slot_pool::SlotsMissing;

impl Master {
    /// Returns whether there is something to wait for.
    pub(super) fn prepare(&mut self) -> bool {
        let now = self.now();
        let Phase::Preparing(preparation) = &mut self.phase else {
            return true;
        };
        if !self.executions.have_ended(&preparation.tasks) {
            return true;
        }
        if !preparation.has_stopped {
            preparation.has_stopped = true;
            if let Some(recovery) = &mut self.recovery {
                recovery.stopped(now);
            }
        }
        let is_due = now >= preparation.due;
        match self.coordinator_state {
            CoordinatorState::NotStarted => {
                // A store that just failed is not asked again before the delay is over.
                if is_due {
                    self.start_coordinator();
                }
                return true;
            }
            CoordinatorState::Starting => return true,
            CoordinatorState::Started => {}
        }
        // The choice and the slots are asked for while the delay runs, so that they cost no time after it.
        if !preparation.is_choice_asked {
            preparation.is_choice_asked = true;
            self.ask_for_choice();
        }
        if let Phase::Preparing(preparation) = &mut self.phase
            && preparation.slots == Slots::NotAsked
        {
            preparation.slots = Slots::Asked { available: 0 };
            let (job, needed) = (self.options.graph.job, self.options.graph.slots_needed());
            (self.options.reports)(JobMasterReport::NeedSlots { job, needed });
        }
        if !is_due {
            return true;
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.waited(now);
        }
        let wave = self.wave;
        let Phase::Preparing(preparation) = &mut self.phase else {
            return true;
        };
        if let Some(Err(kind)) = &preparation.choice {
            let failure = TaskFailure::of_job(kind.clone());
            self.fail(failure, &[], Some(Incident::New));
            return false;
        }
        if preparation.slots != Slots::Granted {
            if preparation.slots_awaited.is_none() {
                preparation.slots_awaited = Some(now);
                let timeout = self.options.graph.settings.slot_request_timeout;
                self.arm(timeout, wave, Timer::Slots);
            }
            return true;
        }
        let Some(Ok(choice)) = preparation.choice.take() else {
            return true;
        };
        let tasks = std::mem::take(&mut preparation.tasks);
        self.deploy(tasks, choice);
        false
    }

    fn start_coordinator(&mut self) {
        self.coordinator_state = CoordinatorState::Starting;
        let events = {
            let myself = self.myself.clone();
            Arc::new(move |event| cast(&myself, JobMasterMessage::Coordinator(event)))
        };
        let started = (self.options.coordinator)(CoordinatorContext {
            graph: Arc::clone(&self.options.graph),
            epoch: self.options.epoch,
            history: self.former_checkpoints(),
            events,
            supervisor: self.myself.get_cell(),
        });
        let myself = self.myself.clone();
        tokio::spawn(async move {
            cast(&myself, JobMasterMessage::CoordinatorStarted(started.await));
        });
    }

    pub(super) fn on_coordinator_started(
        &mut self,
        result: Result<StartedCoordinator, FailureKind>,
    ) {
        match result {
            Ok(StartedCoordinator::Ready(handle)) => {
                self.coordinator_state = CoordinatorState::Started;
                self.coordinator = Some(handle);
            }
            Ok(StartedCoordinator::AlreadyEnded { state, message }) => {
                self.coordinator_state = CoordinatorState::Started;
                self.notice("the job had ended already; only its result was missing".to_owned());
                self.failure =
                    message.map(|message| TaskFailure::of_job(FailureKind::Recorded { message }));
                self.phase = Phase::Ending {
                    state,
                    stage: EndStage::Stopping,
                };
            }
            Err(kind) => {
                self.coordinator_state = CoordinatorState::NotStarted;
                if let Phase::Preparing(_) = self.phase {
                    self.fail(TaskFailure::of_job(kind), &[], Some(Incident::New));
                }
            }
        }
    }

    fn ask_for_choice(&mut self) {
        let (reply, answer) = oneshot::channel();
        let damaged = std::mem::take(&mut self.damaged);
        self.tell_coordinator(CoordinatorMessage::ChooseRestore { damaged, reply });
        let (myself, wave) = (self.myself.clone(), self.wave);
        tokio::spawn(async move {
            let choice = answer.await.unwrap_or_else(|_| {
                Err(FailureKind::Internal {
                    message: "the coordinator did not choose a checkpoint".to_owned(),
                })
            });
            cast(&myself, JobMasterMessage::RestoreChosen { wave, choice });
        });
    }

    pub(super) fn on_slots(
        &mut self,
        slots: Vec<GrantedSlot>,
        former: BTreeMap<SubtaskId, (LeaderEpoch, InstanceId)>,
    ) {
        self.former.extend(former);
        self.places.clear();
        for slot in slots {
            self.peers.insert(slot.location.instance, slot.peer);
            self.places.push(slot.location);
        }
        if let Phase::Preparing(preparation) = &mut self.phase {
            preparation.slots = Slots::Granted;
        }
    }

    pub(super) fn on_slots_missing(&mut self, missing: SlotsMissing) {
        if let Phase::Preparing(preparation) = &mut self.phase
            && preparation.slots != Slots::Granted
        {
            preparation.slots = Slots::Asked {
                available: missing.available,
            };
        }
    }

    fn deploy(&mut self, tasks: BTreeSet<SubtaskId>, choice: RestoreChoice) {
        if let Err(error) = self.hit(FaultSite::BeforeDeploy) {
            let message = error.to_string();
            let failure = TaskFailure::of_job(FailureKind::Internal { message });
            return self.fail(failure, &[], Some(Incident::New));
        }
        let graph = Arc::clone(&self.options.graph);
        let mut former = self.former.clone();
        former.extend(
            self.executions
                .iter()
                .filter_map(|(id, e)| Some((id, (e.attempt?.epoch, e.instance()?)))),
        );
        for skipped in &choice.skipped {
            self.notice(skipped.clone());
        }
        let assigned = match &choice.snapshot {
            None => Ok(None),
            Some(snapshot) => (self.options.assign)(&graph, snapshot).map(Some),
        };
        let assigned = match assigned {
            Ok(assigned) => assigned,
            Err(kind) => return self.fail(TaskFailure::of_job(kind), &[], Some(Incident::New)),
        };
        // What senders spread keys by must be what receivers own: the snapshot's number of key groups goes into the graph that is sent.
        let mut graph = (*graph).clone();
        for (vertex, max) in graph
            .vertices
            .iter_mut()
            .zip(assigned.iter().flat_map(|a| &a.max_parallelism))
        {
            vertex.max_parallelism = *max;
        }
        let attempt = self.executions.deploy(&tasks, &self.places);
        let restore =
            choice
                .snapshot
                .as_ref()
                .zip(assigned.as_ref())
                .map(|(snapshot, assigned)| Restore {
                    snapshot,
                    assigned,
                    former: &former,
                });
        let by_instance = match deployments(&graph, &self.executions, &tasks, restore.as_ref()) {
            Ok(by_instance) => by_instance,
            Err(kind) => {
                // Nothing was sent, so nothing runs.
                for (_, attempt, _) in self.executions.live().collect::<Vec<_>>() {
                    if tasks.contains(&subtask_of(&attempt)) {
                        self.executions.apply(&attempt, TaskReport::Failed);
                    }
                }
                return self.fail(TaskFailure::of_job(kind), &[], Some(Incident::New));
            }
        };
        let checkpoint = choice.snapshot.as_ref().map(|s| s.manifest.checkpoint);
        if let Some(snapshot) = &choice.snapshot
            && snapshot.is_own_checkpoint
        {
            self.last_checkpoint = self.last_checkpoint.max(checkpoint);
        }
        let (now, epoch) = (self.now(), self.options.epoch);
        if let Some(recovery) = &mut self.recovery {
            recovery.deployed(now, (epoch, attempt), checkpoint, choice.skipped);
        }
        tracing::info!(
            job = %graph.job, %epoch, %attempt, tasks = tasks.len(),
            checkpoint = checkpoint.map(|c| c.0), "deploys"
        );
        (self.options.reports)(JobMasterReport::Deployed {
            job: graph.job,
            attempts: by_instance
                .iter()
                .flat_map(|(instance, tasks)| tasks.iter().map(|t| (t.attempt, *instance)))
                .collect(),
        });
        self.may_finish = false;
        self.is_final_asked = false;
        let armed = self.armed.of_tasks(&tasks);
        self.phase = Phase::Deploying { tasks };
        for (instance, tasks) in by_instance {
            self.send(
                instance,
                ToTaskManager::Deploy {
                    graph: Box::new(graph.clone()),
                    tasks,
                },
            );
        }
        for (id, fault) in armed {
            self.send_fault(id, fault);
        }
        if let Err(error) = self.hit(FaultSite::AfterDeploy) {
            let message = error.to_string();
            let failure = TaskFailure::of_job(FailureKind::Internal { message });
            self.fail(failure, &[], Some(Incident::New));
        }
    }
}
