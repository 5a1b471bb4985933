//! Keys that travel with a job. Each fills [`JobSettings`](crate::JobSettings).

use std::time::Duration;

use super::{Key, Kind, Refusal, Scope, Set};
use crate::draft::Strategy;
use crate::settings::{CheckpointingMode, ExternalizedRetention};
use crate::value::{
    NEVER, fold, parse_count, parse_decimal, parse_directory, parse_duration, parse_flag,
    parse_share, parse_size,
};

/// Flink's smallest checkpoint interval and timeout.
const CHECKPOINT_TIME_MIN: Duration = Duration::from_millis(10);
/// Flink's bound of parallelism and of key groups.
const PARALLELISM_MAX: i64 = 32768;
/// Inline state travels in acknowledgements and metadata; Flink's bound.
const INLINE_BYTES_MAX: u64 = 1 << 20;
/// Bound of every history list.
const HISTORY_MAX: i64 = 10_000;
/// More attempts at once would only compete for the same disks.
const CONCURRENT_CHECKPOINTS_MAX: i64 = 100;

const fn job(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    note: &'static str,
    set: Set,
) -> Key {
    super::native(Scope::Job, name, kind, default, note, set)
}

pub(super) const KEYS: &[Key] = &[
    job(
        "execution.checkpointing.interval",
        Kind::Duration,
        None,
        "period of checkpoints; unset or 0: none",
        |d, v| {
            let interval = parse_duration(v)?;
            d.job.checkpointing.interval = (!interval.is_zero())
                .then(|| at_least(interval, CHECKPOINT_TIME_MIN))
                .transpose()?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.mode",
        Kind::Word,
        Some("EXACTLY_ONCE"),
        "EXACTLY_ONCE aligns barriers, AT_LEAST_ONCE never blocks a channel",
        |d, v| {
            d.job.checkpointing.mode = match fold(v).as_str() {
                "exactlyonce" => CheckpointingMode::ExactlyOnce,
                "atleastonce" => CheckpointingMode::AtLeastOnce,
                _ => return Err(expected("EXACTLY_ONCE or AT_LEAST_ONCE")),
            };
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.timeout",
        Kind::Duration,
        Some("10min"),
        "a checkpoint that takes longer is aborted",
        |d, v| {
            d.job.checkpointing.timeout = at_least(parse_duration(v)?, CHECKPOINT_TIME_MIN)?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.min-pause",
        Kind::Duration,
        Some("0s"),
        "from the end of a checkpoint to the start of the next; above 0 it means one at a time",
        |d, v| {
            d.job.checkpointing.min_pause = parse_duration(v)?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.max-concurrent-checkpoints",
        Kind::Count,
        Some("1"),
        "checkpoints in flight at once",
        |d, v| {
            d.job.checkpointing.max_concurrent = count(v, 1, CONCURRENT_CHECKPOINTS_MAX)?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.tolerable-failed-checkpoints",
        Kind::Count,
        Some("0"),
        "failed checkpoints in a row that are put up with; one more is a failure of the job",
        |d, v| {
            d.job.checkpointing.tolerable_failed = count(v, 0, i64::from(i32::MAX))?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.num-retained",
        Kind::Count,
        Some("1"),
        "completed checkpoints that are kept",
        |d, v| {
            let retained = parse_count(v, i64::from(i32::MIN), HISTORY_MAX)?;
            if retained < 1 {
                d.say("at least one checkpoint is kept: 1 is used");
            }
            d.job.checkpointing.num_retained = u32::try_from(retained.max(1)).unwrap_or(1);
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.externalized-checkpoint-retention",
        Kind::Word,
        Some("NO_EXTERNALIZED_CHECKPOINTS"),
        "which checkpoints outlive the job: NO_EXTERNALIZED_CHECKPOINTS, DELETE_ON_CANCELLATION or RETAIN_ON_CANCELLATION",
        |d, v| {
            d.job.checkpointing.retention = match fold(v).as_str() {
                "noexternalizedcheckpoints" => ExternalizedRetention::NoExternalizedCheckpoints,
                "deleteoncancellation" => ExternalizedRetention::DeleteOnCancellation,
                "retainoncancellation" => ExternalizedRetention::RetainOnCancellation,
                _ => {
                    return Err(expected(
                        "NO_EXTERNALIZED_CHECKPOINTS, DELETE_ON_CANCELLATION or RETAIN_ON_CANCELLATION",
                    ));
                }
            };
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.incremental",
        Kind::Flag,
        Some("true"),
        "a checkpoint holds what changed since its base (Flink's default is false)",
        |d, v| {
            d.job.checkpointing.is_incremental = parse_flag(v)?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.data-inline-threshold",
        Kind::Size,
        Some("20kb"),
        "smaller state of a subtask lies in the metadata",
        |d, v| {
            d.job.checkpointing.inline_threshold = size(v, 0, INLINE_BYTES_MAX)?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.dir",
        Kind::Directory,
        Some("file:///tmp/perennial/checkpoints"),
        "checkpoints lie below it, in <job-id>/chk-<n>",
        |d, v| {
            d.job.checkpointing.directory = parse_directory(v)?;
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.savepoint-dir",
        Kind::Directory,
        None,
        "where savepoints go that name no directory",
        |d, v| {
            d.job.checkpointing.savepoint_directory = Some(parse_directory(v)?);
            Ok(())
        },
    ),
    job(
        "execution.checkpointing.unaligned.enabled",
        Kind::Flag,
        Some("false"),
        "runs aligned until unaligned barriers exist",
        |d, v| {
            d.wants_unaligned = parse_flag(v)?;
            if d.wants_unaligned {
                d.say("runs aligned until unaligned barriers exist");
            }
            Ok(())
        },
    ),
    job(
        "recovery.ladder.allow-repeat",
        Kind::Flag,
        Some("false"),
        "lets a job with transactional sinks restore below a completed checkpoint",
        |d, v| {
            d.job.checkpointing.allow_repeat = parse_flag(v)?;
            Ok(())
        },
    ),
    job(
        "parallelism.default",
        Kind::Count,
        Some("1"),
        "subtasks of an operator that names no number",
        |d, v| {
            d.job.parallelism = count(v, 1, PARALLELISM_MAX)?;
            Ok(())
        },
    ),
    job(
        "pipeline.max-parallelism",
        Kind::Count,
        None,
        "number of key groups; unset or -1: from the parallelism",
        |d, v| {
            d.job.max_parallelism = match v.trim() {
                "-1" => None,
                v => Some(count(v, 1, PARALLELISM_MAX)?),
            };
            Ok(())
        },
    ),
    job(
        "execution.buffer-timeout.interval",
        Kind::Duration,
        Some("100ms"),
        "longest time a record waits in an output buffer; 0: none; -1: until the buffer is full",
        |d, v| {
            d.job.buffer_timeout = match v.trim() {
                "-1" | "-1ms" | "-1 ms" => NEVER,
                v => parse_duration(v)?,
            };
            Ok(())
        },
    ),
    job(
        "execution.buffer-timeout.enabled",
        Kind::Flag,
        Some("true"),
        "false: buffers leave only when full, like an interval of -1",
        |d, v| {
            d.has_buffer_timeout = parse_flag(v)?;
            Ok(())
        },
    ),
    job(
        "task.cancellation.timeout",
        Kind::Duration,
        Some("180s"),
        "a task that ends later ends its TaskManager; 0: never",
        |d, v| {
            let timeout = parse_duration(v)?;
            d.job.cancellation_timeout = if timeout.is_zero() { NEVER } else { timeout };
            Ok(())
        },
    ),
    job(
        "slot.request.timeout",
        Kind::Duration,
        Some("5min"),
        "how long a job waits for slots",
        |d, v| {
            d.job.slot_request_timeout = positive(v)?;
            Ok(())
        },
    ),
    job(
        "web.checkpoints.history",
        Kind::Count,
        Some("10"),
        "checkpoints in the history",
        |d, v| {
            d.job.checkpoint_history_size = count(v, 0, HISTORY_MAX)?;
            Ok(())
        },
    ),
    job(
        "web.exception-history-size",
        Kind::Count,
        Some("16"),
        "failures in the history",
        |d, v| {
            d.job.exception_history_size = count(v, 0, HISTORY_MAX)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.type",
        Kind::Word,
        None,
        "none, fixed-delay, failure-rate or exponential-delay; unset: exponential-delay with checkpoints, else none",
        |d, v| {
            d.restart.strategy = Some(match fold(v).as_str() {
                "none" | "off" | "disable" => Strategy::None,
                "fixeddelay" => Strategy::FixedDelay,
                "failurerate" => Strategy::FailureRate,
                "exponentialdelay" => Strategy::ExponentialDelay,
                _ => {
                    return Err(expected(
                        "none, fixed-delay, failure-rate or exponential-delay",
                    ));
                }
            });
            Ok(())
        },
    ),
    job(
        "restart-strategy.strict",
        Kind::Flag,
        Some("false"),
        "true counts every failed task, as Flink does; false counts one incident once",
        |d, v| {
            d.restart.is_strict = parse_flag(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.fixed-delay.attempts",
        Kind::Count,
        Some("1"),
        "restarts; an hour without one gives them back, unless restart-strategy.strict",
        |d, v| {
            d.restart.attempts = count(v, 0, i64::from(i32::MAX))?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.fixed-delay.delay",
        Kind::Duration,
        Some("1s"),
        "before each restart",
        |d, v| {
            d.restart.fixed_delay = parse_duration(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.failure-rate.max-failures-per-interval",
        Kind::Count,
        Some("1"),
        "failures in an interval that are survived",
        |d, v| {
            d.restart.max_failures = count(v, 1, HISTORY_MAX)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.failure-rate.failure-rate-interval",
        Kind::Duration,
        Some("1min"),
        "the interval",
        |d, v| {
            d.restart.failure_interval = positive(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.failure-rate.delay",
        Kind::Duration,
        Some("1s"),
        "before each restart",
        |d, v| {
            d.restart.failure_delay = parse_duration(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.exponential-delay.initial-backoff",
        Kind::Duration,
        Some("1s"),
        "first delay",
        |d, v| {
            d.restart.initial_backoff = positive(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.exponential-delay.max-backoff",
        Kind::Duration,
        Some("1min"),
        "largest delay",
        |d, v| {
            d.restart.max_backoff = positive(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.exponential-delay.backoff-multiplier",
        Kind::Decimal,
        Some("1.5"),
        "each delay is so many times the one before; above 1",
        |d, v| {
            d.restart.multiplier = parse_decimal(v)?;
            if d.restart.multiplier > 1.0 {
                Ok(())
            } else {
                Err(expected("a number above 1"))
            }
        },
    ),
    job(
        "restart-strategy.exponential-delay.reset-backoff-threshold",
        Kind::Duration,
        Some("1h"),
        "quiet time after which the delays start anew",
        |d, v| {
            d.restart.reset_threshold = positive(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.exponential-delay.jitter-factor",
        Kind::Share,
        Some("0.1"),
        "the delay is spread by this share, from 0 to 1",
        |d, v| {
            d.restart.jitter_factor = parse_share(v)?;
            Ok(())
        },
    ),
    job(
        "restart-strategy.exponential-delay.attempts-before-reset-backoff",
        Kind::Count,
        Some("infinite"),
        "restarts without a quiet time",
        |d, v| {
            d.restart.attempts_before_reset = match fold(v).as_str() {
                "infinite" | "2147483647" => None,
                _ => Some(count(v, 1, i64::from(i32::MAX))?),
            };
            Ok(())
        },
    ),
    job(
        "state.backend.type",
        Kind::Word,
        Some("hashmap"),
        "hashmap keeps state in memory",
        |_, v| match fold(v).as_str() {
            "hashmap" | "memory" | "jobmanager" | "filesystem" => Ok(()),
            "rocksdb" => Err(Refusal::NotYet(
                "the RocksDB backend is not built; use hashmap",
            )),
            "forst" => Err(Refusal::NotYet(
                "the ForSt backend is not built; use hashmap",
            )),
            _ => Err(expected("hashmap or rocksdb")),
        },
    ),
];

/// A reason that lists what would be right.
pub(super) fn expected(what: &str) -> Refusal {
    Refusal::Invalid(format!("expected {what}"))
}

pub(super) fn count(text: &str, min: i64, max: i64) -> Result<u32, Refusal> {
    let number = parse_count(text, min, max)?;
    u32::try_from(number).map_err(|_| expected(&format!("a whole number from {min} to {max}")))
}

pub(super) fn size(text: &str, min: u64, max: u64) -> Result<u64, Refusal> {
    let bytes = parse_size(text)?;
    if (min..=max).contains(&bytes) {
        return Ok(bytes);
    }
    let (min, max) = (
        crate::value::format_size(min),
        crate::value::format_size(max),
    );
    Err(expected(&format!("a size from {min} to {max}")))
}

pub(super) fn positive(text: &str) -> Result<Duration, Refusal> {
    at_least(parse_duration(text)?, Duration::from_millis(1))
}

fn at_least(duration: Duration, min: Duration) -> Result<Duration, Refusal> {
    if duration >= min {
        Ok(duration)
    } else {
        Err(expected(&format!(
            "at least {}",
            crate::value::format_duration(min)
        )))
    }
}
