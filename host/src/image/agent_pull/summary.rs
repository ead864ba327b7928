//! How far the pull of an image is, from what happens to its layers.

use std::collections::BTreeMap;

use cofferdam_core::model::PullProgress;
use cofferdam_core::provisioner::Digest;

use crate::image::Progress;

/// All layers together.
#[derive(Debug, Default)]
pub(super) struct Summary {
    layers: u64,
    bytes: u64,
    pulled: u64,
    received: BTreeMap<Digest, u64>,
    /// What was reported last.
    reported: Option<PullProgress>,
}

impl Summary {
    /// Notes what has happened. Returns a line if somebody may want to read about it.
    pub(super) fn note(&mut self, progress: &Progress) -> Option<String> {
        match progress {
            Progress::Found { layers, bytes } => (self.layers, self.bytes) = (*layers as u64, *bytes),
            Progress::Present { .. } | Progress::Unpacked { .. } => self.pulled += 1,
            Progress::Waiting { .. } | Progress::Read { .. } => {}
            Progress::Resumed { layer, received, .. } | Progress::Received { layer, received, .. } => {
                self.received.insert(*layer, *received);
            }
            Progress::Retry { reason, wait } => return Some(format!("{reason}; next attempt in {wait:?}")),
            Progress::NextRegistry { reason } => {
                *self = Self { reported: self.reported, ..Self::default() };
                return Some(format!("{reason}; asking the next registry"));
            }
        }
        None
    }

    /// The progress, if it differs visibly from that which was returned last: in its layers, or by a percent of its bytes.
    pub(super) fn take_change(&mut self) -> Option<PullProgress> {
        if self.layers == 0 {
            return None;
        }
        let received = self.received.values().fold(0_u64, |sum, received| sum.saturating_add(*received));
        let current = PullProgress {
            layers: self.layers,
            pulled_layers: self.pulled.min(self.layers),
            bytes: self.bytes,
            received: received.min(self.bytes),
        };
        let is_visible = self.reported.is_none_or(|last| {
            let is_more = current.received.abs_diff(last.received) >= (current.bytes / 100).max(1);
            (last.layers, last.pulled_layers, last.bytes)
                != (current.layers, current.pulled_layers, current.bytes)
                || is_more
        });
        is_visible.then(|| *self.reported.insert(current))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_percents_are_reported_once() {
        let [one, two] = [b"one", b"two"].map(|bytes| Digest::of(bytes));
        let mut summary = Summary::default();
        let mut after = |progress| {
            summary.note(&progress);
            summary.take_change().map(|progress| (progress.pulled_layers, progress.received))
        };
        assert_eq!(after(Progress::Present { layer: one }), None, "the layers are not known yet");
        assert_eq!(after(Progress::Found { layers: 2, bytes: 1000 }), Some((1, 0)));
        let received = |received| Progress::Received { layer: two, received, size: 1000 };
        assert_eq!(after(received(9)), None);
        assert_eq!(after(received(10)), Some((1, 10)));
        assert_eq!(after(received(1000)), Some((1, 1000)));
        assert_eq!(after(Progress::Unpacked { layer: two, files: 1, bytes: 1 }), Some((2, 1000)));
        assert_eq!(after(received(1000)), None);
        assert_eq!(after(Progress::NextRegistry { reason: String::new() }), None);
        assert_eq!(after(Progress::Found { layers: 3, bytes: 0 }), Some((0, 0)));
    }
}
