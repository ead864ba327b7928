//! Updates of the limits of running containers, by the engine.

use std::sync::Arc;

use cofferdam_plugin_model::{Limit, Resources};
use serde_json::Value as Json;

use super::record::{DockerRecord, Handle};
use super::{Docker, Shared, engine_name, spec};
use crate::containerizer::UpdateError;
use crate::containerizer::lifecycle::{FailedUpdate, Failure, Rollback, States, Update};
use crate::engine::EngineError;
use crate::error_chain;
use crate::model::{Phase, Record};

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
    let mut limits = spec::limits(resources);
    // A limit of memory and swap that is lower than that of memory would be refused. Twice the memory is what the engine
    // sets by itself.
    let memory = limits.get("Memory").and_then(Json::as_i64);
    let has_swap = |key: &str| key == "memory-swap";
    let options = record.request.docker.as_ref();
    let own_swap = options.is_some_and(|docker| docker.parameters.iter().any(|it| has_swap(&it.key)));
    if let (Some(memory), false) = (memory, own_swap) {
        let swap = memory.saturating_mul(2).min(spec::UNLIMITED_MEMORY);
        limits.insert("MemorySwap".into(), swap.into());
    }
    shared.backend.engine.update(&engine_name(record), &Json::Object(limits)).await
}
