//! Failures, as they are reported to the agent.

use std::error::Error;

use cofferdam_core::fetcher::{FetchFailure, Reason};

/// Before the first file.
pub(super) fn start_failure(error: &dyn Error) -> FetchFailure {
    FetchFailure::Start { reason: Reason::of(error) }
}

/// Of a request that is invalid.
pub(super) fn invalid(uri: &str, error: &dyn Error) -> FetchFailure {
    FetchFailure::Invalid { uri: uri.to_owned(), reason: Reason::of(error) }
}

/// Of one file, whose content may be at fault.
pub(super) fn file_failure(uri: &str, error: &dyn Error, is_damaged: bool) -> FetchFailure {
    FetchFailure::File { uri: uri.to_owned(), reason: Reason::of(error), is_damaged }
}
