//! The whole house on a real kernel: the shipped chain, both launchers, what containers see, use and leave.
//!
//! The same tests run a second and third time in small guests, one with pure cgroup v2 and all controllers, one with
//! pure v1: see [`guests`].

#[path = "../guest/guest.rs"]
mod object;

mod chain;
mod embed;
mod guests;
mod nested;
mod posix;
mod resources;
