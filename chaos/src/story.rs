//! Tells plans in sentences: what people read when a run failed.
//!
//! Invariant: pure, and never the truth itself: what repeats a run is the plan's JSON.

use std::time::Duration;

use crate::plan::{
    ActorKind, DataFault, Direction, Fault, FaultPlan, LinkFault, PlannedFault, StoreFault,
    StoreRequests, StoreShape, Target, When,
};

/// A plan in lines: the cluster, the job, then each fault.
#[must_use]
pub fn tell(plan: &FaultPlan) -> Vec<String> {
    let cluster = &plan.cluster;
    let store = match cluster.store {
        StoreShape::Memory => "in memory",
        StoreShape::Disk => "on disk",
        StoreShape::S3 => "in S3",
    };
    let mut lines = vec![format!(
        "{}, {} with {}, checkpoints {store}; {} over {} records at {}/s per lane",
        count(cluster.job_managers, "JobManager"),
        count(cluster.task_managers, "TaskManager"),
        count(cluster.slots, "slot"),
        plan.workload.job,
        plan.workload.events,
        plan.workload.rate,
    )];
    lines.extend(
        plan.faults
            .iter()
            .enumerate()
            .map(|(index, fault)| format!("{}. {}", index + 1, sentence(fault))),
    );
    lines
}

/// One fault in a sentence, its row first.
#[must_use]
pub fn sentence(fault: &PlannedFault) -> String {
    format!(
        "{} {}: {}",
        fault.row(),
        when(&fault.when),
        what(&fault.what, fault.target)
    )
}

/// `2 slots`, `1 slot`.
fn count(number: u32, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// `350 ms`, `1.2 s`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ if duration < Duration::from_secs(100) => format!("{:.1} s", duration.as_secs_f64()),
        _ => {
            let seconds = duration.as_secs();
            match seconds / 3600 {
                0 => format!("{} min {} s", seconds / 60, seconds % 60),
                hours => format!("{hours} h {} min", seconds / 60 % 60),
            }
        }
    }
}

fn when(when: &When) -> String {
    match when {
        When::After(time) if time.is_zero() => "at once".to_owned(),
        When::After(time) => format!("after {}", duration(*time)),
        When::Checkpoints(1) => "after the next checkpoint".to_owned(),
        When::Checkpoints(n) => format!("after {n} checkpoints"),
        When::CheckpointPending => "while a checkpoint is pending".to_owned(),
        When::Recovering => "during a recovery".to_owned(),
        When::Running => "when all tasks run".to_owned(),
        When::FaultPoint { site, hit } => format!("at hit {hit} of {site}"),
    }
}

fn name(target: Target) -> String {
    match target {
        Target::Leader => "the leading JobManager".to_owned(),
        Target::Standby => "a standby JobManager".to_owned(),
        Target::TaskManager(index) => format!("TaskManager {}", index + 1),
        Target::AllTaskManagers => "all TaskManagers".to_owned(),
        Target::AllNodes => "all nodes".to_owned(),
        Target::ControlLink(index) => format!("the control link of TaskManager {}", index + 1),
        Target::DataLink(from, to) => {
            format!("the data link from TaskManager {} to {}", from + 1, to + 1)
        }
        Target::AllLinksOf(index) => format!("all links of TaskManager {}", index + 1),
        Target::Store => "the object store".to_owned(),
        Target::StoreOf(index) => format!("the object store as TaskManager {} sees it", index + 1),
        Target::UserCode => "user code".to_owned(),
    }
}

fn what(fault: &Fault, target: Target) -> String {
    let name = name(target);
    match fault {
        Fault::Kill { down } if down.is_zero() => format!("kill -9 of {name}, back at once"),
        Fault::Kill { down } => format!("kill -9 of {name}, back after {}", duration(*down)),
        Fault::Pause { down } => format!("{name} frozen for {}", duration(*down)),
        Fault::Terminate { down } => format!("SIGTERM to {name}, back after {}", duration(*down)),
        Fault::RollingRestart => "rolling restart of all TaskManagers".to_owned(),
        Fault::Starve { percent, down } => format!(
            "{name} gets {percent} % of its time for {}",
            duration(*down)
        ),
        Fault::Link(fault) => link(fault, &name),
        Fault::Store(fault) => store(fault, &name),
        Fault::Data(fault) => data(fault, &name),
        Fault::ActorPanic(kind) => format!("panic of {} ({name})", actor(*kind)),
        Fault::SlowHandler { actor: kind, down } => {
            format!("{} ({name}) stalls for {}", actor(*kind), duration(*down))
        }
        Fault::NoHeartbeats { down } => {
            format!("{name} sends no heartbeats for {}", duration(*down))
        }
        Fault::ClockOffset { millis } => format!(
            "wall clock of {name} {} by {}",
            if *millis < 0 { "back" } else { "on" },
            duration(Duration::from_millis(millis.unsigned_abs()))
        ),
        Fault::UserPanic { times } => format!("user code panics, {}", attempts(*times)),
        Fault::UserError {
            is_unrecoverable: true,
            ..
        } => "user code fails for good".to_owned(),
        Fault::UserError { times, .. } => {
            format!("user code returns an error, {}", attempts(*times))
        }
        Fault::UserStuck => "a user function never returns".to_owned(),
        Fault::ClientSavepoint => "a client asks for a savepoint".to_owned(),
        Fault::Rescale { parallelism } => {
            format!("stop with a savepoint, go on at parallelism {parallelism}")
        }
    }
}

