//! Metrics in the older text format of Prometheus, from that of OpenMetrics.
//!
//! ```text
//! OpenMetrics                         text
//! # TYPE launches counter             # TYPE launches_total counter
//! # UNIT launch_seconds seconds
//! launches_total 3                    launches_total 3
//! # EOF
//! ```

use std::collections::BTreeSet;

/// Translates what [`super::open_metrics`] encodes.
pub(super) fn from_open_metrics(text: &str) -> String {
    let typed = |kind| {
        let families = text.lines().filter_map(move |line| {
            let (name, found) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            (found == kind).then_some(name)
        });
        families.collect::<BTreeSet<&str>>()
    };
    let (counters, infos) = (typed("counter"), typed("info"));
    let mut translated = String::with_capacity(text.len());
    for line in text.lines() {
        let line =
            match line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>()).as_deref() {
                Some(["UNIT", ..] | ["EOF", ..]) => continue,
                Some([what, name, rest]) if counters.contains(name) => {
                    format!("# {what} {name}_total {rest}")
                }
                Some(["TYPE", name, "info"]) => format!("# TYPE {name}_info gauge"),
                Some([what, name, rest]) if infos.contains(name) => format!("# {what} {name}_info {rest}"),
                _ => line.to_owned(),
            };
        translated.push_str(&line);
        translated.push('\n');
    }
    translated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_the_names_of_their_samples() {
        let open = "# HELP a_seconds The a.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total{x=\"# TYPE y info\"} 1\n\
                    # HELP b What b is.\n# TYPE b info\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c gauge\nc 1\n# EOF\n";
        let expected = "# HELP a_seconds_total The a.\n# TYPE a_seconds_total counter\na_seconds_total{x=\"# TYPE y info\"} 1\n\
                        # HELP b_info What b is.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c gauge\nc 1\n";
        assert_eq!(from_open_metrics(open), expected);
    }
}
