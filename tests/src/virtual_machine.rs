//! The virtual machines of the system tests.

/// Whether this process runs in one, which it has for itself.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os("COFFERDAM_GUEST").is_some_and(|value| value == "1")
}
