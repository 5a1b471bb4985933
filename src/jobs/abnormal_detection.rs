//! Real-time detection of abnormal behaviour, the main job of the README. Its source can be replayed, so that it is exactly once.

use std::fmt;
use std::time::Duration;

use perennial_config::CheckpointingMode;
use serde::{Deserialize, Serialize};

use crate::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use crate::batch::Timestamp;
use crate::connector::{FileSink, GeneratorContext, GeneratorSource, PrintSink, mix};
use crate::error::{FunctionError, FunctionResult};
use crate::operator::{KeyedProcessFunction, OpenContext, ProcessContext, WatermarkStrategy};
use crate::state::ValueState;

/// Under which the job is registered.
pub const NAME: &str = "abnormal-detection";

/// From this count on every abnormal event raises an alarm.
pub const ALARM_FROM: u32 = 3;

/// Event time of the first event, in ms since the epoch.
pub const FIRST_EVENT_MS: Timestamp = 1_700_000_000_000;

/// What a user did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// As always.
    Normal,
    /// Suspicious.
    Abnormal,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEvent {
    /// `user1`, `user2`, …
    pub user_id: String,
    /// What.
    pub kind: EventKind,
    /// When, in ms since the epoch.
    pub time: Timestamp,
}

/// A user who behaves abnormally.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Alarm {
    /// Who.
    pub user_id: String,
    /// Abnormal events so far.
    pub abnormal_count: u32,
    /// Time of the event that raised it.
    pub time: Timestamp,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ALARM {} abnormalCount={} time={}",
            self.user_id, self.abnormal_count, self.time
        )
    }
}

/// The event of a lane (one lane per user) at an index: a pure function, so that the source can be replayed and checked.
#[must_use]
pub fn event(
    seed: u64,
    lane: u32,
    index: u64,
    interval: Duration,
    abnormal_share: f64,
) -> UserEvent {
    let random = mix(mix(seed ^ u64::from(lane)) ^ index);
    // 53 bits make a uniform fraction.
    let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
    let kind = if fraction < abnormal_share {
        EventKind::Abnormal
    } else {
        EventKind::Normal
    };
    let step = i64::try_from(interval.as_millis())
        .unwrap_or(i64::MAX)
        .max(1);
    UserEvent {
        user_id: format!("user{}", lane + 1),
        kind,
        time: FIRST_EVENT_MS
            .saturating_add(step.saturating_mul(i64::try_from(index).unwrap_or(i64::MAX))),
    }
}

/// Counts abnormal events per user.
#[derive(Clone, Default)]
pub struct AbnormalCountProcessFunction {
    abnormal_count: Option<ValueState<u32>>,
}

impl KeyedProcessFunction<String, UserEvent> for AbnormalCountProcessFunction {
    type Out = Alarm;

    fn open(&mut self, cx: &mut OpenContext<'_, String>) -> FunctionResult {
        self.abnormal_count = Some(cx.value_state("abnormalCount")?);
        Ok(())
    }

    fn process(
        &mut self,
        event: UserEvent,
        cx: &mut ProcessContext<'_, String, Alarm>,
    ) -> FunctionResult {
        if event.kind == EventKind::Normal {
            return Ok(());
        }
        let Some(state) = &self.abnormal_count else {
            return Err(FunctionError::new("open was not called"));
        };
        let abnormal_count = state.update_in(cx, &(), |count| {
            let next = count.unwrap_or(0) + 1;
            *count = Some(next);
            next
        })?;
        if abnormal_count >= ALARM_FROM {
            cx.emit(Alarm {
                user_id: event.user_id,
                abnormal_count,
                time: event.time,
            });
        }
        Ok(())
    }
}

const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "users",
        help: "number of users, and of source subtasks unless -p says another [default: 3]",
    },
    JobOption {
        name: "interval-ms",
        help: "time between two events of a user, in ms; 0: as fast as possible [default: 5000]",
    },
    JobOption {
        name: "abnormal-share",
        help: "share of abnormal events, 0 to 1 [default: 0.3]",
    },
    JobOption {
        name: "seed",
        help: "seed of the random events [default: 1]",
    },
    JobOption {
        name: "events",
        help: "total number of events; without it the job is endless",
    },
    JobOption {
        name: "output",
        help: "directory of committed output files; without it alarms are printed",
    },
];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    registry.job(
        NAME,
        "alarms for users with three or more abnormal events",
        OPTIONS,
        build,
    )
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let users: u32 = arguments.or("users", 3)?;
    let interval = Duration::from_millis(arguments.or("interval-ms", 5000)?);
    let share: f64 = arguments.or("abnormal-share", 0.3)?;
    let seed: u64 = arguments.or("seed", 1)?;
    let events: Option<u64> = arguments.optional("events")?;
    let output: Option<String> = arguments.optional("output")?;
    if users == 0 || !(0.0..=1.0).contains(&share) {
        return Err(FunctionError::unrecoverable(
            "need --users >= 1 and --abnormal-share from 0 to 1",
        ));
    }
    env.set_parallelism(users);
    env.enable_checkpointing(Duration::from_secs(10), CheckpointingMode::ExactlyOnce);
    env.set_min_pause_between_checkpoints(Duration::from_secs(5));
    env.set_checkpoint_timeout(Duration::from_secs(60));
    env.set_max_concurrent_checkpoints(1);
    env.enable_unaligned_checkpoints(true);
    let mut source = GeneratorSource::new(Some(users), move |cx: GeneratorContext| {
        let event = event(cx.seed, cx.lane, cx.index, interval, share);
        let time = event.time;
        (event, Some(time))
    })
    .seed(seed);
    if let Some(events) = events {
        source = source.events(events);
    }
    if !interval.is_zero() {
        source = source.rate_per_lane(1.0 / interval.as_secs_f64());
    }
    let alarms = env
        .from_source(
            source,
            WatermarkStrategy::monotonous(),
            "RandomUserEventSource",
        )
        .uid("random-user-event-source")
        .key_by(|event: &UserEvent| event.user_id.clone())
        .process(AbnormalCountProcessFunction::default())
        .name("AbnormalCountProcessFunction")
        .uid("abnormal-count");
    match output {
        Some(directory) => alarms
            .sink_to(FileSink::lines(directory))
            .name("FileSink")
            .uid("alarms"),
        None => alarms.sink_to(PrintSink::new()).name("Print").uid("alarms"),
    };
    Ok(())
}

/// The alarms that the bounded job must give, by a plain loop over the same events: what tests compare with.
#[must_use]
pub fn expected_alarms(
    seed: u64,
    users: u32,
    events: u64,
    interval: Duration,
    abnormal_share: f64,
) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for lane in 0..users {
        let of_lane =
            events / u64::from(users) + u64::from(events % u64::from(users) > u64::from(lane));
        let mut abnormal_count = 0;
        for index in 0..of_lane {
            let event = event(seed, lane, index, interval, abnormal_share);
            if event.kind == EventKind::Abnormal {
                abnormal_count += 1;
                if abnormal_count >= ALARM_FROM {
                    alarms.push(Alarm {
                        user_id: event.user_id,
                        abnormal_count,
                        time: event.time,
                    });
                }
            }
        }
    }
    alarms
}
