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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{
        ARMED_MAX, ActorFault, ArmedFault, CHAOS_KEY, INJECTED_MAX, TaskAddress, UserFault,
    };
    use crate::job_manager::JobManagerEnd;
    use crate::model::message::ClientRequest;
    use crate::model::*;
    use crate::testing::cluster::{Cluster, settings, until};
    use crate::testing::graph;
    use crate::testing::task_manager::{FakeTaskManager, running};

    const JOB: JobId = JobId(7);

    async fn cluster() -> Cluster {
        let cluster = Cluster::start(&[1, 1, 1], running()).await;
        cluster
            .submit(&graph(&[3, 3], &[(0, 1, Exchange::Hash)]))
            .await;
        cluster.until_state(JOB, JobState::Running).await;
        cluster
    }

    fn panic_of(actor: ActorAddress) -> Injection {
        Injection::Actor {
            actor,
            fault: ActorFault::Panic,
        }
    }

    fn user(times: u32, fault: UserFault) -> Injection {
        Injection::UserCode {
            job: JOB,
            place: TaskAddress {
                operator: None,
                subtask: 1,
            },
            fault,
            times,
        }
    }

    fn orders(task_manager: &FakeTaskManager) -> Vec<TaskManagerInjection> {
        let received = &task_manager.state.lock().unwrap().received;
        received
            .iter()
            .filter_map(|message| match message {
                ToTaskManager::InjectFault(injection) => Some(injection.clone()),
                _ => None,
            })
            .collect()
    }

    /// Without the key nothing is struck, and the client reads which key it is.
    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_is_not_told_to_obeys_no_injection() {
        let mut settings = settings();
        settings.cluster.is_chaos_enabled = false;
        let cluster = Cluster::lead_by(settings, 1, Default::default(), Default::default()).await;
        let answer = cluster.inject(panic_of(ActorAddress::JobManager)).await;
        let error = answer.unwrap_err().to_string();
        assert!(error.contains(CHAOS_KEY), "{error}");
        tokio::time::sleep(10 * ANSWER_FIRST).await;
        let alive = cluster.request(ClientRequest::ListJobs).await;
        assert!(alive.is_ok(), "{alive:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_can_mean_is_refused_with_the_reason() {
        let cluster = cluster().await;
        let nobody = ResourceId("nobody".to_owned());
        let place = |operator: &str, subtask| TaskAddress {
            operator: Some(operator.to_owned()),
            subtask,
        };
        let subtask = |place| Injection::Actor {
            actor: ActorAddress::Subtask(JOB, place),
            fault: ActorFault::Panic,
        };
        let stall = Injection::Actor {
            actor: ActorAddress::JobMaster(JOB),
            fault: ActorFault::Stall(INJECTED_MAX + Duration::from_secs(1)),
        };
        for (injection, why) in [
            (
                panic_of(ActorAddress::TaskManager(nobody.clone())),
                "no TaskManager nobody",
            ),
            (
                panic_of(ActorAddress::TaskManagerPeer(nobody)),
                "no TaskManager nobody",
            ),
            (panic_of(ActorAddress::JobMaster(JobId(1))), "not found"),
            (subtask(place("what", 0)), "no operator `what`, only: "),
            (subtask(place("v1", 3)), "there is no subtask 3"),
            (user(0, UserFault::Panic), "strikes no time"),
            (stall, "longer than"),
        ] {
            let error = cluster.inject(injection).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    /// The supervision tree: the root's end is the process's end, and its client was answered before.
    #[tokio::test(start_paused = true)]
    async fn the_root_breaks_after_its_answer() {
        let cluster = cluster().await;
        let victim = cluster.inject(panic_of(ActorAddress::JobManager)).await;
        assert_eq!(victim.unwrap(), "the JobManager");
        let end = cluster.handle.join().await;
        assert!(matches!(end, JobManagerEnd::Failed(_)), "{end:?}");
    }

    /// Messages wait and none is lost; nobody else waits.
    #[tokio::test(start_paused = true)]
    async fn a_jobmaster_that_stalls_answers_afterwards() {
        let cluster = cluster().await;
        let stall = Duration::from_secs(30);
        let fault = ActorFault::Stall(stall);
        let actor = ActorAddress::JobMaster(JOB);
        let injected = cluster.inject(Injection::Actor { actor, fault }).await;
        assert_eq!(injected.unwrap(), "the JobMaster");
        let began = tokio::time::Instant::now();
        let list = cluster.request(ClientRequest::ListTaskManagers).await;
        assert!(list.is_ok() && began.elapsed() < stall / 10);
        let status = cluster.status(JOB).await;
        assert!(began.elapsed() >= stall);
        assert_eq!(status.summary.state, JobState::Running);
        assert_eq!(status.summary.restarts, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn orders_for_a_taskmanager_reach_it_and_no_other() {
        let cluster = cluster().await;
        let names: Vec<_> = cluster
            .task_managers
            .iter()
            .map(|t| t.location.resource.clone())
            .collect();
        let node = Some(names[1].clone());
        let fault = NodeFault::ClockOffset(-5);
        for injection in [
            panic_of(ActorAddress::TaskManager(names[1].clone())),
            panic_of(ActorAddress::JobManagerSession(names[1].clone())),
            Injection::Node { node, fault },
        ] {
            cluster.inject(injection).await.unwrap();
        }
        assert_eq!(
            orders(&cluster.task_managers[1]),
            [
                TaskManagerInjection::TaskManager(ActorFault::Panic),
                TaskManagerInjection::JobManagerSession(ActorFault::Panic),
                TaskManagerInjection::Node(fault),
            ]
        );
        assert!(orders(&cluster.task_managers[0]).is_empty());
    }

    /// A poison record: each new attempt gets the fault with its deployment, until it has struck so often; another failure of the
    /// same subtask does not count.
    #[tokio::test(start_paused = true)]
    async fn a_fault_in_user_code_is_armed_again_until_it_has_struck_often_enough() {
        let cluster = cluster().await;
        let armed = |cluster: &Cluster| -> Vec<(ExecutionAttemptId, ArmedFault)> {
            let orders = cluster.task_managers.iter().flat_map(orders);
            let mut armed: Vec<_> = orders
                .map(|order| match order {
                    TaskManagerInjection::UserCode(attempt, fault) => (attempt, fault),
                    other => panic!("{other:?}"),
                })
                .collect();
            armed.sort_by_key(|(attempt, _)| *attempt);
            armed
        };
        cluster.inject(user(2, UserFault::Panic)).await.unwrap();
        let fail = async |kind: FailureKind, recoveries| {
            let (attempt, _) = *armed(&cluster).last().unwrap();
            let on = cluster
                .task_managers
                .iter()
                .find(|t| t.running().contains(&attempt))
                .unwrap();
            on.fail(attempt, kind);
            cluster.until_recovered(JOB, recoveries).await;
            armed(&cluster).len()
        };
        let struck = FailureKind::Panic {
            message: armed(&cluster)[0].1.message(),
            location: String::new(),
        };
        let other = FailureKind::Io {
            message: "another".to_owned(),
        };
        assert_eq!(armed(&cluster).len(), 1);
        assert_eq!(fail(other, 1).await, 2, "it has not struck yet");
        assert_eq!(fail(struck.clone(), 2).await, 3, "once is left");
        assert_eq!(fail(struck, 3).await, 3, "it is over");
        let attempts: Vec<_> = armed(&cluster)
            .iter()
            .map(|(a, _)| (a.vertex.0, a.subtask.0, a.attempt.0))
            .collect();
        assert_eq!(attempts, [(1, 1, 1), (1, 1, 2), (1, 1, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn armed_faults_are_bounded() {
        let cluster = cluster().await;
        for _ in 0..ARMED_MAX {
            cluster
                .inject(user(u32::MAX, UserFault::Panic))
                .await
                .unwrap();
        }
        let error = cluster.inject(user(1, UserFault::Panic)).await.unwrap_err();
        assert!(
            error.to_string().contains("wait to strike already"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_coordinator_gets_what_is_for_it() {
        let cluster = cluster().await;
        let actor = ActorAddress::CheckpointCoordinator(JOB);
        cluster.inject(panic_of(actor)).await.unwrap();
        until("told", async || {
            cluster.log().contains(&"fault".to_owned()).then_some(())
        })
        .await;
    }
}
