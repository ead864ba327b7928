//! What the loop asks of an executor, and what it gives it.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::value::RawValue;

use crate::agent::Address;
use crate::message::Event;
use crate::status::Status;
use crate::updates::{Sender, Updates};
use crate::wait_status::WaitStatus;

/// An executor. It never waits: the loop waits for its descriptors and its deadline.
pub(crate) trait Executor {
    /// The agent has sent an event other than SHUTDOWN, or those that the loop itself handles.
    fn handle(&mut self, event: Event, host: &mut Host, now: Instant);

    /// It has to kill its tasks.
    fn shut_down(&mut self, host: &mut Host, now: Instant);

    /// It has to kill its tasks, and the agent is gone for good.
    fn abandoned(&mut self, host: &mut Host, now: Instant);

    /// A child has ended.
    fn reaped(&mut self, pid: Pid, status: WaitStatus, host: &mut Host, now: Instant);

    /// Continues as far as possible without waiting.
    fn advance(&mut self, host: &mut Host, now: Instant);

    /// What to wait for.
    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// When something is to be done without input.
    fn deadline(&self) -> Option<Instant>;

    /// Whether there is nothing left to do but to have updates acknowledged.
    fn is_finished(&self) -> bool;
}

/// What an executor uses.
pub(crate) struct Host {
    pub(crate) address: Address,
    pub(crate) executor_id: String,
    pub(crate) shutdown_grace: Duration,
    /// What tasks inherit.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) updates: Updates,
}

impl Host {
    /// Sends a status, once the agent is there.
    pub(crate) fn update(&mut self, status: &Status) {
        let uuid = random_uuid();
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let sender = Sender { executor_id: &self.executor_id, uuid: &uuid, timestamp };
        if let Err(error) = self.updates.push(status, sender) {
            self.log(&error);
        }
    }

    /// A task that the agent has launched, in its own words.
    pub(crate) fn add_task(&mut self, id: &str, task: &RawValue) {
        self.updates.add_task(id, task);
    }

    /// Tells the operator of a kill of a task that is not running.
    pub(crate) fn log_if_not_running(&self, is_running: bool, task_id: &str) {
        if !is_running {
            self.log(&format_args!("the agent asked to kill task `{task_id}`, which is not running"));
        }
    }

    /// Writes a line for the operator to standard error, which is the container's.
    pub(crate) fn log(&self, message: &dyn Display) {
        log(message);
    }
}

/// Writes a line for the operator to standard error, which is the container's.
pub(crate) fn log(message: &dyn Display) {
    // The logger of the container may have ended.
    let _ = writeln!(io::stderr(), "cofferdam-executor: {message}");
}

/// A random UUID in base64, as the API has it.
fn random_uuid() -> String {
    let mut bytes = random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    BASE64.encode(&bytes)
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_name() -> String {
    data_encoding::HEXLOWER.encode(&random())
}

/// 16 random bytes, which the kernel always has once it has started.
fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    while getrandom(&mut bytes, GetRandomFlags::empty()) != Ok(bytes.len()) {}
    bytes
}
