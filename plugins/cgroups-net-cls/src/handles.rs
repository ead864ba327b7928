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
