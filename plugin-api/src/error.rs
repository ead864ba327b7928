//! Why a plugin could not do what it was asked for.

use std::fmt;

/// The result of a plugin's method.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a plugin could not do what it was asked for: sentences for an operator, outermost first.
///
/// Any error turns into one with `?`; [`ResultExt::context`] says what was being done. It is deliberately
/// not an `std::error::Error`, so that the conversion can be that general.
pub struct Error {
    causes: Vec<String>,
    retryable: bool,
}

impl Error {
    /// An error in the plugin's own words: lower case, no full stop.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { causes: vec![message.to_string()], retryable: false }
    }

    /// Says what was being done when this happened.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.causes.insert(0, doing.to_string());
        self
    }

    /// Says that the same call may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// The sentences, outermost first.
    #[must_use]
    pub fn causes(&self) -> &[String] {
        &self.causes
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut causes = vec![error.to_string()];
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self { causes, retryable: false }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.causes.join("\n"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Adds to a result what was being done.
pub trait ResultExt<T> {
    /// Says what was being done when this failed.
    ///
    /// # Errors
    /// The original one, below the new sentence.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(doing))
    }
}
