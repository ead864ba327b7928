//! The operator API: JSON over HTTP on a unix socket, in the words of the Mesos v1 agent API.
//!
//! It translates and never decides: a call becomes one question to the agent, its answer one message.

pub mod types;
