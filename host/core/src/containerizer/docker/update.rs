//! Updates of the limits of running containers, by the engine.

use std::sync::Arc;

use cofferdam_plugin_model::{Limit, Resources};
use serde_json::{Map, Value as Json};

use super::record::{DockerRecord, Handle};
use super::{Docker, Shared, engine_name, spec};
use crate::containerizer::UpdateError;
use crate::containerizer::lifecycle::{FailedUpdate, Failure, Rollback, States, Update};
use crate::engine::EngineError;
use crate::error_chain;
use crate::model::{DockerParameter, Phase, Record};

impl Update for Docker {
    async fn update(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        _from: Resources,
        to: Resources,
    ) -> Result<States, FailedUpdate> {
        let record = handle.record();
        let id = || handle.id().clone();
        match unless_stopped(handle, apply_limits(shared, &record, &to)).await {
            Some(Ok(())) => Ok(States::new()),
            // An engine that does not answer may have applied them, or do so later.
            Some(Err(source)) => {
                let rollback = if source.is_outage() { failed(&source) } else { Rollback::default() };
                Err(FailedUpdate { cause: UpdateError::Engine { id: id(), source }, rollback })
            }
            None => {
                let cause = UpdateError::NotRunning { id: id(), phase: Phase::Destroying };
                Err(FailedUpdate { cause, rollback: stopped() })
            }
        }
    }

    async fn roll_back(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        attempted: Resources,
        to: Resources,
    ) -> Rollback {
        let mut to = to;
        if attempted.mem_limit_bytes().is_some() && to.mem_limit_bytes().is_none() {
            // The engine keeps what it is told nothing about.
            to = to.with_limit("mem", Limit::Unlimited);
        }
        let record = handle.record();
        match unless_stopped(handle, apply_limits(shared, &record, &to)).await {
            Some(Ok(())) => Rollback::default(),
            Some(Err(error)) => failed(&error),
            None => stopped(),
        }
    }
}

/// Waits for the engine, unless the container is to stop: its end does not wait for an engine that does not answer, and its
/// limits are of no use then.
async fn unless_stopped<T>(handle: &Handle, asked: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        _ = handle.stop_requested() => None,
        answer = asked => Some(answer),
    }
}

fn failed(error: &EngineError) -> Rollback {
    let failure = Failure { reason: error_chain::describe(error), late: None };
    Rollback { failures: vec![failure], ..Rollback::default() }
}

fn stopped() -> Rollback {
    let failure = Failure { reason: "the container is being destroyed".to_owned(), late: None };
    Rollback { failures: vec![failure], ..Rollback::default() }
}

/// Has the engine apply the limits of resources.
async fn apply_limits(
    shared: &Shared,
    record: &Record<DockerRecord>,
    resources: &Resources,
) -> Result<(), EngineError> {
    let options = record.request.docker.as_ref();
    let is_swap = |parameter: &DockerParameter| parameter.key == "memory-swap";
    let has_own_swap = options.is_some_and(|docker| docker.parameters.iter().any(is_swap));
    let limits = limits(resources, has_own_swap);
    shared.backend.engine.update(&engine_name(record), &Json::Object(limits)).await
}

/// The body of an update.
fn limits(resources: &Resources, has_own_swap: bool) -> Map<String, Json> {
    let mut limits = spec::limits(resources);
    let memory = limits.get("Memory").and_then(Json::as_i64);
    if let (Some(memory), false) = (memory, has_own_swap) {
        limits.insert("MemorySwap".into(), memory_and_swap(memory).into());
    }
    limits
}

/// The limit of memory and swap together. One that is lower than that of memory would be refused; twice the memory is what the
/// engine sets by itself.
fn memory_and_swap(memory: i64) -> i64 {
    memory.saturating_mul(2).min(spec::UNLIMITED_MEMORY_AND_SWAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_limit_of_memory_has_none_of_swap() {
        let limited = Resources::default().with("mem", 64.0);
        assert_eq!(limits(&limited, false)["MemorySwap"], 128 << 20);
        let unlimited = limited.clone().with_limit("mem", Limit::Unlimited);
        assert_eq!(limits(&unlimited, false)["Memory"], spec::UNLIMITED_MEMORY);
        // What is left for swap is no limit either.
        let both = limits(&unlimited, false)["MemorySwap"].as_i64().unwrap();
        assert!(both - spec::UNLIMITED_MEMORY > 1 << 60, "{both}");
        assert_eq!(memory_and_swap(i64::MAX), spec::UNLIMITED_MEMORY_AND_SWAP);
        // A parameter of the container, or nothing to change.
        assert!(!limits(&limited, true).contains_key("MemorySwap"));
        assert!(!limits(&Resources::default().with("cpus", 1.0), false).contains_key("MemorySwap"));
    }
}
