//! The two halves of the format against each other.
