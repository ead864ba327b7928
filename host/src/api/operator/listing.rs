//! Lists of containers, with what their plugins report about each.

use std::sync::Arc;

use super::encode;
use super::types::{Container, ExecutorId, FrameworkId};
use crate::api::context::ApiContext;
use cofferdam_core::model::ContainerId;
use cofferdam_core::model::view::{Summary, WantedReports};

/// How many are encoded before other tasks may run.
const AT_ONCE: usize = 64;

/// The containers that `select` accepts, ordered by id.
pub(super) async fn containers(
    context: &Arc<ApiContext>,
    wanted: WantedReports,
    select: impl Fn(&Summary) -> bool,
) -> Vec<Container> {
    let mut summaries = context.agent.containers();
    summaries.retain(select);
    let ids: Vec<ContainerId> = summaries.iter().map(|summary| summary.id.clone()).collect();
    let reports = context.agent.reports(&ids, wanted).await;
    let names = context.agent.executors().names();
    let encode = |(summary, report): (&Summary, _)| {
        let container = encode::container(summary, report);
        match names.get(&summary.id.root()) {
            Some((framework, executor, name)) => Container {
                framework_id: Some(FrameworkId { value: framework.to_string() }),
                executor_id: Some(ExecutorId { value: executor.to_string() }),
                executor_name: Some(name.clone()),
                ..container
            },
            None => container,
        }
    };
    let mut containers = Vec::with_capacity(summaries.len());
    // Takes milliseconds for thousands, and must not need a thread that cannot be created.
    for (summaries, reports) in summaries.chunks(AT_ONCE).zip(reports.chunks(AT_ONCE)) {
        containers.extend(summaries.iter().zip(reports).map(encode));
        tokio::task::yield_now().await;
    }
    containers
}
