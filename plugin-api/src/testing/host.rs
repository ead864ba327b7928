//! The host of a harness: log, states, leases.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi_stable::std_types::{RResult, RSlice, RStr, RVec};
use cofferdam_plugin_abi::{Answer, Failure, HostApi, Reply};
use cofferdam_plugin_model::ContainerDetails;
use cofferdam_plugin_model::service::{
    AcquireLease, CountLost, LEASES_ACQUIRE, LEASES_LIST, LEASES_RELEASE, Lease, Leases, ListLeases,
    OUTPUT_LOST, PutState, ReleaseLease, STATE_PUT,
};
use serde::Serialize;
use serde_json::Value as Json;

/// State that the harness shares with the host of its plugin.
pub(super) struct Shared {
    plugin: String,
    details: Mutex<HashMap<String, ContainerDetails>>,
    leases: Mutex<BTreeMap<(String, u32), Lease>>,
    log: Mutex<Vec<Json>>,
    lost_output: Mutex<BTreeMap<String, u64>>,
}

pub(super) struct TestHost(pub(super) Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            details: Mutex::default(),
            leases: Mutex::default(),
            log: Mutex::default(),
            lost_output: Mutex::default(),
        }
    }

    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut ContainerDetails)) {
        change(lock(&self.details).entry(id.to_owned()).or_default());
    }

    pub(super) fn details(&self, id: &str) -> ContainerDetails {
        lock(&self.details).get(id).cloned().unwrap_or_default()
    }

    pub(super) fn forget(&self, id: &str) {
        lock(&self.details).remove(id);
        lock(&self.leases).retain(|_, lease| lease.container.as_str() != id);
    }

    pub(super) fn logged(&self) -> Vec<Json> {
        lock(&self.log).clone()
    }

    pub(super) fn lost_output(&self) -> BTreeMap<String, u64> {
        lock(&self.lost_output).clone()
    }

    fn check_known(&self, id: &str) -> Result<(), Failure> {
        if lock(&self.details).contains_key(id) {
            return Ok(());
        }
        Err(failed(format!("plugin `{}` does not participate in container `{id}`", self.plugin)))
    }

    fn serve(&self, service: &str, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        match service {
            STATE_PUT => {
                let PutState { container, state } = decode(payload)?;
                self.check_known(container.as_str())?;
                self.change(container.as_str(), |details| details.state = state);
                Ok(Vec::new())
            }
            LEASES_ACQUIRE => encode(&self.acquire(decode(payload)?)?),
            LEASES_RELEASE => {
                let ReleaseLease { pool, number } = decode(payload)?;
                let mut leases = lock(&self.leases);
                leases.remove(&(pool, number));
                Ok(Vec::new())
            }
            LEASES_LIST => {
                let ListLeases { pool } = decode(payload)?;
                let leases =
                    lock(&self.leases).values().filter(|lease| lease.pool == pool).cloned().collect();
                encode(&Leases { leases })
            }
            OUTPUT_LOST => {
                let CountLost { stream, bytes } = decode(payload)?;
                *lock(&self.lost_output).entry(stream).or_default() += bytes;
                Ok(Vec::new())
            }
            other => Err(Failure::unsupported(other)),
        }
    }

    fn acquire(&self, request: AcquireLease) -> Result<Lease, Failure> {
        let AcquireLease { pool, first, last, container } = request;
        self.check_known(container.as_str())?;
        if first > last {
            return Err(failed(format!("the range {first} to {last} of pool `{pool}` is empty")));
        }
        let mut leases = lock(&self.leases);
        let free = (first..=last).find(|&number| !leases.contains_key(&(pool.clone(), number)));
        let number = free.ok_or_else(|| {
            let message = format!("no number of {first} to {last} is free in pool `{pool}`");
            Failure { retryable: true, ..failed(message) }
        })?;
        let lease = Lease { pool: pool.clone(), number, container, plugin: self.plugin.clone() };
        leases.insert((pool, number), lease.clone());
        Ok(lease)
    }
}

fn failed(message: String) -> Failure {
    Failure::new(Failure::FAILED, message)
}

fn decode<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(payload).map_err(|error| Failure::new(Failure::MALFORMED, error.to_string()))
}

fn encode(reply: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(reply).map_err(|error| failed(error.to_string()))
}

impl HostApi for TestHost {
    fn register_callsite(&self, _: RSlice<'_, u8>) -> u64 {
        1
    }

    fn enabled(&self, _: u64) -> bool {
        true
    }

    fn event(&self, _: u64, _: u64, fields: RSlice<'_, u8>) {
        let fields = serde_json::from_slice(fields.as_slice()).unwrap_or_default();
        lock(&self.0.log).push(fields);
    }

    fn open_span(&self, _: u64, _: u64, _: RSlice<'_, u8>) -> u64 {
        1
    }

    fn record(&self, _: u64, _: RSlice<'_, u8>) {}

    fn close_span(&self, _: u64) {}

    fn request(&self, service: RStr<'_>, payload: RSlice<'_, u8>) -> Reply {
        match self.0.serve(service.as_str(), payload.as_slice()) {
            Ok(payload) => RResult::ROk(Answer { payload: payload.into(), descriptors: RVec::new() }),
            Err(failure) => RResult::RErr(failure),
        }
    }
}
