//! The classes that containers can have.

use std::ops::RangeInclusive;

use cofferdam_plugin_api::prelude::*;

/// A primary handle, and a range of secondary ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handles {
    primary: u16,
    first: u16,
    last: u16,
}

impl Handles {
    /// `None` without a primary handle.
    pub fn of(primary: Option<u16>, first: Option<u16>, last: Option<u16>) -> Result<Option<Self>> {
        let Some(primary) = primary else {
            return match first.or(last) {
                None => Ok(None),
                Some(_) => Err(Error::new("secondary handles need a `primary_handle`")),
            };
        };
        let (first, last) = (first.unwrap_or(1), last.unwrap_or(u16::MAX));
        if primary == 0 || first == 0 {
            let key = if primary == 0 { "primary_handle" } else { "first_secondary_handle" };
            return Err(Error::new(format!("`{key}` is 0, which is no handle; expected 1 to 65535")));
        }
        if first > last {
            return Err(Error::new(format!(
                "there are no secondary handles from {first} to {last}: `first_secondary_handle` is above \
                 `last_secondary_handle`"
            )));
        }
        Ok(Some(Self { primary, first, last }))
    }

    /// The classes: numbers for `net_cls.classid`.
    pub fn classes(self) -> RangeInclusive<u32> {
        let class = |secondary: u16| u32::from(self.primary) << 16 | u32::from(secondary);
        class(self.first)..=class(self.last)
    }
}

/// The first and the last of two numbers that a comma separates, each decimal or, after `0x`, hexadecimal.
pub fn range(text: &str) -> Result<(u16, u16)> {
    let number = |text: &str| match text.trim().strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.trim().parse(),
    };
    let range =
        text.split_once(',').and_then(|(first, last)| Some((number(first).ok()?, number(last).ok()?)));
    range.ok_or_else(|| {
        Error::new(format!(
            "`cgroups_net_cls_secondary_handles` is `{text}`; expected two numbers from 1 to 65535, such as `0x0001,0x1000`"
        ))
    })
}
