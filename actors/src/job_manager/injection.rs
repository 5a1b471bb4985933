//! Faults that clients inject: refuses them where they are not wanted, and hands each to whom it is for.

use std::time::Duration;

use ractor::ActorRef;

use super::JobManagerMessage;
use super::clients::respond;
use super::manager::{Manager, TaskManagerEntry};
use crate::fault::{ActorAddress, Injection, NodeFault, PeerFault, TaskManagerInjection, refusal};
use crate::job_master::{JobFault, JobRequest, Reply};
use crate::model::ResourceId;
use crate::model::message::{ClientResponse, RpcError, ToTaskManager};

/// The root strikes itself only after its answer had time to leave.
const ANSWER_FIRST: Duration = Duration::from_millis(100);

impl Manager {
    pub(super) fn inject(
        &mut self,
        myself: &ActorRef<JobManagerMessage>,
        injection: Injection,
        reply: Reply,
    ) {
        if !self.options.settings.cluster.is_chaos_enabled {
            return refuse(reply, refusal("the JobManager"));
        }
        if let Err(why) = injection.validate() {
            return refuse(reply, why);
        }
        tracing::warn!(?injection, "a client injects a fault");
        match injection {
            Injection::Actor { actor, fault } => match actor {
                ActorAddress::JobManager => {
                    injected(reply, "the JobManager".to_owned());
                    drop(myself.send_after(ANSWER_FIRST, move || JobManagerMessage::Fault(fault)));
                }
                ActorAddress::JobMaster(job) => self.ask(job, reply, |reply| JobRequest::Inject {
                    fault: JobFault::JobMaster(fault),
                    reply,
                }),
                ActorAddress::CheckpointCoordinator(job) => {
                    self.ask(job, reply, |reply| JobRequest::Inject {
                        fault: JobFault::CheckpointCoordinator(fault),
                        reply,
                    });
                }
                ActorAddress::Subtask(job, place) => {
                    self.ask(job, reply, |reply| JobRequest::Inject {
                        fault: JobFault::Subtask(place, fault),
                        reply,
                    });
                }
                ActorAddress::TaskManagerPeer(resource) => {
                    self.at(&resource, reply, "the JobManager's peer of", |entry| {
                        (entry.peer.fault)(PeerFault::Actor(fault));
                    });
                }
                ActorAddress::TaskManager(resource) => {
                    self.order(
                        &resource,
                        reply,
                        "TaskManager",
                        TaskManagerInjection::TaskManager(fault),
                    );
                }
                ActorAddress::JobManagerSession(resource) => self.order(
                    &resource,
                    reply,
                    "the JobManagerSession of",
                    TaskManagerInjection::JobManagerSession(fault),
                ),
            },
            Injection::Node {
                node: Some(resource),
                fault,
            } => self.order(&resource, reply, "node", TaskManagerInjection::Node(fault)),
            Injection::Node { node: None, fault } => {
                match fault {
                    NodeFault::NoHeartbeats(duration) => {
                        for entry in self.task_managers.values() {
                            (entry.peer.fault)(PeerFault::NoHeartbeats(duration));
                        }
                    }
                    NodeFault::ClockOffset(millis) => {
                        if !self.options.clock.jump(millis) {
                            return refuse(
                                reply,
                                "the JobManager's clock cannot be set off".to_owned(),
                            );
                        }
                    }
                }
                injected(reply, "the JobManager's node".to_owned());
            }
            Injection::UserCode {
                job,
                place,
                fault,
                times,
            } => self.ask(job, reply, |reply| JobRequest::Inject {
                fault: JobFault::UserCode {
                    place,
                    fault,
                    times,
                },
                reply,
            }),
        }
    }

    fn order(
        &self,
        resource: &ResourceId,
        reply: Reply,
        what: &str,
        injection: TaskManagerInjection,
    ) {
        match self.task_manager_named(resource) {
            Ok(entry) if !entry.is_chaos_enabled => {
                refuse(reply, refusal(&format!("TaskManager {resource}")));
            }
            Ok(entry) => {
                (entry.peer.send)(ToTaskManager::InjectFault(injection));
                injected(reply, format!("{what} {resource}"));
            }
            Err(why) => refuse(reply, why),
        }
    }

    fn at(
        &self,
        resource: &ResourceId,
        reply: Reply,
        what: &str,
        strike: impl FnOnce(&TaskManagerEntry),
    ) {
        match self.task_manager_named(resource) {
            Ok(entry) => {
                strike(entry);
                injected(reply, format!("{what} {resource}"));
            }
            Err(why) => refuse(reply, why),
        }
    }

    fn task_manager_named(&self, resource: &ResourceId) -> Result<&TaskManagerEntry, String> {
        self.task_managers
            .values()
            .find(|entry| entry.location.resource == *resource)
            .ok_or_else(|| {
                format!("no TaskManager {resource}: `perennial list --taskmanagers` shows those that are registered")
            })
    }
}

fn injected(reply: Reply, victim: String) {
    respond(reply, Ok(ClientResponse::Injected { victim }));
}

fn refuse(reply: Reply, why: String) {
    respond(reply, Err(RpcError::Refused(why)));
}
