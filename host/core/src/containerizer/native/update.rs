//! Updates of the resources of running containers, by the plugin chain.

use std::sync::Arc;

use cofferdam_plugin_model::Resources;

use super::record::Handle;
use super::{Native, Shared};
use crate::chain;
use crate::containerizer::UpdateError;
use crate::containerizer::lifecycle::{FailedUpdate, Rollback, States, Update};

impl Update for Native {
    async fn update(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        from: Resources,
        to: Resources,
    ) -> Result<States, FailedUpdate> {
        let updated = shared.chain.update(&handle.context(), from, to).await;
        updated.map_err(|chain::FailedUpdate { cause, rollback }| FailedUpdate {
            cause: UpdateError::Refused(cause),
            rollback: rollback.into(),
        })
    }

    async fn roll_back(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        attempted: Resources,
        to: Resources,
    ) -> Rollback {
        shared.chain.roll_back(&handle.context(), attempted, to).await.into()
    }
}
