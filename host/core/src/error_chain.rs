//! Formats an error with its causes.

use std::error::Error;
use std::fmt::Write;

/// The error and all its causes in one line, joined by colons. A cause that the text already ends with is skipped.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if !text.ends_with(&message) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {message}");
        }
        source = cause.source();
    }
    text
}
