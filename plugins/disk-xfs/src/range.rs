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

#[cfg(test)]
mod tests {
    use super::*;

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
