//! Counts events per key, with one read and one write of state for every event: the job that throughput is measured with.

use serde::{Deserialize, Serialize};

use crate::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use crate::connector::{BlackholeSink, FileSink, GeneratorContext, GeneratorSource, mix};
use crate::error::{FunctionError, FunctionResult};
use crate::operator::{KeyedProcessFunction, OpenContext, ProcessContext, WatermarkStrategy};
use crate::state::ValueState;

/// Under which the job is registered.
pub const NAME: &str = "keyed-count";

/// An event of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who.
    pub user: u64,
    /// When, in ms.
    pub time: i64,
    /// Three in ten.
    pub is_abnormal: bool,
}

/// The event of a sequence number, the same as that of the Flink job that this one is compared with.
#[inline]
#[must_use]
pub fn event(sequence: u64, keys: u64) -> Event {
    let h = mix(sequence);
    Event {
        user: (h >> 1) % keys,
        time: (sequence / 100) as i64,
        is_abnormal: ((h >> 40) * 10) >> 24 < 3,
    }
}

/// Events (low half) and abnormal events (high half) of a user; emits the user at every third abnormal one.
#[derive(Clone, Default)]
pub struct CountFunction {
    count: Option<ValueState<u64>>,
}

impl KeyedProcessFunction<u64, Event> for CountFunction {
    type Out = u64;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.count = Some(cx.value_state("count")?);
        Ok(())
    }

    #[inline]
    fn process(&mut self, event: Event, cx: &mut ProcessContext<'_, u64, u64>) -> FunctionResult {
        let Some(state) = &self.count else {
            return Err(FunctionError::new("open was not called"));
        };
        let is_third = state.update_in(cx, &(), |slot| {
            let mut count = slot.unwrap_or(0) + 1;
            let mut is_third = false;
            if event.is_abnormal {
                count += 1 << 32;
                is_third = (count >> 32).is_multiple_of(3);
            }
            *slot = Some(count);
            is_third
        })?;
        if is_third {
            cx.emit(event.user);
        }
        Ok(())
    }
}

const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "keys",
        help: "number of keys [default: 1000]",
    },
    JobOption {
        name: "events",
        help: "total number of events; without it the job is endless",
    },
    JobOption {
        name: "rate",
        help: "events per second and source subtask; without it as fast as possible",
    },
    JobOption {
        name: "prefill",
        help: "first events, in all, that come as fast as possible whatever the rate",
    },
    JobOption {
        name: "lanes",
        help: "independent parts of the source [default: the parallelism]",
    },
    JobOption {
        name: "output",
        help: "directory of committed output files; without it the output is counted and dropped",
    },
];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    registry.job(
        NAME,
        "events per key, flat out: the throughput benchmark",
        OPTIONS,
        build,
    )
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let keys: u64 = arguments.or("keys", 1000)?;
    let events: Option<u64> = arguments.optional("events")?;
    let rate: Option<f64> = arguments.optional("rate")?;
    let prefill: Option<u64> = arguments.optional("prefill")?;
    let lanes: Option<u32> = arguments.optional("lanes")?;
    let output: Option<String> = arguments.optional("output")?;
    if keys == 0 {
        return Err(FunctionError::unrecoverable("need --keys >= 1"));
    }
    let mut source = GeneratorSource::new(lanes, move |cx: GeneratorContext| {
        (event(cx.sequence(), keys), None)
    });
    if let Some(events) = events {
        source = source.events(events);
    }
    if let Some(rate) = rate {
        source = source.rate_per_lane(rate);
    }
    if let Some(prefill) = prefill {
        source = source.prefill(prefill);
    }
    let counts = env
        .from_source(source, WatermarkStrategy::no_watermarks(), "generator")
        .uid("generator")
        .key_by(|event: &Event| event.user)
        .process(CountFunction::default())
        .name("count")
        .uid("count");
    match output {
        Some(directory) => counts
            .sink_to(FileSink::lines(directory))
            .name("files")
            .uid("files"),
        None => counts
            .sink_to(BlackholeSink::new())
            .name("blackhole")
            .uid("blackhole"),
    };
    Ok(())
}

/// Output of the bounded job by a plain loop: how often each user is emitted, and in all.
#[must_use]
pub fn expected_total(events: u64, keys: u64) -> u64 {
    let mut abnormal = vec![0_u32; usize::try_from(keys).unwrap_or(0)];
    let mut total = 0;
    for sequence in 0..events {
        let event = event(sequence, keys);
        if event.is_abnormal {
            let count = &mut abnormal[event.user as usize];
            *count += 1;
            total += u64::from(count.is_multiple_of(3));
        }
    }
    total
}
