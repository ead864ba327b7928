//! Samples and their summary.

use serde_json::{Value as Json, json};

/// The measurements of one subject, in order.
#[derive(Debug, Clone, Default)]
pub struct Samples(pub Vec<f64>);

/// A summary of samples.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    /// The 99th percentile.
    pub p99: f64,
    pub max: f64,
}

impl Samples {
    /// The summary; `None` without samples.
    pub fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Summary {
            median: at(&sorted, 0.5)?,
            min: *sorted.first()?,
            p99: at(&sorted, 0.99)?,
            max: *sorted.last()?,
        })
    }

    /// The ratios to `other`, one for each round of `per_round` samples: of the sums of both, hence of the means.
    pub fn ratios(&self, other: &Self, per_round: usize) -> Self {
        let (ours, theirs) = (self.0.chunks(per_round), other.0.chunks(per_round));
        ours.zip(theirs).map(|(ours, theirs)| ours.iter().sum::<f64>() / theirs.iter().sum::<f64>()).collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an index into a few thousand"
)]
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

impl Summary {
    pub fn json(self) -> Json {
        json!({ "median": self.median, "min": self.min, "p99": self.p99, "max": self.max })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}
