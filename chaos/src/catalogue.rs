//! The catalogue of faults: what each row is, what is expected of the runtime, and what shows it.
//!
//! Invariant: every row is here once, in order, and is carried by the simulator or by real processes, or names the tests that show it, or
//! says why it comes later. Campaigns count what they struck against it; [`crate::profile`] can draw every row that processes carry.

use serde::Serialize;

use crate::plan::Carrier::{self, Process, Simulator};
use crate::plan::Invariant::{self, L1, L2, L3, R1, R2, R3, R4, R5, S1, S2, S3, S4, S5, S6, S7};
use crate::plan::Row;

/// A row.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Entry {
    /// Its name.
    pub row: Row,
    /// What happens.
    pub title: &'static str,
    /// What the runtime does then.
    pub expected: &'static str,
    /// What is looked at, beside what is always checked ([`ALWAYS`]).
    pub invariants: &'static [Invariant],
    /// What strikes it.
    pub carriers: &'static [Carrier],
    /// Tests that show it without a fault plan.
    pub tests: &'static [&'static str],
    /// Why it, or a part of it, is not struck yet.
    pub later: Option<&'static str>,
}

/// Checked after every run.
pub const ALWAYS: &[Invariant] = &[S1, S2, S3, L1, L3, R1];

const BOTH: &[Carrier] = &[Simulator, Process];
const NONE: &[Carrier] = &[];

impl Entry {
    const fn new(row: Row, title: &'static str, expected: &'static str) -> Self {
        Self {
            row,
            title,
            expected,
            invariants: &[],
            carriers: BOTH,
            tests: &[],
            later: None,
        }
    }

    const fn checks(mut self, invariants: &'static [Invariant]) -> Self {
        self.invariants = invariants;
        self
    }

    const fn by(mut self, carriers: &'static [Carrier]) -> Self {
        self.carriers = carriers;
        self
    }

    const fn tests(mut self, tests: &'static [&'static str]) -> Self {
        self.tests = tests;
        self
    }

    const fn later(mut self, why: &'static str) -> Self {
        self.later = Some(why);
        self
    }

    /// Whether a carrier strikes it.
    #[must_use]
    pub fn is_carried_by(&self, carrier: Carrier) -> bool {
        self.carriers.contains(&carrier)
    }
}

/// The entry of a row.
#[must_use]
pub fn entry(row: Row) -> &'static Entry {
    &ALL[row as usize]
}

/// What an invariant says.
#[must_use]
pub fn invariant(invariant: Invariant) -> &'static str {
    match invariant {
        S1 => "committed output equals the fold over the input",
        S2 => "state of every completed checkpoint equals the fold up to its source positions",
        S3 => "one record for each number, epochs in order, no commit without a record",
        S4 => "nothing of an older epoch has effect",
        S5 => "restarts and delays are those of the strategy",
        S6 => "the cause that is reported names the fault",
        S7 => "an aborted checkpoint changes nothing; the next one succeeds",
        L1 => "all tasks run again in time, then a checkpoint completes",
        L2 => "the failure is detected in time",
        L3 => "finite input ends, cancelling ends, nothing hangs",
        R1 => "used slots are those of live attempts",
        R2 => "no process, thread, actor, descriptor or socket is left",
        R3 => "no directory or temporary file is left",
        R4 => "what nothing refers to is swept, what something refers to is kept",
        R5 => "no queue above its bound, memory near the baseline",
    }
}

/// Rows that a carrier strikes.
pub fn carried_by(carrier: Carrier) -> impl Iterator<Item = Row> {
    ALL.iter()
        .filter(move |entry| entry.is_carried_by(carrier))
        .map(|entry| entry.row)
}

