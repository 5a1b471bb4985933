//! What is to be done when: the second halves of faults. Pure.

use perennial_actors::clock::Instant;

use super::strike::Step;

/// Steps of struck faults that are still to come.
#[derive(Debug, Default)]
pub(super) struct Timeline(Vec<(Instant, usize, Step)>);

impl Timeline {
    pub(super) fn push(&mut self, at: Instant, fault: usize, step: Step) {
        self.0.push((at, fault, step));
    }

    /// The earliest that is due; of several at one time the first that was pushed.
    pub(super) fn due(&mut self, now: Instant) -> Option<(usize, Step)> {
        let earliest = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, (at, ..))| *at <= now)
            .min_by_key(|(index, (at, ..))| (*at, *index))?
            .0;
        let (_, fault, step) = self.0.remove(earliest);
        Some((fault, step))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing more comes of this fault.
    pub(super) fn is_over(&self, fault: usize) -> bool {
        self.0.iter().all(|(_, f, _)| *f != fault)
    }

    /// Whether a node is to be started later anyway.
    pub(super) fn starts(&self, node: &str) -> bool {
        self.0.iter().any(|(_, _, step)| match step {
            Step::Start(nodes) | Step::Roll(nodes) => nodes.iter().any(|n| n == node),
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn steps_come_in_order_of_time_and_a_fault_is_over_with_its_last() {
        let now = Instant::now();
        let mut timeline = Timeline::default();
        let step = || Step::Start(vec!["a".to_owned()]);
        timeline.push(now + Duration::from_secs(2), 0, step());
        timeline.push(now + Duration::from_secs(1), 1, step());
        assert!(timeline.due(now).is_none() && timeline.starts("a"));
        let later = now + Duration::from_secs(3);
        assert_eq!(timeline.due(later).map(|(fault, _)| fault), Some(1));
        assert!(timeline.is_over(1) && !timeline.is_over(0));
        assert_eq!(timeline.due(later).map(|(fault, _)| fault), Some(0));
        assert!(timeline.is_empty() && !timeline.starts("a"));
    }
}
