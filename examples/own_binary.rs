//! A user's own binary: a job of one's own, and every role of a cluster by one call.
//!
//! ```text
//! cargo run --example own_binary -- run running-totals --local --events 1000
//! cargo run --example own_binary -- run running-totals --help
//! ```
//!
//! The job counts numbers by their remainder and emits every intermediate count. Its check can be made to fail, once or always, so
//! that one can watch what a cluster makes of mistakes in user code.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use perennial::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use perennial::connector::{FileSink, GeneratorContext, GeneratorSource, PrintSink};
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext, WatermarkStrategy};
use perennial::state::ValueState;

const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "events",
        help: "how many numbers; without it the job is endless",
    },
    JobOption {
        name: "keys",
        help: "number of keys [default: 10]",
    },
    JobOption {
        name: "rate",
        help: "numbers per second and source subtask [default: as fast as possible]",
    },
    JobOption {
        name: "panic-at",
        help: "panic at this number",
    },
    JobOption {
        name: "error-at",
        help: "return an error at this number",
    },
    JobOption {
        name: "fatal-at",
        help: "return an error that no retry can help at this number",
    },
    JobOption {
        name: "marker",
        help: "fail only if this file does not exist yet, and create it first: fails once",
    },
    JobOption {
        name: "output",
        help: "directory of committed output files; without it counts are printed",
    },
];

fn main() -> ExitCode {
    let registry = JobRegistry::new();
    perennial::cli::main(registry.job(
        "running-totals",
        "counts numbers by their remainder",
        OPTIONS,
        build,
    ))
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let keys: u64 = arguments.or("keys", 10)?;
    let rate: Option<f64> = arguments.optional("rate")?;
    let output: Option<String> = arguments.optional("output")?;
    if keys == 0 {
        return Err(FunctionError::unrecoverable("need --keys >= 1"));
    }
    let mut source = GeneratorSource::new(None, |cx: GeneratorContext| (cx.sequence(), None));
    if let Some(events) = arguments.optional("events")? {
        source = source.events(events);
    }
    if let Some(rate) = rate {
        source = source.rate_per_lane(rate);
    }
    let check = Check {
        panic_at: arguments.optional("panic-at")?,
        error_at: arguments.optional("error-at")?,
        fatal_at: arguments.optional("fatal-at")?,
        marker: arguments.optional("marker")?,
    };
    let totals = env
        .from_source(source, WatermarkStrategy::no_watermarks(), "numbers")
        .uid("numbers")
        .map(move |number| check.pass(number))
        .name("check")
        .uid("check")
        .key_by(move |number: &u64| number % keys)
        .process(Count { keys, total: None })
        .name("count")
        .uid("count");
    match output {
        Some(directory) => totals
            .sink_to(FileSink::lines(directory))
            .name("output")
            .uid("output"),
        None => totals.sink_to(PrintSink::new()).name("print").uid("print"),
    };
    Ok(())
}

/// Fails at certain numbers.
#[derive(Debug, Clone)]
struct Check {
    panic_at: Option<u64>,
    error_at: Option<u64>,
    fatal_at: Option<u64>,
    marker: Option<PathBuf>,
}

impl Check {
    fn pass(&self, number: u64) -> FunctionResult<u64> {
        let fails = |at: Option<u64>| at == Some(number);
        let may_fail = fails(self.panic_at) || fails(self.error_at) || fails(self.fatal_at);
        if !may_fail || !self.is_due()? {
            return Ok(number);
        }
        assert!(!fails(self.panic_at), "asked to panic at {number}");
        let message = format!("asked to fail at {number}");
        Err(if fails(self.fatal_at) {
            FunctionError::unrecoverable(message)
        } else {
            FunctionError::new(message)
        })
    }

    /// Whether this is the first time, or every time counts.
    fn is_due(&self) -> FunctionResult<bool> {
        let Some(marker) = &self.marker else {
            return Ok(true);
        };
        match OpenOptions::new().write(true).create_new(true).open(marker) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Emits `key count` for every number.
#[derive(Clone)]
struct Count {
    keys: u64,
    total: Option<ValueState<u64>>,
}

impl KeyedProcessFunction<u64, u64> for Count {
    type Out = String;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.total = Some(cx.value_state("total")?);
        Ok(())
    }

    fn process(&mut self, number: u64, cx: &mut ProcessContext<'_, u64, String>) -> FunctionResult {
        let Some(state) = &self.total else {
            return Err(FunctionError::new("open was not called"));
        };
        let total = state.update_in(cx, &(), |total| {
            let next = total.unwrap_or(0) + 1;
            *total = Some(next);
            next
        })?;
        cx.emit(format!("{} {total}", number % self.keys));
        Ok(())
    }
}
