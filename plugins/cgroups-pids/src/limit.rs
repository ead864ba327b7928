//! How many processes and threads a container may have.

use std::fmt;

use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::prelude::*;

/// The largest limit that the kernel accepts.
pub const MAXIMUM: u32 = 1 << 22;

/// The operator's choices.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// For a container that requests none.
    pub default: Option<u32>,
    /// The most that can be requested.
    pub maximum: Option<u32>,
}

/// Value of `pids.max`; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Max(pub Option<u32>);

impl fmt::Display for Max {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(limit) => limit.fmt(f),
            None => f.write_str("max"),
        }
    }
}

impl Policy {
    /// The limit of a container with such resources.
    pub fn limit(self, resources: &Resources) -> Result<Max> {
        Ok(self.requested(resources)?.unwrap_or(Max(self.default)))
    }

    /// What the resources request; `None` if they do not have `pids`.
    fn requested(self, resources: &Resources) -> Result<Option<Max>> {
        let requested = match (resources.limit("pids"), resources.requests.get("pids")) {
            (Some(Limit::At(limit)), _) => Max(Some(number(limit)?)),
            (Some(Limit::Unlimited), _) => Max(None),
            (None, None) => return Ok(None),
            (limit, request) => {
                return Err(Error::invalid(format!(
                    "`pids` is a number; the container requests {request:?} with the limit {limit:?}"
                )));
            }
        };
        match (requested.0, self.maximum) {
            (None, Some(maximum)) => Err(too_many("no limit", maximum)),
            (Some(limit), Some(maximum)) if limit > maximum => Err(too_many(&limit.to_string(), maximum)),
            _ => Ok(Some(requested)),
        }
    }
}

fn too_many(requested: &str, maximum: u32) -> Error {
    Error::invalid(format!(
        "the container requests {requested} of `pids`, but at most {maximum} are permitted by `maximum` of `cgroups/pids`"
    ))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
fn number(amount: f64) -> Result<u32> {
    if amount.fract() == 0.0 && (1.0..=f64::from(MAXIMUM)).contains(&amount) {
        return Ok(amount as u32);
    }
    Err(Error::invalid(format!(
        "the container requests {amount} of `pids`; expected a whole number from 1 to {MAXIMUM}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(maximum: Option<u32>, resources: Resources) -> Result<Option<Max>, String> {
        Policy { default: Some(7), maximum }.requested(&resources).map_err(|error| error.to_string())
    }

    #[test]
    fn a_limit_takes_precedence_over_a_request() {
        let none = Resources::default();
        assert_eq!(requested(None, none.clone()), Ok(None));
        assert_eq!(requested(None, none.clone().with("pids", 5.0)), Ok(Some(Max(Some(5)))));
        let both = none.clone().with("pids", 5.0).with_limit("pids", Limit::At(9.0));
        assert_eq!(requested(None, both), Ok(Some(Max(Some(9)))));
        assert_eq!(requested(None, none.with_limit("pids", Limit::Unlimited)), Ok(Some(Max(None))));
    }

    #[test]
    fn what_is_not_permitted_or_no_number_is_refused() {
        let pids = |amount| Resources::default().with("pids", amount);
        for amount in [0.0, 0.5, 1.5, 4_194_305.0, f64::NAN] {
            let refused = requested(None, pids(amount)).unwrap_err();
            assert!(refused.contains("expected a whole number from 1 to 4194304"), "{refused}");
        }
        assert_eq!(requested(Some(100), pids(100.0)), Ok(Some(Max(Some(100)))));
        for resources in [pids(101.0), Resources::default().with_limit("pids", Limit::Unlimited)] {
            let refused = requested(Some(100), resources).unwrap_err();
            assert!(refused.contains("at most 100 are permitted"), "{refused}");
        }
        let mut set = Resources::default();
        set.requests.insert("pids".into(), Value::Set(vec!["a".into()]));
        assert!(requested(None, set).unwrap_err().contains("`pids` is a number"));
    }
}