/// All rows, in order.
pub const ALL: &[Entry] = &[
    Entry::new(Row::P1, "kill -9 of a TaskManager", "recovers; the restart is counted once").checks(&[L2, S6]),
    Entry::new(Row::P2, "kill -9 of all TaskManagers at once", "waits for slots, or fails by slot timeout, as configured; recovers when they return").checks(&[S5]),
    Entry::new(Row::P3, "kill -9 of the JobManager", "the next one claims an epoch and goes on from the newest record; recorded output is committed, unrecorded output is not").checks(&[S4]),
    Entry::new(Row::P4, "kill -9 of everything (power cut)", "the job comes back from the store alone"),
    Entry::new(Row::P5, "a TaskManager is frozen for less than the heartbeat timeout", "no restart, only latency"),
    Entry::new(Row::P6, "a TaskManager is frozen for longer, then wakes (zombie)", "it is replaced; on waking it is fenced and registers anew").checks(&[S4, R2]),
    Entry::new(Row::P7, "the leading JobManager is frozen, a standby takes over, it wakes (two leaders)", "the old one finds a higher epoch and ends; of each number there is one record").checks(&[S4]),
    Entry::new(Row::P8, "SIGTERM", "says goodbye, so that nobody waits for heartbeats; exit code 0").checks(&[L2]),
    Entry::new(Row::P9, "killed and started again at once under the same name", "a new generation; old session and old attempts are dropped").checks(&[S4]),
    Entry::new(Row::P10, "a TaskManager starves for processor time", "slow, not dead: no failover from starved heartbeats"),
    Entry::new(Row::P11, "abort in native code, out of memory, stack overflow", "the process is lost, as by a kill").checks(&[S6]).by(NONE)
        .later("to the others it is a kill (P1); a user function that aborts is not injected yet"),
    Entry::new(Row::P12, "rolling restart of all TaskManagers", "recovers each time"),
    Entry::new(Row::A1, "panic or error of a user function at a record, once to always", "recovers; when it is always, the job fails as the strategy says, naming operator and position").checks(&[S5, S6])
        .tests(&["tests/user_failures.rs"]),
    Entry::new(Row::A2, "error marked as unrecoverable", "FAILED at once, no restart").checks(&[S5])
        .tests(&["tests/user_failures.rs"]),
    Entry::new(Row::A3, "panic in open, restore, snapshot, notify, timer, close", "restarts; a panic in close does not hide the first cause").checks(&[S6])
        .tests(&["tests/data_plane"]),
    Entry::new(Row::A4, "panic of an actor of any kind", "as the supervision table says; a root ends its process").checks(&[S6, R2]),
    Entry::new(Row::A5, "a user function never returns", "cancelling times out, the process ends itself, the slot comes back as by P1"),
    Entry::new(Row::A6, "an actor's handler stalls", "calls time out with a typed error; nothing queues without bound").checks(&[R5]),
    Entry::new(Row::A7, "two subtasks fail within one backoff window", "one restart, both causes kept").checks(&[S5]).by(NONE)
        .tests(&["actors/src/job_master/tests/restarts.rs", "actors/src/restart.rs"]),
    Entry::new(Row::A8, "failure during recovery, repeatedly", "attempt numbers rise, no slot is lost, no stale report is believed").checks(&[S5]),
    Entry::new(Row::A9, "restart storm: failures faster than recovery", "the delay grows and caps; quiet resets it").checks(&[S5, R5]),
    Entry::new(Row::A10, "cancel or savepoint at a bad moment", "a defined answer, never a hang")
        .tests(&["actors/src/job_master/tests/ends.rs", "tests/savepoints.rs"]),
    Entry::new(Row::A11, "500 restarts of a small job", "resources stay flat").checks(&[R2, R3, R4, R5]).by(NONE)
        .later("needs a long run: part of the soak before a release"),
    Entry::new(Row::N1, "a control link is reset", "the session resumes within the reconnect window; later than that the TaskManager is lost"),
    Entry::new(Row::N2, "a control link is a black hole, one way or both; heartbeats stop", "lost after the heartbeat timeout, fenced when it is back").checks(&[L2, S4]),
    Entry::new(Row::N3, "partition: data links, a node cut off from all", "as N2; a broken data link is a failure that names the peer; no record is lost or repeated"),
    Entry::new(Row::N4, "half-open connection", "noticed by heartbeat or first write").checks(&[L2]),
    Entry::new(Row::N5, "latency, jitter, little bandwidth", "slower, correct; checkpoints may abort and then succeed").checks(&[S7]),
    Entry::new(Row::N6, "pieces of one byte", "frames are put together correctly"),
    Entry::new(Row::N7, "flipped bits", "seen by checksum, the connection breaks; never a wrong record"),
    Entry::new(Row::N8, "an old connection's bytes come again", "refused by session and attempt id").checks(&[S4]),
    Entry::new(Row::N9, "one slow data link", "back-pressure reaches the source; other links flow; barriers still pass").checks(&[R5]),
    Entry::new(Row::N10, "flapping link", "no more restarts than the strategy allows; reconnects back off").checks(&[S5]),
    Entry::new(Row::N11, "port in use, address changed", "another try with backoff, or a clear error").by(NONE)
        .tests(&["chaos/src/process.rs"]).later("a change of address needs name resolution under the harness's control"),
    Entry::new(Row::O1, "500, 503 SlowDown, throttling", "retried with backoff inside the checkpoint timeout; else the checkpoint aborts and the job runs on").checks(&[S7, R5]),
    Entry::new(Row::O2, "no answer, slow bodies", "bounded by deadlines of our own").tests(&["tests/storage"]),
    Entry::new(Row::O3, "success lost, write applied later", "what was created is read and compared before anyone concludes").tests(&["tests/storage", "actors/src/checkpoint_coordinator/tests/completion.rs"]),
    Entry::new(Row::O4, "truncated, flipped, cut bodies", "seen by checksum: an older checkpoint, and an event that says so; a job that would repeat committed output fails, naming the span").tests(&["tests/savepoints.rs", "tests/storage"]),
    Entry::new(Row::O5, "missing object, manifest or record", "an older checkpoint, and an event that says so; a job that would repeat committed output fails, naming the span").tests(&["tests/savepoints.rs"]),
    Entry::new(Row::O6, "a savepoint that is damaged, of another job, or of a newer format", "refused before any task starts, naming object and reason").by(NONE)
        .tests(&["tests/savepoints.rs", "actors/src/checkpoint/record.rs"]),
    Entry::new(Row::O7, "stale or truncated listings", "recovery does not depend on them; the sweeper waits").checks(&[R4]),
    Entry::new(Row::O8, "403: credentials expire", "checkpoints abort with a clear cause; they go on when repaired").checks(&[S7]),
    Entry::new(Row::O9, "412 on a conditional create, by a rival", "fenced: the JobMaster stops, the next one goes on")
        .tests(&["actors/src/checkpoint_coordinator/tests/leaders.rs"]),
    Entry::new(Row::O10, "a store without conditional create", "refused at the start").by(NONE).tests(&["tests/storage/faults.rs"]),
    Entry::new(Row::O11, "the bucket is emptied while the job runs", "the next checkpoint is full again, or the job fails clearly").by(&[Process]),
    Entry::new(Row::O12, "deletes fail", "tried again later; nothing that is referenced is deleted").checks(&[R4]),
    Entry::new(Row::D1, "disk full", "the task or checkpoint fails with the cause; recovers when there is space").checks(&[S6, R3]),
    Entry::new(Row::D2, "I/O errors", "the attempt fails, a new one goes on from the store").by(&[Simulator]),
    Entry::new(Row::D3, "slow disk", "back-pressure; checkpoints may time out").checks(&[S7]).by(&[Simulator]),
    Entry::new(Row::D4, "leftovers of dead processes", "ignored and swept, never reused").checks(&[R3]).by(&[Process]),
    Entry::new(Row::D5, "no descriptors left", "the newcomer fails cleanly, what runs goes on").checks(&[R2]).by(&[Process]),
    Entry::new(Row::T1, "the wall clock of a node jumps", "no effect on timeouts, epochs or checkpoint order").checks(&[S5]),
    Entry::new(Row::T2, "wall clocks of nodes differ a little", "event time is untouched").by(NONE)
        .later("processing-time timers do not exist yet; without them T1 covers it"),
    Entry::new(Row::T3, "the whole machine sleeps", "all sessions expire together: one recovery, not many").checks(&[S5]),
    Entry::new(Row::C1, "checkpoint timeout, decline, late or repeated acknowledgement", "aborted or ignored; never completed wrongly").checks(&[S7])
        .tests(&["actors/src/checkpoint/pending.rs", "actors/src/checkpoint_coordinator/tests/completion.rs"]),
    Entry::new(Row::C2, "too few slots, double registration, a TaskManager that lies", "waits, or fails by timeout; the second registration replaces the first").by(NONE)
        .tests(&["actors/src/job_manager/tests/mod.rs", "actors/src/job_master/tests/slots.rs"]),
    Entry::new(Row::C3, "another build on one node", "refused, naming both").by(NONE)
        .tests(&["actors/src/task_manager/tests/tasks.rs"]),
    Entry::new(Row::C4, "rescale from a savepoint", "equal output; more than the max parallelism is refused")
        .tests(&["tests/savepoints.rs"]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::simulator;

    /// `entry` indexes by the row's number; every row says what shows it.
    #[test]
    fn every_row_is_here_once_in_order_and_says_what_shows_it() {
        assert_eq!(ALL.iter().map(|e| e.row).collect::<Vec<_>>(), Row::ALL);
        for entry in ALL {
            assert!(
                !entry.carriers.is_empty() || !entry.tests.is_empty() || entry.later.is_some(),
                "{} is shown by nothing and says no reason",
                entry.row
            );
        }
    }

    /// What the simulator is said to strike is what its seeds draw.
    #[test]
    fn the_rows_of_the_simulator_are_those_that_its_seeds_draw() {
        let seeds = 0..4000;
        let drawn: BTreeSet<Row> = seeds.flat_map(|s| simulator::draw(s).rows()).collect();
        assert_eq!(drawn, carried_by(Simulator).collect());
    }

    /// A test that was renamed must not go on being named.
    #[test]
    fn the_tests_that_are_named_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for entry in ALL {
            for test in entry.tests {
                assert!(
                    root.join(test).try_exists().unwrap(),
                    "{}: there is no {test}",
                    entry.row
                );
            }
        }
    }
}
