//! The one place that reads [`SupervisionEvent`]s: it turns the shapes in which an actor's end arrives into a typed cause.
//!
//! Invariant: an end that nobody asked for always yields a [`FailureKind`], and a typed cause passes through unchanged. It decides
//! nothing: what follows is the supervisor's business. The state that travels in the event of a clean end is dropped here.

use std::collections::BTreeSet;

use ractor::{ActorCell, ActorId, SupervisionEvent};

use crate::model::{FailureKind, TaskFailure};

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its supervisor had asked for it.
    Expected,
    /// Nobody had.
    Failed(FailureKind),
}

impl Exit {
    /// Says what kind of actor it was: the one that ended has no name of its own.
    #[must_use]
    pub fn named(self, kind: &str) -> Self {
        match self {
            Self::Failed(FailureKind::Actor { actor, message }) if actor == UNNAMED => {
                Self::Failed(FailureKind::Actor {
                    actor: kind.to_owned(),
                    message,
                })
            }
            other => other,
        }
    }
}

/// Whoever has no name.
const UNNAMED: &str = "unnamed";

/// The children whose end was asked for. Each entry is taken out by that end, so the set is bounded by the number of children.
#[derive(Debug, Default)]
pub struct ExpectedExits(BTreeSet<ActorId>);

impl ExpectedExits {
    /// Asks the actor to stop after its current message, and remembers that its end is wanted.
    pub fn stop(&mut self, child: &ActorCell, reason: &str) {
        self.0.insert(child.get_id());
        child.stop(Some(reason.to_owned()));
    }

    /// Remembers that the actor will end by itself.
    pub fn expect(&mut self, child: ActorId) {
        self.0.insert(child);
    }
}

/// Reads an event. `None`: not an end (a start, a change of a process group).
pub fn classify(event: SupervisionEvent, expected: &mut ExpectedExits) -> Option<(ActorId, Exit)> {
    let (cell, failure) = match event {
        SupervisionEvent::ActorFailed(cell, error) => {
            let kind = cause_of(&cell, &error);
            (cell, kind)
        }
        SupervisionEvent::ActorTerminated(cell, _state, reason) => {
            let message = reason.unwrap_or_else(|| "stopped without a reason".to_owned());
            let kind = FailureKind::Actor {
                actor: name_of(&cell),
                message,
            };
            (cell, kind)
        }
        SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
            return None;
        }
    };
    let id = cell.get_id();
    let exit = if expected.0.remove(&id) {
        Exit::Expected
    } else {
        Exit::Failed(failure)
    };
    Some((id, exit))
}

/// The typed cause inside a handler's error, or the error's text: a panic has lost its type on the way.
fn cause_of(cell: &ActorCell, error: &ractor::ActorProcessingErr) -> FailureKind {
    if let Some(failure) = error.downcast_ref::<TaskFailure>() {
        return failure.kind.clone();
    }
    if let Some(kind) = error.downcast_ref::<FailureKind>() {
        return kind.clone();
    }
    FailureKind::Actor {
        actor: name_of(cell),
        message: error.to_string(),
    }
}

/// Names are for people: without one, the supervisor says what it was ([`Exit::named`]); a number would differ from run to run.
fn name_of(cell: &ActorCell) -> String {
    cell.get_name().unwrap_or_else(|| UNNAMED.to_owned())
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr, ActorRef};
    use tokio::sync::mpsc;

    use super::*;

    enum Order {
        Panic,
        Typed,
    }

    struct Child;
    impl Actor for Child {
        type Msg = Order;
        type State = ();
        type Arguments = ();
        async fn pre_start(&self, _: ActorRef<Order>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
        async fn handle(
            &self,
            _: ActorRef<Order>,
            order: Order,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            match order {
                Order::Panic => panic!("the child broke"),
                Order::Typed => Err(Box::new(FailureKind::Io {
                    message: "disk".to_owned(),
                })),
            }
        }
    }

    struct Parent(mpsc::UnboundedSender<Exit>);
    impl Actor for Parent {
        type Msg = Option<ActorCell>;
        type State = ExpectedExits;
        type Arguments = ();
        async fn pre_start(
            &self,
            _: ActorRef<Self::Msg>,
            (): (),
        ) -> Result<ExpectedExits, ActorProcessingErr> {
            Ok(ExpectedExits::default())
        }
        async fn handle(
            &self,
            _: ActorRef<Self::Msg>,
            child: Self::Msg,
            expected: &mut ExpectedExits,
        ) -> Result<(), ActorProcessingErr> {
            if let Some(child) = child {
                expected.stop(&child, "asked");
            }
            Ok(())
        }
        async fn handle_supervisor_evt(
            &self,
            _: ActorRef<Self::Msg>,
            event: SupervisionEvent,
            expected: &mut ExpectedExits,
        ) -> Result<(), ActorProcessingErr> {
            if let Some((_, exit)) = classify(event, expected) {
                self.0.send(exit)?;
            }
            Ok(())
        }
    }

    /// Each way in which an actor can end, seen through a real supervisor.
    #[tokio::test(start_paused = true)]
    async fn every_end_that_nobody_asked_for_has_a_cause() {
        let (sender, mut exits) = mpsc::unbounded_channel();
        let (parent, _) = Actor::spawn(None, Parent(sender), ()).await.unwrap();
        let child = || Actor::spawn_linked(None, Child, (), parent.get_cell());

        let (panicking, _) = child().await.unwrap();
        panicking.cast(Order::Panic).unwrap();
        let Exit::Failed(FailureKind::Actor { message, .. }) = exits.recv().await.unwrap() else {
            panic!("a panic is a failure");
        };
        assert!(message.contains("the child broke"), "{message}");

        let (failing, _) = child().await.unwrap();
        failing.cast(Order::Typed).unwrap();
        assert_eq!(
            exits.recv().await.unwrap(),
            Exit::Failed(FailureKind::Io {
                message: "disk".to_owned()
            }),
            "a typed cause passes unchanged"
        );

        let nameless = Exit::Failed(FailureKind::Actor {
            actor: UNNAMED.to_owned(),
            message: String::new(),
        });
        let Exit::Failed(kind) = nameless.named("Subtask") else {
            panic!("still failed");
        };
        assert_eq!(kind.to_string(), "actor Subtask ended: ");

        let (killed, _) = child().await.unwrap();
        killed.kill();
        assert!(matches!(exits.recv().await.unwrap(), Exit::Failed(_)));

        let (stopped, _) = child().await.unwrap();
        stopped.stop(None);
        assert!(matches!(exits.recv().await.unwrap(), Exit::Failed(_)));

        let (asked, _) = child().await.unwrap();
        parent.cast(Some(asked.get_cell())).unwrap();
        assert_eq!(exits.recv().await.unwrap(), Exit::Expected);
    }
}
