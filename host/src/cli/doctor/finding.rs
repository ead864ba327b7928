//! The result of one check.

use serde::Serialize;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Finding {
    /// What was checked.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

/// How a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not everything, or not as fast as it could.
    Warning,
    /// Containers cannot be launched, or not as configured.
    Failure,
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, message: message.into(), advice: None }
    }

    pub(super) fn warning(
        check: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check, verdict: Verdict::Warning, message: message.into(), advice: Some(advice.into()) }
    }

    pub(super) fn failure(
        check: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check, verdict: Verdict::Failure, message: message.into(), advice: Some(advice.into()) }
    }

    /// A failure, or only a warning where what was checked is not used.
    pub(super) fn lowered_unless(self, is_used: bool) -> Self {
        match self.verdict {
            Verdict::Failure if !is_used => Self { verdict: Verdict::Warning, ..self },
            _ => self,
        }
    }
}
