//! Sets of CPUs or memory nodes.

use std::fmt;
use std::str::FromStr;

use cofferdam_plugin_api::prelude::*;

/// More than any kernel has.
const MAXIMUM: u64 = 1 << 16;

/// Numbers as ranges in order, which neither overlap nor touch. As text: `0-3,7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers(Vec<(u64, u64)>);

impl Numbers {
    /// The ranges of a request.
    pub fn of(value: &Value) -> Result<Self> {
        match value {
            Value::Ranges(ranges) => Self::new(ranges.clone()),
            _ => Err(Error::invalid("it does not consist of ranges")),
        }
    }

    fn new(mut ranges: Vec<(u64, u64)>) -> Result<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, last) in ranges {
            if first > last || last >= MAXIMUM {
                return Err(Error::invalid(format!(
                    "{first}-{last} is no range of numbers below {MAXIMUM}, in ascending order"
                )));
            }
            match merged.last_mut() {
                Some((_, end)) if first <= *end + 1 => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        if merged.is_empty() { Err(Error::new("there are no numbers")) } else { Ok(Self(merged)) }
    }

    /// Whether `other` has all of them.
    pub fn is_subset(&self, other: &Self) -> bool {
        let within = |(first, last): &(u64, u64)| other.0.iter().any(|(a, b)| a <= first && last <= b);
        self.0.iter().all(within)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }
}

impl FromStr for Numbers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|_| digits)
            };
            Some((number(first)?, number(last)?))
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        Self::new(ranges.ok_or_else(|| {
            Error::invalid(format!("`{text}` is not a list of numbers and ranges such as `0-3,7`"))
        })?)
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Numbers {
        text.parse().unwrap()
    }

    #[test]
    fn lists_are_parsed_merged_and_shown() {
        for (text, shown) in
            [("0", "0"), ("3,0-1", "0-1,3"), ("0-3,2-5,6", "0-6"), ("0-9,1", "0-9"), ("5,5", "5")]
        {
            assert_eq!(numbers(text).to_string(), shown);
        }
        for text in ["", "a", "1-", "-1", "+1", "2-1", "0,", "0 1", "0-65536", "0-1-2"] {
            text.parse::<Numbers>().unwrap_err();
        }
        assert_eq!(numbers("0-3,7").count(), 5);
        assert_eq!(Numbers::of(&Value::Ranges(vec![(4, 4), (0, 1)])).unwrap(), numbers("0-1,4"));
        Numbers::of(&Value::Ranges(Vec::new())).unwrap_err();
        Numbers::of(&Value::Scalar(1.0)).unwrap_err();
    }

    #[test]
    fn subsets_are_recognised() {
        for (part, whole) in [("1", "0-3"), ("0-3", "0-3"), ("0,3", "0-1,3-4"), ("1-2", "0-1,2")] {
            assert!(numbers(part).is_subset(&numbers(whole)), "{part} of {whole}");
        }
        for (part, whole) in [("4", "0-3"), ("0-4", "0-3"), ("1-3", "0-1,3-4")] {
            assert!(!numbers(part).is_subset(&numbers(whole)), "{part} of {whole}");
        }
    }
}
