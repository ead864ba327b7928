//! The agent on a real kernel: the shipped chain, both launchers, what containers see, use and leave behind.
//!
//! The same tests also run in two small virtual machines, one with only cgroup v2 and all controllers, one with only
//! v1: see [`guests`].

#[path = "../guest/guest.rs"]
mod guest;

mod calls;
mod cgroups;
mod chain;
mod commands;
mod docker;
mod embed;
mod examples;
mod exchange;
mod exec;
mod fetcher;
mod full_logs;
mod guests;
mod images;
mod isolators;
mod job_control;
mod journald;
mod launch_info;
mod loggers;
mod lost_output;
mod nested;
mod packaging;
mod posix;
mod readme;
mod resources;
mod scratch;
mod sessions;
mod ssh;
mod streams;
mod tasks;
mod tee;
mod terminals;
mod transports;
mod widths;
