//! Results, as tables and as JSON.

use serde_json::{Value as Json, json};

use crate::sample::{Samples, Summary};

/// All results.
pub struct Report {
    /// Whether each fact and table is printed as soon as it is complete.
    prints: bool,
    /// Under which conditions it was measured: names and values.
    facts: Vec<(String, String)>,
    groups: Vec<Group>,
}

/// Subjects that were measured in turns.
pub struct Group {
    name: &'static str,
    title: String,
    unit: &'static str,
    /// Number of samples that each round adds to a row.
    per_round: usize,
    rows: Vec<(String, Samples)>,
    ratios: Vec<Ratio>,
}

struct Ratio {
    of: String,
    to: String,
    summary: Summary,
}

impl Report {
    pub fn new(prints: bool) -> Self {
        Self { prints, facts: Vec::new(), groups: Vec::new() }
    }

    /// Adds a condition under which it is measured, and prints it.
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        if self.prints {
            println!("  {name:20} {value}");
        }
        self.facts.push((name, value));
    }

    /// Adds a group, and prints it.
    pub fn add(&mut self, group: Group) {
        if self.prints {
            print!("{}", group.table());
        }
        self.groups.push(group);
    }

    pub fn json(&self) -> Json {
        json!({
            "facts": self.facts.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect::<Vec<_>>(),
            "groups": self.groups.iter().map(Group::json).collect::<Vec<_>>(),
        })
    }
}

impl Group {
    /// `name` is used in JSON and for `--only`.
    pub fn new(name: &'static str, title: impl Into<String>, unit: &'static str) -> Self {
        Self { name, title: title.into(), unit, per_round: 1, rows: Vec::new(), ratios: Vec::new() }
    }

    /// Sets the number of samples that each round adds to a row, if it is not 1.
    pub fn per_round(mut self, samples: usize) -> Self {
        self.per_round = samples;
        self
    }

    pub fn row(&mut self, subject: impl Into<String>, samples: Samples) {
        self.rows.push((subject.into(), samples));
    }

    /// Adds the ratio of `of` to `to`, if both were measured.
    pub fn compare(&mut self, of: &str, to: &str) {
        let find = |name: &str| self.rows.iter().find(|(subject, _)| subject == name);
        let (Some((_, ours)), Some((_, theirs))) = (find(of), find(to)) else { return };
        if let Some(summary) = ours.ratios(theirs, self.per_round).summary() {
            self.ratios.push(Ratio { of: of.to_owned(), to: to.to_owned(), summary });
        }
    }

    fn table(&self) -> String {
        let width = self.rows.iter().map(|(subject, _)| subject.len()).max().unwrap_or_default();
        let mut text = format!("\n{} ({})\n", self.title, self.unit);
        text += &format!(
            "  {:width$} {:>10} {:>10} {:>10} {:>10} {:>6}\n",
            "", "median", "min", "p99", "max", "n"
        );
        for (subject, samples) in &self.rows {
            let Some(Summary { median, min, p99, max }) = samples.summary() else { continue };
            let ratios: Vec<String> = self
                .ratios
                .iter()
                .filter(|ratio| ratio.of == *subject)
                .map(|ratio| format!("{:.2} x {}", ratio.summary.median, ratio.to))
                .collect();
            let line = format!(
                "  {subject:width$} {:>10} {:>10} {:>10} {:>10} {:>6}  {}",
                number(median),
                number(min),
                number(p99),
                number(max),
                samples.0.len(),
                ratios.join(", ")
            );
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    fn json(&self) -> Json {
        let rows = self.rows.iter().map(|(subject, samples)| {
            json!({ "subject": subject, "summary": samples.summary().map(Summary::json), "samples": samples.0 })
        });
        let ratios = self
            .ratios
            .iter()
            .map(|ratio| json!({ "of": ratio.of, "to": ratio.to, "ratio": ratio.summary.json() }));
        json!({
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "samples_per_round": self.per_round,
            "rows": rows.collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
        })
    }
}

/// Formats with about three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