fn attempts(times: u32) -> String {
    match times {
        1 => "once".to_owned(),
        u32::MAX => "in each attempt".to_owned(),
        n => format!("in {n} attempts"),
    }
}

fn actor(kind: ActorKind) -> &'static str {
    match kind {
        ActorKind::JobManager => "the JobManager actor",
        ActorKind::JobMaster => "the JobMaster",
        ActorKind::CheckpointCoordinator => "the CheckpointCoordinator",
        ActorKind::TaskManagerPeer => "the JobManager's TaskManagerPeer",
        ActorKind::TaskManager => "the TaskManager actor",
        ActorKind::JobManagerSession => "the TaskManager's JobManagerSession",
        ActorKind::Subtask => "a Subtask guardian",
    }
}

fn link(fault: &LinkFault, name: &str) -> String {
    match fault {
        LinkFault::Reset { down } if down.is_zero() => format!("{name} reset"),
        LinkFault::Reset { down } => format!("{name} reset, refused for {}", duration(*down)),
        LinkFault::BlackHole { direction, down } => {
            let way = match direction {
                Direction::Down => "swallows what goes in",
                Direction::Up => "swallows what comes out",
                Direction::Both => "swallows everything",
            };
            format!("{name} {way} for {}", duration(*down))
        }
        LinkFault::HalfOpen { down } => format!("{name} half-open for {}", duration(*down)),
        LinkFault::Latency {
            delay,
            jitter,
            down,
        } => format!(
            "{name} slower by {} to {} for {}",
            duration(*delay),
            duration(*delay + *jitter),
            duration(*down)
        ),
        LinkFault::Bandwidth {
            bytes_per_second,
            down,
        } => format!(
            "{name} carries {bytes_per_second} B/s for {}",
            duration(*down)
        ),
        LinkFault::Slice { down } => {
            format!("{name} carries single bytes for {}", duration(*down))
        }
        LinkFault::FlipBit => format!("{name} flips a bit"),
        LinkFault::Replay => format!("{name} replays an old connection"),
        LinkFault::Flap { times, every } => {
            format!("{name} breaks {times} times, every {}", duration(*every))
        }
    }
}

fn requests(requests: StoreRequests) -> &'static str {
    match requests {
        StoreRequests::All => "requests",
        StoreRequests::Put => "writes",
        StoreRequests::Create => "conditional creates",
        StoreRequests::CompleteMultipart => "multipart completions",
        StoreRequests::Get => "reads",
    }
}

fn store(fault: &StoreFault, name: &str) -> String {
    match fault {
        StoreFault::Answer {
            status,
            percent,
            requests: kind,
            down,
        } => format!(
            "{name} answers {percent} % of {} with {status} for {}",
            requests(*kind),
            duration(*down)
        ),
        StoreFault::Silence { down } => format!("{name} never answers for {}", duration(*down)),
        StoreFault::SlowBody {
            bytes_per_second,
            down,
        } => format!(
            "{name} carries bodies at {bytes_per_second} B/s for {}",
            duration(*down)
        ),
        StoreFault::CutBody { times } => format!("{name} cuts {times} bodies in the middle"),
        StoreFault::LoseSuccess {
            requests: kind,
            times,
        } => format!(
            "{name} does {times} {} and loses the answer",
            requests(*kind)
        ),
        StoreFault::LateWrite {
            requests: kind,
            delay,
        } => format!(
            "{name} does one of the {} later, by {}",
            requests(*kind),
            duration(*delay)
        ),
        StoreFault::StaleList { down } => {
            format!("{name} lists what was before, for {}", duration(*down))
        }
        StoreFault::MissingObject => "an object of the newest checkpoint is gone".to_owned(),
        StoreFault::CorruptObject => {
            "a byte of an object of the newest checkpoint is another".to_owned()
        }
        StoreFault::TruncatedObject => "an object of the newest checkpoint ends early".to_owned(),
        StoreFault::Precondition { times } => {
            format!("{name} answers {times} conditional creates with 412")
        }
        StoreFault::Empty => format!("{name} is emptied"),
        StoreFault::NoDelete { down } => {
            format!("{name} deletes nothing for {}", duration(*down))
        }
    }
}

fn data(fault: &DataFault, name: &str) -> String {
    match fault {
        DataFault::DiskFull { down } => format!("disk of {name} full for {}", duration(*down)),
        DataFault::IoError { down } => {
            format!("disk of {name} fails for {}", duration(*down))
        }
        DataFault::SlowDisk { delay, down } => format!(
            "disk of {name} slower by {} for {}",
            duration(*delay),
            duration(*down)
        ),
        DataFault::Leftovers => format!("leftovers of dead processes before {name}"),
        DataFault::NoDescriptors => format!("{name} has no descriptors left"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a person would say it.
    #[test]
    fn a_fault_is_a_sentence() {
        let fault = PlannedFault {
            when: When::Checkpoints(2),
            target: Target::TaskManager(0),
            what: Fault::Kill {
                down: Duration::from_millis(1250),
            },
        };
        assert_eq!(
            sentence(&fault),
            "P1 after 2 checkpoints: kill -9 of TaskManager 1, back after 1.2 s"
        );
    }
}
