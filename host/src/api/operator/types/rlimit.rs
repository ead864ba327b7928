//! Resource limits as in setrlimit(2).

message! {
    /// Resource limits.
    pub struct RLimitInfo {
        /// One entry per resource.
        repeated rlimits: RLimit,
    }
}

message! {
    /// One resource limit. With neither `hard` nor `soft` it is unlimited; one without the other is invalid.
    pub struct RLimit {
        /// The resource.
        #[serde(rename = "type")]
        optional kind: RLimitKind,
        /// Hard limit, in the unit of setrlimit(2).
        #[serde(deserialize_with = "super::wire::optional_integer")]
        optional hard: u64,
        /// Soft limit, in the unit of setrlimit(2).
        #[serde(deserialize_with = "super::wire::optional_integer")]
        optional soft: u64,
    }
}

word! {
    /// A resource of setrlimit(2), which has the meaning and unit of each.
    pub enum RLimitKind {
        #[default]
        Unknown,
        RlmtAs,
        RlmtCore,
        RlmtCpu,
        RlmtData,
        RlmtFsize,
        RlmtLocks,
        RlmtMemlock,
        RlmtMsgqueue,
        RlmtNice,
        RlmtNofile,
        RlmtNproc,
        RlmtRss,
        RlmtRtprio,
        RlmtRttime,
        RlmtSigpending,
        RlmtStack,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_beyond_the_precision_of_json_numbers_may_be_quoted() {
        let limit: RLimit =
            serde_json::from_value(json!({"type": "RLMT_AS", "hard": "18446744073709551615", "soft": null}))
                .unwrap();
        assert_eq!((limit.hard, limit.soft), (Some(u64::MAX), None));
    }
}
