//! What plugins report about containers, many at a time.
//!
//! A job asks about one container after the other, as changing threads takes longer than most calls. Where calls
//! take long, or wait for something, more jobs take part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cofferdam_plugin_model::{Status, Usage};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

use super::record::Handle;
use super::{Shared, failures};
use crate::blocking::Job;
use crate::chain::{ContainerContext, Reports, SequenceOutcome};
use crate::containerizer::uncancelled::uncancelled;
use crate::containerizer::within::within;
use crate::model::view::{Report, StatusView, UsageView, WantedReports};
use crate::model::{ContainerId, Phase, now_unix_ms};
use crate::parallel;

/// The most jobs of one survey.
const MAX_JOBS: usize = 32;

/// If fewer containers than jobs are completed in this time, another job takes part.
const PACE: Duration = Duration::from_millis(5);

/// Collects the reports on containers, in their order.
pub(super) async fn collect(shared: &Arc<Shared>, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
    let mut reports = vec![Report::default(); ids.len()];
    // Others have nothing to report.
    let handles: Vec<_> = ids
        .iter()
        .enumerate()
        .filter_map(|(index, id)| Some((index, shared.table.get(id)?)))
        .filter(|(_, handle)| handle.phase() == Phase::Running)
        .collect();
    if handles.is_empty() || !(wanted.usage || wanted.status) {
        return reports;
    }
    let survey = Arc::new(Survey {
        shared: Arc::clone(shared),
        wanted,
        handles,
        next: AtomicUsize::new(0),
        completed: AtomicUsize::new(0),
        cancelled: AtomicBool::new(false),
        busy: Mutex::default(),
        reports: Mutex::default(),
    });
    let _cancel = CancelOnDrop(Arc::clone(&survey));
    // A call that is in progress continues in any case: until its end the container is locked.
    within(wanted.within, uncancelled(run(Arc::clone(&survey)))).await;
    for (index, report) in survey.reports.lock().drain(..) {
        if let Some(slot) = reports.get_mut(index) {
            *slot = report;
        }
    }
    reports
}

/// The collection of reports on several containers.
struct Survey {
    shared: Arc<Shared>,
    wanted: WantedReports,
    /// The containers, with the indexes of their reports.
    handles: Vec<(usize, Arc<Handle>)>,
    /// The container that is asked about next.
    next: AtomicUsize,
    completed: AtomicUsize,
    /// The reports are not needed any more.
    cancelled: AtomicBool,
    /// Containers that are locked by another operation.
    busy: Mutex<Vec<(usize, Arc<Handle>)>>,
    reports: Mutex<Vec<(usize, Report)>>,
}

