//! Lists of containers, with what their plugins report about each.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::encode;
use super::types::Container;
use crate::api::context::ApiContext;
use cofferdam_core::model::view::Summary;

/// Containers whose plugins are called at the same time.
const MAX_CONCURRENT: usize = 32;

/// What plugins are asked about each live container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) usage: bool,
    pub(super) status: bool,
}

impl Wanted {
    pub(super) const ALL: Self = Self { usage: true, status: true };
    pub(super) const USAGE: Self = Self { usage: true, status: false };
}

/// The containers that `select` accepts, ordered by id.
pub(super) async fn containers(
    context: &Arc<ApiContext>,
    wanted: Wanted,
    select: impl Fn(&Summary) -> bool,
) -> Vec<Container> {
    let mut waiting = context.agent.containers().into_iter().filter(|summary| select(summary));
    let mut queries = JoinSet::new();
    let mut containers = Vec::new();
    loop {
        while queries.len() < MAX_CONCURRENT
            && let Some(summary) = waiting.next()
        {
            queries.spawn(query(Arc::clone(context), wanted, summary));
        }
        match queries.join_next().await {
            Some(Ok(container)) => containers.push(container),
            Some(Err(error)) => tracing::error!(%error, "a container is missing from the list"),
            None => break,
        }
    }
    containers.sort_by_cached_key(|container| container.container_id.to_string());
    containers
}

async fn query(context: Arc<ApiContext>, wanted: Wanted, summary: Summary) -> Container {
    let (agent, id) = (&context.agent, &summary.id);
    let live = summary.phase.is_live();
    let usage = async { if live && wanted.usage { agent.usage(id).await } else { None } };
    let status = async { if live && wanted.status { agent.status(id).await } else { None } };
    let (usage, status) = tokio::join!(usage, status);
    encode::container(&summary, usage.as_ref(), status.as_ref())
}
