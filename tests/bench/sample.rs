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

    /// The ratio of each sample to that of `other`.
    pub fn ratios(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
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
