//! The events that all jobs but those of Nexmark read: those of the shipped job `keyed-count`, by the same function.

use std::path::PathBuf;

use perennial::api::{Arguments, JobOption};
use perennial::batch::Timestamp;
use perennial::connector::{GeneratorContext, GeneratorSource, Source};
use perennial::error::{FunctionError, FunctionResult};
use perennial::jobs::keyed_count::{Event, event};

use super::watched::Watched;
use crate::marks::Marks;

/// Options of every job over these events.
pub const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "keys",
        help: "number of users [default: 1000]",
    },
    JobOption {
        name: "events",
        help: "total number of events; without it the job is endless",
    },
    JobOption {
        name: "rate",
        help: "events per second over all source subtasks, after the prefill; without it as fast as possible",
    },
    JobOption {
        name: "prefill",
        help: "first events, in all, that go through the users in order, as fast as possible [default: 0]",
    },
    JobOption {
        name: "touched",
        help: "number of users that have events after the prefill [default: all]",
    },
    JobOption {
        name: "sources",
        help: "number of source subtasks, which any rate is divided by [default: 2]",
    },
    JobOption {
        name: "marks",
        help: "directory in which the job says what happens when",
    },
];

/// The options of a job: the common ones and its own.
#[must_use]
pub fn options(own: &[JobOption]) -> Vec<JobOption> {
    [OPTIONS, own].concat()
}

/// Which events.
#[derive(Debug, Clone)]
pub struct Input {
    keys: u64,
    touched: u64,
    prefill: u64,
    events: Option<u64>,
    rate: Option<f64>,
    sources: u32,
    /// Where the job says what happens.
    pub marks: Marks,
}

impl Input {
    /// As the arguments say.
    ///
    /// # Errors
    /// When an argument is malformed or out of range.
    pub fn of(arguments: &Arguments) -> FunctionResult<Self> {
        let keys = arguments.or("keys", 1000)?;
        let input = Self {
            keys,
            touched: arguments.or("touched", keys)?,
            prefill: arguments.or("prefill", 0)?,
            events: arguments.optional("events")?,
            rate: arguments.optional("rate")?,
            sources: arguments.or("sources", 2)?,
            marks: Marks::new(arguments.optional::<PathBuf>("marks")?),
        };
        if input.keys == 0 || input.touched == 0 || input.touched > keys || input.sources == 0 {
            let message = "need --keys >= 1, 1 <= --touched <= --keys and --sources >= 1";
            return Err(FunctionError::unrecoverable(message));
        }
        Ok(input)
    }

    /// Number of source subtasks, and of the generator's lanes.
    #[must_use]
    pub fn sources(&self) -> u32 {
        self.sources
    }

    /// The event of a sequence number.
    #[inline]
    #[must_use]
    pub fn event(&self, sequence: u64) -> Event {
        event_after(sequence, self.prefill, self.keys, self.touched)
    }

    /// The events as a source; `make` turns an event into a record with an event time.
    pub fn source<F>(&self, make: F) -> Watched<impl Source<Item = Event> + use<F>>
    where
        F: Fn(Event) -> (Event, Option<Timestamp>) + Clone + Send + Sync + 'static,
    {
        let input = self.clone();
        let mut source = GeneratorSource::new(Some(self.sources), move |cx: GeneratorContext| {
            make(input.event(cx.sequence()))
        })
        .prefill(self.prefill);
        if let Some(events) = self.events {
            source = source.events(events);
        }
        if let Some(rate) = self.rate {
            source = source.rate_per_lane(rate / f64::from(self.sources));
        }
        let prefill = self.prefill / u64::from(self.sources);
        Watched::new(source, self.marks.clone(), prefill)
    }
}

/// The event of a sequence number: up to the prefill each of the users in turn, then any of those that are touched.
#[inline]
#[must_use]
pub fn event_after(sequence: u64, prefill: u64, keys: u64, touched: u64) -> Event {
    if sequence < prefill {
        Event {
            user: sequence % keys,
            is_abnormal: true,
            ..event(sequence, 1)
        }
    } else {
        event(sequence, touched)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn input(arguments: &[(&str, &str)]) -> FunctionResult<Input> {
        let pairs = arguments.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Input::of(&Arguments::new(pairs.collect::<BTreeMap<String, String>>()))
    }

    /// Without a prefill the events are those of the shipped job; with one, every user comes first, once.
    #[test]
    fn events_are_those_of_the_shipped_job_after_every_user_came_once() {
        let plain = input(&[("keys", "50")]).unwrap();
        let filled = input(&[("keys", "50"), ("prefill", "50"), ("touched", "5")]).unwrap();
        for sequence in 0..50 {
            assert_eq!(plain.event(sequence), event(sequence, 50));
            let first = filled.event(sequence);
            assert_eq!((first.user, first.is_abnormal), (sequence, true));
            assert!(filled.event(sequence + 50).user < 5);
        }
        assert!(input(&[("keys", "0")]).is_err());
        assert!(input(&[("touched", "2000")]).is_err());
    }
}
