//! What plugins report about running containers: `usage` and `status`.

use std::cell::OnceCell;
use std::time::Duration;

use cofferdam_plugin_model::{Method, Status, Usage};
use serde::de::DeserializeOwned;

use super::Chain;
use super::sequence::CallSequence;
use super::types::{ContainerContext, Participant};
use crate::blocking::{Abandoned, Job};
use crate::model::view::WantedReports;
use crate::plugin::Plugin;

/// Progress of the reports on one container: the replies by plugin, in chain order.
#[derive(Debug)]
pub struct Reports {
    /// `None` if it is not requested.
    pub usage: Option<CallSequence<Vec<(String, Usage)>>>,
    /// `None` if it is not requested.
    pub status: Option<CallSequence<Vec<(String, Status)>>>,
}

impl Chain {
    /// What is to be collected from the participants of a container. Those that report nothing are left out.
    #[must_use]
    pub fn reports(&self, participants: &[Participant], wanted: WantedReports) -> Reports {
        let reporting = |method| {
            let reporting =
                participants.iter().filter(|participant| self.serving(participant, method).is_some());
            reporting.cloned().collect()
        };
        Reports {
            usage: wanted.usage.then(|| CallSequence::for_running(reporting(Method::Usage))),
            status: wanted.status.then(|| CallSequence::for_running(reporting(Method::Status))),
        }
    }

    /// Collects the reports on one container, from where they are, as steps of a job whose shortest timeout is
    /// [`Chain::report_timeout`]. Returns false when the job was abandoned; after [`Chain::skip_in_reports`], another
    /// job continues.
    #[must_use]
    pub fn report(&self, job: &Job, container: &ContainerContext, reports: &Reports) -> bool {
        let usage = reports.usage.iter().all(|calls| self.collect(job, container, Method::Usage, calls));
        usage && reports.status.iter().all(|calls| self.collect(job, container, Method::Status, calls))
    }

    fn collect<T: DeserializeOwned + Default>(
        &self,
        job: &Job,
        container: &ContainerContext,
        method: Method,
        calls: &CallSequence<Vec<(String, T)>>,
    ) -> bool {
        let id = container.id.as_str();
        // Most plugins have no state, and get the same.
        let without_state = OnceCell::new();
        let call = |plugin: &Plugin, participant: &Participant| {
            // A copy takes as long as most calls.
            let encode = || match participant.state.is_null() && container.details.state.is_null() {
                true => plugin.encode(method, &container.details),
                false => plugin.encode(method, &container.details_for(participant)),
            };
            if participant.state.is_null() {
                let request = match without_state.get_or_init(encode) {
                    Ok(request) => request,
                    Err(error) => return Err(error.clone()),
                };
                plugin.call_encoded(job, &*self.recoverer, method, id, request, &[])
            } else {
                plugin.call_encoded(job, &*self.recoverer, method, id, &encode()?, &[])
            }
        };
        let collected = self.call_each(job, method, calls, call, |replies, plugin, _, response| {
            replies.push((plugin.name().to_string(), plugin.decode(method, &response)?));
            Ok(())
        });
        // The sequence of a running container continues after all failures but this one.
        collected.is_ok()
    }

    /// Continues after the current call, whose job was abandoned. Returns false if no call of the reports did that.
    #[must_use]
    pub fn skip_in_reports(&self, reports: &Reports, abandoned: Abandoned) -> bool {
        let error = self.attribute(abandoned);
        let usage =
            reports.usage.as_ref().is_some_and(|calls| self.skip_current(calls, error.clone()).is_ok());
        usage || reports.status.as_ref().is_some_and(|calls| self.skip_current(calls, error).is_ok())
    }

    /// The shortest timeout of any call for a report.
    #[must_use]
    pub fn report_timeout(&self) -> Duration {
        self.min_timeout(Method::Usage).min(self.min_timeout(Method::Status))
    }
}
