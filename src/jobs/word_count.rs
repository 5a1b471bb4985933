//! Counts the words of text files.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::{Arguments, JobOption, JobRegistry, StreamEnvironment};
use crate::batch::{MAX_WATERMARK, Timestamp};
use crate::connector::{FileSink, LinesSource, PrintSink};
use crate::error::{FunctionError, FunctionResult};
use crate::operator::{KeyedProcessFunction, OpenContext, ProcessContext, WatermarkStrategy};
use crate::state::{TimeDomain, ValueState};

/// Under which the job is registered.
pub const NAME: &str = "word-count";

/// A word and how often it came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WordCount {
    /// In lower case.
    pub word: String,
    /// In all files.
    pub count: u64,
}

impl fmt::Display for WordCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.word, self.count)
    }
}

/// The words of a line: runs of letters and digits, in lower case.
pub fn words(line: &str) -> impl Iterator<Item = String> + use<> {
    line.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect::<Vec<_>>()
        .into_iter()
}

/// Counts, and emits each word once, when all input has ended: at the end of event time.
#[derive(Clone, Default)]
struct CountWords {
    count: Option<ValueState<u64>>,
}

impl CountWords {
    fn state(&self) -> FunctionResult<&ValueState<u64>> {
        self.count
            .as_ref()
            .ok_or_else(|| FunctionError::new("open was not called"))
    }
}

impl KeyedProcessFunction<String, String> for CountWords {
    type Out = WordCount;

    fn open(&mut self, cx: &mut OpenContext<'_, String>) -> FunctionResult {
        self.count = Some(cx.value_state("count")?);
        Ok(())
    }

    fn process(
        &mut self,
        _word: String,
        cx: &mut ProcessContext<'_, String, WordCount>,
    ) -> FunctionResult {
        let is_first = self.state()?.update_in(cx, &(), |count| {
            let is_first = count.is_none();
            *count = Some(count.unwrap_or(0) + 1);
            is_first
        })?;
        if is_first {
            cx.register_event_time_timer(MAX_WATERMARK)?;
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        _time: Timestamp,
        _domain: TimeDomain,
        cx: &mut ProcessContext<'_, String, WordCount>,
    ) -> FunctionResult {
        let count = self.state()?.get_in(cx, &())?.unwrap_or(0);
        let word = cx.key().clone();
        cx.emit(WordCount { word, count });
        Ok(())
    }
}

const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "input",
        help: "text files, separated by commas, or one directory; readable on every TaskManager",
    },
    JobOption {
        name: "output",
        help: "directory of committed output files; without it counts are printed",
    },
];

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    registry.job(
        NAME,
        "how often each word comes in some text files",
        OPTIONS,
        build,
    )
}

fn build(env: &StreamEnvironment, arguments: &Arguments) -> FunctionResult {
    let input: String = arguments.required("input")?;
    let output: Option<String> = arguments.optional("output")?;
    let is_list = input.contains(',')
        || input
            .rsplit('/')
            .next()
            .is_some_and(|name| name.contains('.'));
    let source = if is_list {
        LinesSource::files(input.split(',').filter(|path| !path.is_empty()))
    } else {
        LinesSource::directory(input)
    };
    let counts = env
        .from_source(source, WatermarkStrategy::no_watermarks(), "files")
        .uid("files")
        .flat_map(|line: String| Ok(words(&line)))
        .name("words")
        .uid("words")
        .key_by(|word: &String| word.clone())
        .process(CountWords::default())
        .name("count")
        .uid("count");
    match output {
        Some(directory) => counts
            .sink_to(FileSink::lines(directory))
            .name("output")
            .uid("output"),
        None => counts.sink_to(PrintSink::new()).name("print").uid("print"),
    };
    Ok(())
}