struct CancelOnDrop(Arc<Survey>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// The container that a job asks about, locked. Outlives the job if that is abandoned.
#[derive(Default)]
struct Current(Mutex<Option<(Arc<Query>, OwnedMutexGuard<()>)>>);

struct Query {
    index: usize,
    context: ContainerContext,
    /// Pid of the first process.
    pid: Option<i32>,
    reports: Reports,
}

async fn run(survey: Arc<Survey>) {
    let mut jobs = JoinSet::new();
    let start = |jobs: &mut JoinSet<()>| {
        let survey = Arc::clone(&survey);
        jobs.spawn(async move { survey.run_jobs(Current::default()).await });
    };
    for _ in 0..parallel::threads().min(survey.handles.len()) {
        start(&mut jobs);
    }
    let mut completed = 0;
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pace.reset();
    loop {
        tokio::select! {
            ended = jobs.join_next() => if ended.is_none() { break },
            _ = pace.tick() => {
                let before = std::mem::replace(&mut completed, survey.completed.load(Ordering::Relaxed));
                let waiting = survey.next.load(Ordering::Relaxed) < survey.handles.len();
                if waiting && completed - before < jobs.len() && jobs.len() < MAX_JOBS {
                    start(&mut jobs);
                }
            }
        }
    }
    let busy = std::mem::take(&mut *survey.busy.lock());
    let mut waiting = JoinSet::new();
    for (index, handle) in busy {
        let survey = Arc::clone(&survey);
        waiting.spawn(async move {
            let lock = handle.op_lock_owned().await;
            if let Some(query) = survey.query(index, &handle) {
                survey.run_jobs(Current(Mutex::new(Some((query, lock))))).await;
            }
        });
    }
    while waiting.join_next().await.is_some() {}
}

impl Survey {
    /// Runs jobs until no container is left: one, unless it is abandoned.
    async fn run_jobs(self: Arc<Self>, current: Current) {
        let (shared, current) = (&self.shared, Arc::new(current));
        loop {
            let (survey, current2) = (Arc::clone(&self), Arc::clone(&current));
            let work = move |job: &Job| survey.ask(job, &current2);
            let Err(abandoned) = shared.pool.run(shared.chain.report_timeout(), work).await else { return };
            let Some(query) = current.query() else {
                // No thread could be started.
                drop(shared.chain.attribute(abandoned));
                return;
            };
            if !shared.chain.skip_in_reports(&query.reports, abandoned) {
                // The next job would not get any further.
                current.0.lock().take();
            }
        }
    }

    /// Asks about the current container, and all that are left. Blocks.
    fn ask(&self, job: &Job, current: &Current) {
        loop {
            let Some(query) = current.query().or_else(|| self.next_query(current)) else { return };
            if !self.shared.chain.report(job, &query.context, &query.reports) {
                // Another job continues with it.
                return;
            }
            current.0.lock().take();
            self.reports.lock().push((query.index, query.report()));
            self.completed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn next_query(&self, current: &Current) -> Option<Arc<Query>> {
        while !self.cancelled.load(Ordering::Relaxed) {
            let (index, handle) = self.handles.get(self.next.fetch_add(1, Ordering::Relaxed))?;
            match handle.try_op_lock() {
                Some(lock) => {
                    let Some(query) = self.query(*index, handle) else { continue };
                    *current.0.lock() = Some((Arc::clone(&query), lock));
                    return Some(query);
                }
                None => self.busy.lock().push((*index, Arc::clone(handle))),
            }
        }
        None
    }

    /// `None` if the container is not running any more.
    fn query(&self, index: usize, handle: &Handle) -> Option<Arc<Query>> {
        let record = handle.record();
        let running = record.phase == Phase::Running && !self.cancelled.load(Ordering::Relaxed);
        running.then(|| {
            Arc::new(Query {
                index,
                context: handle.context_for(|_| Vec::new()),
                pid: record.process.map(|process| process.pid),
                reports: self.shared.chain.reports(&record.part.participants, self.wanted),
            })
        })
    }
}

impl Current {
    fn query(&self) -> Option<Arc<Query>> {
        self.0.lock().as_ref().map(|(query, _)| Arc::clone(query))
    }
}

impl Query {
    fn report(&self) -> Report {
        Report {
            usage: self.reports.usage.as_ref().map(|calls| usage_view(calls.take())),
            status: self.reports.status.as_ref().map(|calls| status_view(self.pid, calls.take())),
        }
    }
}

fn usage_view(outcome: SequenceOutcome<Vec<(String, Usage)>>) -> UsageView {
    let mut view = UsageView {
        #[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
        timestamp: now_unix_ms() as f64 / 1000.0,
        failed: failures(&outcome.failed),
        ..UsageView::default()
    };
    for (plugin, usage) in outcome.result {
        for (name, value) in usage.0 {
            view.owners.insert(name.clone(), plugin.clone());
            view.statistics.insert(name, value);
        }
    }
    view
}

fn status_view(pid: Option<i32>, outcome: SequenceOutcome<Vec<(String, Status)>>) -> StatusView {
    let mut view = StatusView { failed: failures(&outcome.failed), ..StatusView::default() };
    if let Some(pid) = pid {
        view.status.insert("executor_pid".into(), pid.into());
        view.owners.insert("executor_pid".into(), "agent".into());
    }
    for (plugin, status) in outcome.result {
        for (name, value) in status.0 {
            view.owners.insert(name.clone(), plugin.clone());
            view.status.insert(name, value);
        }
    }
    view
}
