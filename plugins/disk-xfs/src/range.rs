//! The projects that containers can have.

use std::ops::RangeInclusive;

use cofferdam_plugin_api::prelude::*;

/// Reads `[5000-10000]`, or several ranges such as `[5000-6000, 8000-9000]`.
pub fn parse(text: &str) -> Result<Vec<RangeInclusive<u32>>> {
    let refused = |why: &str| {
        Error::new(format!(
            "`xfs_project_range` is `{text}`, {why}; expected ranges of project ids from 1 to {}, such as `[5000-10000]`",
            u32::MAX - 1
        ))
    };
    let inner = text.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let inner = inner.ok_or_else(|| refused("which is not in brackets"))?;
    let mut ranges = Vec::new();
    for range in inner.split(',') {
        let (first, last) = range.split_once('-').ok_or_else(|| refused("in which a range has no `-`"))?;
        let number = |text: &str| {
            let number: u32 = text.trim().parse().map_err(|_| refused("which contains no 32-bit number"))?;
            match number {
                0 => Err(refused("which contains project 0, to which all other files belong")),
                // The kernel's value for no project.
                u32::MAX => Err(refused("which contains a number that is no project id")),
                number => Ok(number),
            }
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(refused("in which a range ends before it begins"));
        }
        ranges.push(first..=last);
    }
    Ok(ranges)
}

/// Names projects, in ascending order, for messages: `5000-5002, 5007`; `none`.
pub fn describe(projects: impl IntoIterator<Item = u32>) -> String {
    /// How many ranges are named.
    const MAX: usize = 16;
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for project in projects {
        match ranges.last_mut() {
            Some(last) if last.end().checked_add(1) == Some(project) => *last = *last.start()..=project,
            _ => ranges.push(project..=project),
        }
    }
    let named = ranges.iter().take(MAX).map(|range| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    let mut named: Vec<String> = named.collect();
    match ranges.len().checked_sub(MAX + 1) {
        Some(_) => named.push("…".to_owned()),
        None if named.is_empty() => return "none".to_owned(),
        None => {}
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_are_named_by_ranges() {
        assert_eq!(describe([]), "none");
        assert_eq!(describe([5000]), "5000");
        assert_eq!(describe([5000, 5001, 5002, 5007, u32::MAX]), "5000-5002, 5007, 4294967295");
        let many = describe((0..100).map(|index| index * 2));
        assert!(many.starts_with("0, 2, 4,") && many.ends_with(", 30, …"), "{many}");
    }

    #[test]
    fn ranges_are_read_and_mistakes_named() {
        assert_eq!(parse("[5000-10000]").unwrap(), [5000..=10000]);
        assert_eq!(parse(" [1-1, 8 - 9] ").unwrap(), [1..=1, 8..=9]);
        for (text, why) in [
            ("", "not in brackets"),
            ("5000-10000", "not in brackets"),
            ("[]", "has no `-`"),
            ("[5]", "has no `-`"),
            ("[a-b]", "no 32-bit number"),
            ("[1-4294967296]", "no 32-bit number"),
            ("[1-4294967295]", "no project id"),
            ("[0-5]", "project 0"),
            ("[5-4]", "ends before it begins"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }
}
