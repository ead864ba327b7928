//! An error as a sentence: its own words, then the reason of the reason.

use std::error::Error;
use std::fmt::Write;

/// The error and all its causes in one line, joined by colons. Words that a cause repeats are said once.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {words}");
        }
        source = cause.source();
    }
    text
}
