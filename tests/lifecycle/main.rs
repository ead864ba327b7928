//! Faults at every step.
