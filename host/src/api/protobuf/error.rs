//! Why bytes are not a message, or a value cannot be one.

use std::fmt;

/// Why bytes are not a message, or a value cannot be encoded as one.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// The field, from the outermost message: `command.environment.variables[2].name`.
    path: String,
    reason: String,
}

impl Error {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// The field, from the outermost message; empty if it is the message itself.
    pub(in crate::api) fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong with it.
    pub(in crate::api) fn reason(&self) -> &str {
        &self.reason
    }

    /// The same error, of a message that has it in the field `name`.
    #[must_use]
    pub(super) fn within(self, name: &str) -> Self {
        self.in_front(name.to_owned())
    }

    /// The same error, of a list or map that has it at `index`.
    #[must_use]
    pub(super) fn at(self, index: impl fmt::Debug) -> Self {
        self.in_front(format!("[{index:?}]"))
    }

    fn in_front(mut self, own: String) -> Self {
        self.path = match self.path.as_str() {
            "" => own,
            path if path.starts_with('[') => own + path,
            path => format!("{own}.{path}"),
        };
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.reason),
            path => write!(f, "`{path}`: {}", self.reason),
        }
    }
}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

impl serde::ser::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}
