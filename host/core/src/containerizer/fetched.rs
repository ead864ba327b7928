//! What hooks get to know of a container whose files were fetched.

use cofferdam_plugin_model::PostFetch;

use crate::model::Record;

/// A container as hooks see it after its files were fetched. `docker` tells whether it is one of an engine.
pub(super) fn fetched<P>(record: &Record<P>, docker: bool) -> PostFetch {
    PostFetch { uid: record.uid, gid: record.gid, labels: record.request.labels.clone(), docker }
}
