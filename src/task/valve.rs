//! The event time of a task from the event times of its channels: the least of those that count. Pure.

use crate::batch::{StreamStatus, Timestamp};

#[derive(Debug, Clone, Copy)]
struct Channel {
    watermark: Timestamp,
    status: StreamStatus,
}

/// What changed for the task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Advance {
    /// The new watermark, when it rose.
    pub(crate) watermark: Option<Timestamp>,
    /// The new status, when it changed.
    pub(crate) status: Option<StreamStatus>,
}

/// Watermarks and statuses of all channels.
#[derive(Debug)]
pub(crate) struct Valve {
    channels: Vec<Channel>,
    emitted: Timestamp,
    status: StreamStatus,
}

impl Valve {
    pub(crate) fn new(channels: usize) -> Self {
        let channel = Channel {
            watermark: Timestamp::MIN,
            status: StreamStatus::Active,
        };
        Self {
            channels: vec![channel; channels],
            emitted: Timestamp::MIN,
            status: StreamStatus::Active,
        }
    }

    pub(crate) fn watermark(&mut self, channel: usize, watermark: Timestamp) -> Advance {
        let channel = &mut self.channels[channel];
        channel.watermark = channel.watermark.max(watermark);
        self.advance()
    }

    pub(crate) fn status(&mut self, channel: usize, status: StreamStatus) -> Advance {
        self.channels[channel].status = status;
        self.advance()
    }

    /// An ended channel holds nothing back any more.
    pub(crate) fn ended(&mut self, channel: usize) -> Advance {
        self.watermark(channel, Timestamp::MAX)
    }

    /// The active channel that is furthest behind in event time; `None` when none is behind another, and as long as there is one without
    /// event time: there may never be any.
    pub(crate) fn behind(&self) -> Option<usize> {
        let mut going = self.channels.iter().enumerate().filter(|(_, channel)| {
            channel.status == StreamStatus::Active && channel.watermark < Timestamp::MAX
        });
        let (behind, least) = going.clone().min_by_key(|(_, channel)| channel.watermark)?;
        let is_behind = going.any(|(_, channel)| channel.watermark > least.watermark);
        (is_behind && least.watermark > Timestamp::MIN).then_some(behind)
    }

    fn advance(&mut self) -> Advance {
        let mut advance = Advance::default();
        // Who has ended holds nobody back, and does not speak for those that go on (in Flink it does: FLINK-38477).
        let going = self
            .channels
            .iter()
            .filter(|c| c.watermark < Timestamp::MAX);
        let active = going.clone().filter(|c| c.status == StreamStatus::Active);
        let status = match (going.clone().next(), active.clone().next()) {
            (Some(_), None) => StreamStatus::Idle,
            (Some(_), Some(_)) | (None, _) => StreamStatus::Active,
        };
        // When all are idle, event time has come as far as the furthest of them (as in Flink's StatusWatermarkValve).
        let watermark = match active.map(|c| c.watermark).min() {
            Some(watermark) => watermark,
            None => going.map(|c| c.watermark).max().unwrap_or(Timestamp::MAX),
        };
        if watermark > self.emitted {
            self.emitted = watermark;
            advance.watermark = Some(watermark);
        }
        if status != self.status {
            self.status = status;
            advance.status = Some(status);
        }
        advance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least of the active channels counts; an idle one does not hold time back.
    #[test]
    fn the_slowest_active_channel_tells_the_time() {
        let mut valve = Valve::new(2);
        assert_eq!(valve.watermark(0, 10).watermark, None);
        assert_eq!(valve.watermark(1, 4).watermark, Some(4));
        assert_eq!(valve.watermark(1, 3).watermark, None, "time does not fall");
        assert_eq!(valve.status(1, StreamStatus::Idle).watermark, Some(10));
        assert_eq!(
            valve.status(0, StreamStatus::Idle).status,
            Some(StreamStatus::Idle)
        );
        let back = valve.status(1, StreamStatus::Active);
        assert_eq!(
            (back.status, back.watermark),
            (Some(StreamStatus::Active), None)
        );
        assert_eq!(valve.ended(1).watermark, None, "the other goes on");
        assert_eq!(valve.ended(0).watermark, Some(Timestamp::MAX));
    }

    /// Windows would close for good, and what comes when the idle one wakes would be late.
    #[test]
    fn who_has_ended_does_not_speak_for_who_is_idle() {
        for is_idle_first in [false, true] {
            let mut valve = Valve::new(2);
            valve.watermark(0, 4);
            valve.watermark(1, 10);
            let mut told = Vec::new();
            for idle in [is_idle_first, !is_idle_first] {
                told.push(match idle {
                    true => valve.status(0, StreamStatus::Idle),
                    false => valve.ended(1),
                });
            }
            let most = told.iter().filter_map(|t| t.watermark).max();
            assert!(most.is_none_or(|most| most <= 10), "{told:?}");
            assert_eq!(told[1].status, Some(StreamStatus::Idle));
            let awake = valve.status(0, StreamStatus::Active);
            assert_eq!(awake.status, Some(StreamStatus::Active));
            assert_eq!(valve.watermark(0, 12).watermark, Some(12));
            assert_eq!(valve.ended(0).watermark, Some(Timestamp::MAX));
        }
    }

    /// What is idle or has ended is not behind, and nothing is beside what has no event time.
    #[test]
    fn the_active_channel_with_the_least_event_time_is_behind() {
        let mut valve = Valve::new(3);
        assert_eq!(valve.behind(), None);
        valve.watermark(0, 10);
        valve.watermark(2, 11);
        assert_eq!(valve.behind(), None, "one has no event time");
        valve.watermark(1, 5);
        assert_eq!(valve.behind(), Some(1));
        valve.status(1, StreamStatus::Idle);
        assert_eq!(valve.behind(), Some(0));
        valve.watermark(0, 11);
        assert_eq!(valve.behind(), None, "as far as the other");
        valve.watermark(2, 12);
        assert_eq!(valve.behind(), Some(0));
        valve.ended(2);
        assert_eq!(valve.behind(), None, "the only one that goes on");
    }
}
