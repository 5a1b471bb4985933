//! Injected faults of one job: finds out whom they mean, and arms user-code faults again for each new attempt until they have struck
//! often enough. Forgotten with the JobMaster.

use std::collections::BTreeSet;

use super::master::{Master, Phase};
use super::requests::{refuse, respond};
use super::{JobFault, JobMasterMessage, Reply};
use crate::checkpoint_coordinator::CoordinatorMessage;
use crate::failover::SubtaskId;
use crate::fault::{ARMED_MAX, ArmedFault, TaskAddress, TaskManagerInjection, UserFault, marker};
use crate::model::message::{ClientResponse, ToTaskManager};
use crate::model::{SubtaskIndex, TaskFailure};

/// User-code faults that have strikes left.
#[derive(Default)]
pub(super) struct Armed {
    last_id: u32,
    /// At most [`ARMED_MAX`].
    faults: Vec<(SubtaskId, ArmedFault, u32)>,
}

impl Armed {
    fn arm(
        &mut self,
        id: SubtaskId,
        operator: u32,
        fault: UserFault,
        times: u32,
    ) -> Option<ArmedFault> {
        if self.faults.len() >= ARMED_MAX {
            return None;
        }
        self.last_id += 1;
        let fault = ArmedFault {
            id: self.last_id,
            operator,
            fault,
        };
        // Nobody reports that a function does not return: it is left to the one attempt.
        if fault.fault != UserFault::Stuck {
            self.faults.push((id, fault, times));
        }
        Some(fault)
    }

    /// What new attempts of these tasks begin with.
    pub(super) fn of_tasks(&self, tasks: &BTreeSet<SubtaskId>) -> Vec<(SubtaskId, ArmedFault)> {
        self.faults
            .iter()
            .filter(|(id, _, _)| tasks.contains(id))
            .map(|(id, fault, _)| (*id, *fault))
            .collect()
    }

    /// A failure that one of them has caused counts.
    pub(super) fn struck(&mut self, failure: &TaskFailure) {
        let text = failure.kind.to_string();
        for (_, fault, left) in &mut self.faults {
            if *left != u32::MAX && text.contains(&marker(fault.id)) {
                *left -= 1;
            }
        }
        self.faults.retain(|(_, _, left)| *left > 0);
    }
}

impl Master {
    pub(super) fn inject(&mut self, fault: JobFault, reply: Reply) {
        if let Phase::Ending { .. } | Phase::Over(_) = self.phase {
            return refuse(
                reply,
                "the job is ending: nothing is left to break".to_owned(),
            );
        }
        match fault {
            JobFault::JobMaster(fault) => {
                injected(reply, "the JobMaster");
                // Its turn comes after the answer is out.
                super::master::cast(&self.myself, JobMasterMessage::Fault(fault));
            }
            JobFault::CheckpointCoordinator(fault) if self.coordinator.is_some() => {
                injected(reply, "the CheckpointCoordinator");
                self.tell_coordinator(CoordinatorMessage::Fault(fault));
            }
            JobFault::CheckpointCoordinator(_) => {
                refuse(
                    reply,
                    "the job has no CheckpointCoordinator yet: try again when it is RUNNING"
                        .to_owned(),
                );
            }
            JobFault::Subtask(place, fault) => match self.find(&place) {
                Ok((id, _, name)) => {
                    match self.executions.live_of(&BTreeSet::from([id])).pop_first() {
                        Some((instance, attempts)) => {
                            injected(reply, &format!("the guardian of {name}"));
                            for attempt in attempts {
                                let injection = TaskManagerInjection::Subtask(attempt, fault);
                                self.send(instance, ToTaskManager::InjectFault(injection));
                            }
                        }
                        None => refuse(
                            reply,
                            format!("{name} does not run now: try again when the job is RUNNING"),
                        ),
                    }
                }
                Err(why) => refuse(reply, why),
            },
            JobFault::UserCode {
                place,
                fault,
                times,
            } => match self.find(&place) {
                Ok((id, operator, name)) => match self.armed.arm(id, operator, fault, times) {
                    Some(armed) => {
                        tracing::warn!(job = %self.options.graph.job, task = name, ?armed, times, "fault armed in user code");
                        injected(reply, &name);
                        self.send_fault(id, armed);
                    }
                    None => refuse(
                        reply,
                        format!(
                            "{ARMED_MAX} faults wait to strike already: let one of them strike first"
                        ),
                    ),
                },
                Err(why) => refuse(reply, why),
            },
        }
    }

    /// To the attempt that lives now, if one does; a later one gets it with its deployment.
    pub(super) fn send_fault(&self, id: SubtaskId, fault: ArmedFault) {
        for (instance, attempts) in self.executions.live_of(&BTreeSet::from([id])) {
            for attempt in attempts {
                let injection = TaskManagerInjection::UserCode(attempt, fault);
                self.send(instance, ToTaskManager::InjectFault(injection));
            }
        }
    }

    /// Subtask, place of the operator in its vertex, and name for people.
    fn find(&self, place: &TaskAddress) -> Result<(SubtaskId, u32, String), String> {
        let graph = &self.options.graph;
        let found = match &place.operator {
            None => graph
                .vertices
                .iter()
                .find(|vertex| graph.inputs(vertex.id).next().is_some())
                .or(graph.vertices.first())
                .map(|vertex| (vertex, 0)),
            Some(wanted) => graph.vertices.iter().find_map(|vertex| {
                let operator = vertex
                    .operators
                    .iter()
                    .position(|o| o.uid == *wanted || o.name == *wanted)
                    .or((vertex.name == *wanted).then_some(0))?;
                Some((vertex, operator))
            }),
        };
        let Some((vertex, operator)) = found else {
            let names: Vec<_> = graph
                .vertices
                .iter()
                .flat_map(|vertex| vertex.operators.iter().map(|o| o.uid.as_str()))
                .collect();
            return Err(format!(
                "job {} has no operator `{}`, only: {}",
                graph.job,
                place.operator.as_deref().unwrap_or_default(),
                names.join(", ")
            ));
        };
        if place.subtask >= vertex.parallelism {
            return Err(format!(
                "`{}` has {} subtasks, from 0: there is no subtask {}",
                vertex.name, vertex.parallelism, place.subtask
            ));
        }
        let id = SubtaskId {
            vertex: vertex.id,
            subtask: SubtaskIndex(place.subtask),
        };
        let name = vertex
            .operators
            .get(operator)
            .map_or(vertex.name.as_str(), |o| o.name.as_str());
        Ok((
            id,
            operator as u32,
            format!("{name}, subtask {}", place.subtask),
        ))
    }
}

fn injected(reply: Reply, victim: &str) {
    let victim = victim.to_owned();
    respond(reply, Ok(ClientResponse::Injected { victim }));
}
