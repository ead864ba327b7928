//! Metrics as Mesos lists them: one flat object from names with slashes to numbers.

use std::collections::BTreeMap;

/// Flattens OpenMetrics text. The values of labels become parts of the name; histogram buckets are left out,
/// their count and sum stay.
pub(super) fn flat(text: &str) -> BTreeMap<String, f64> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<(String, f64)> {
    let name_end = line.find(['{', ' '])?;
    let (mut name, rest) = (line[..name_end].to_owned(), &line[name_end..]);
    let rest = match rest.strip_prefix('{') {
        Some(labels) => {
            let (values, rest) = label_values(labels)?;
            for value in values {
                name.push('/');
                name.push_str(&value);
            }
            rest
        }
        None => rest,
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (value.is_finite() && !line[..name_end].ends_with("_bucket")).then_some((name, value))
}

/// The values of `a="x",b="y"}`, and what follows.
fn label_values(mut labels: &str) -> Option<(Vec<String>, &str)> {
    let mut values = Vec::new();
    loop {
        labels = labels.trim_start_matches(',');
        if let Some(rest) = labels.strip_prefix('}') {
            return Some((values, rest));
        }
        labels = &labels[labels.find('"')? + 1..];
        let mut value = String::new();
        let mut characters = labels.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels = &labels[end..];
        values.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_parts_of_the_name_and_buckets_are_dropped() {
        let text = "# TYPE agent_launches counter\nagent_launches_total{outcome=\"ok\"} 3\n\
                    agent_containers{phase=\"RUNNING\",odd=\"a\\\"b}\"} 2\nagent_uptime_seconds 1.5\n\
                    agent_isolator_seconds_bucket{le=\"0.1\"} 7\nagent_isolator_seconds_count{step=\"prepare\"} 7\n\
                    agent_nan NaN\nbroken{\n# EOF\n";
        let expected = [
            ("agent_launches_total/ok", 3.0),
            ("agent_containers/RUNNING/a\"b}", 2.0),
            ("agent_uptime_seconds", 1.5),
            ("agent_isolator_seconds_count/prepare", 7.0),
        ];
        assert_eq!(flat(text), expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    }
}
