//! The rules of composition, with containerizers of which each test says what they answer. The real ones are composed in
//! `tests/system/docker`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::model::view::Logs;
use crate::model::{Cause, Reason, Record};

/// What a launch by a [`Scripted`] containerizer comes to.
#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Launches,
    /// Does not have the container before it has launched it.
    LaunchesLate,
    DoesNotSupport,
    Fails,
}

/// A containerizer that answers as a test says, once the test permits it.
struct Scripted {
    name: &'static str,
    answer: Answer,
    /// One permit for each launch or recovery that may be answered.
    permits: Semaphore,
    reached: Notify,
    launches: AtomicUsize,
    destroys: AtomicUsize,
    live: Mutex<BTreeSet<ContainerId>>,
    ended: Mutex<BTreeSet<ContainerId>>,
    recovered: Mutex<Vec<ContainerId>>,
    recorded: Mutex<Arc<BTreeSet<ContainerId>>>,
    sandboxes: Vec<ContainerId>,
    recovery_fails: bool,
    end: watch::Sender<()>,
}

impl Scripted {
    fn new(name: &'static str, answer: Answer) -> Self {
        Self {
            name,
            answer,
            permits: Semaphore::new(100),
            reached: Notify::new(),
            launches: AtomicUsize::default(),
            destroys: AtomicUsize::default(),
            live: Mutex::default(),
            ended: Mutex::default(),
            recovered: Mutex::default(),
            recorded: Mutex::default(),
            sandboxes: Vec::new(),
            recovery_fails: false,
            end: watch::Sender::new(()),
        }
    }

    /// Answers only when permits are added.
    fn waiting(self) -> Self {
        Self { permits: Semaphore::new(0), ..self }
    }

    fn with(self, ids: &[&str]) -> Self {
        self.live.lock().extend(ids.iter().map(|text| id(text)));
        self
    }

    fn launches(&self) -> usize {
        self.launches.load(Ordering::SeqCst)
    }

    async fn permitted(&self) {
        self.reached.notify_one();
        self.permits.acquire().await.unwrap().forget();
    }

    fn summary(&self, id: &ContainerId) -> Summary {
        Summary {
            id: id.clone(),
            class: crate::model::ContainerClass::Default,
            phase: if self.live.lock().contains(id) { Phase::Running } else { Phase::Ended },
            pid: None,
            command: self.name.into(),
            created_unix_ms: 0,
            termination: None,
            resources: Resources::default(),
            cleanup_errors: Vec::new(),
            pull: None,
            fetch: None,
        }
    }
}

fn termination() -> Termination {
    Termination { reason: Some(Reason::Killed), ..Termination::default() }
}

#[async_trait]
impl Containerizer for Scripted {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn recover(
        &self,
        entries: Vec<Entry>,
        recorded: Arc<BTreeSet<ContainerId>>,
    ) -> Result<Box<dyn Recovery>, RecoverError> {
        self.permitted().await;
        *self.recorded.lock() = recorded;
        if self.recovery_fails {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(RecoverError::Directory { path: self.name.into(), source });
        }
        self.recovered.lock().extend(entries.into_iter().map(|entry| entry.id));
        Ok(Box::new(ScriptedRecovery(self.recovered.lock().len())))
    }

    fn has_sandbox(&self, id: &ContainerId) -> bool {
        self.sandboxes.contains(id)
    }

    async fn launch(&self, request: Request) -> Result<LaunchOutcome, LaunchError> {
        self.launches.fetch_add(1, Ordering::SeqCst);
        match self.answer {
            Answer::Launches => {
                self.live.lock().insert(request.id.clone());
                self.permitted().await;
                match self.live.lock().contains(&request.id) {
                    true => Ok(LaunchOutcome::Launched { pid: 1 }),
                    false => Err(LaunchError::Internal { id: request.id, reason: "destroyed".into() }),
                }
            }
            Answer::LaunchesLate => {
                self.permitted().await;
                self.live.lock().insert(request.id);
                Ok(LaunchOutcome::Launched { pid: 1 })
            }
            Answer::DoesNotSupport => {
                self.permitted().await;
                Ok(LaunchOutcome::NotSupported)
            }
            Answer::Fails => {
                self.permitted().await;
                Err(LaunchError::Internal { id: request.id, reason: "deliberate".into() })
            }
        }
    }

    async fn wait(&self, id: &ContainerId) -> Option<Termination> {
        let mut end = self.end.subscribe();
        while self.live.lock().contains(id) {
            end.changed().await.unwrap();
        }
        self.ended.lock().contains(id).then(termination)
    }

    fn attach(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        Err(AttachError::NotAttachable { id: id.clone() })
    }

    fn attach_first(&self, id: &ContainerId) -> Result<Attachment, AttachError> {
        self.attach(id)
    }

    fn attach_input(&self, id: &ContainerId) -> Result<AttachedInput, AttachError> {
        Err(AttachError::NotAttachable { id: id.clone() })
    }

    async fn kill(&self, id: &ContainerId, _: i32) -> Result<bool, KillError> {
        Ok(self.live.lock().contains(id))
    }

    async fn force(&self, id: &ContainerId) -> bool {
        self.live.lock().contains(id)
    }

    async fn destroy(&self, id: &ContainerId) -> Option<Termination> {
        self.destroys.fetch_add(1, Ordering::SeqCst);
        if self.live.lock().remove(id) {
            self.ended.lock().insert(id.clone());
            self.end.send_replace(());
        }
        self.ended.lock().contains(id).then(termination)
    }

    async fn remove(&self, id: &ContainerId) -> Result<bool, RemoveError> {
        Ok(self.ended.lock().remove(id))
    }

    async fn update(&self, id: &ContainerId, _: Resources) -> Result<(), UpdateError> {
        match self.live.lock().contains(id) {
            true => Ok(()),
            false => Err(UpdateError::Unknown { id: id.clone() }),
        }
    }

    async fn reports(&self, ids: &[ContainerId], _: WantedReports) -> Vec<Report> {
        let report = |id: &ContainerId| {
            let status = [("by".to_owned(), format!("{} {id}", self.name).into())].into();
            let status = crate::model::view::StatusView { status, ..Default::default() };
            Report { usage: None, status: Some(status) }
        };
        ids.iter().map(report).collect()
    }

    fn containers(&self) -> Vec<Summary> {
        let known: Vec<_> = self.live.lock().iter().chain(&*self.ended.lock()).cloned().collect();
        known.iter().map(|id| self.summary(id)).collect()
    }

    fn contains(&self, id: &ContainerId) -> bool {
        self.live.lock().contains(id) || self.ended.lock().contains(id)
    }

    fn inspect(&self, id: &ContainerId) -> Option<Inspection> {
        self.contains(id).then(|| Inspection {
            summary: self.summary(id),
            request: request(id.as_str()),
            uid: 0,
            sandbox: "/".into(),
            logs: Logs::default(),
            plan: Vec::new(),
            plugins: Vec::new(),
        })
    }
}

struct ScriptedRecovery(usize);

#[async_trait]
impl Recovery for ScriptedRecovery {
    async fn resume(self: Box<Self>) -> Recovered {
        Recovered { running: self.0, ..Recovered::default() }
    }
}

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

fn request(id_text: &str) -> Request {
    Request::shell(id(id_text), "true")
}

/// Two containerizers, and their composition.
fn compose(first: Scripted, second: Scripted) -> (Arc<Scripted>, Arc<Scripted>, Composing) {
    let (first, second) = (Arc::new(first), Arc::new(second));
    let both: Vec<Arc<dyn Containerizer>> = vec![first.clone(), second.clone()];
    (first, second, Composing::new(both, Arc::default()))
}

const LAUNCHED: LaunchOutcome = LaunchOutcome::Launched { pid: 1 };

#[tokio::test]
async fn the_order_of_the_list_is_the_order_of_attempts() {
    let both = || (Scripted::new("docker", Answer::Launches), Scripted::new("mesos", Answer::Launches));
    let (docker, mesos) = both();
    let (first, second, composing) = compose(mesos, docker);
    assert_eq!(composing.launch(request("web")).await.unwrap(), LAUNCHED);
    assert_eq!((first.launches(), second.launches()), (1, 0));
    let (docker, mesos) = both();
    let (first, second, composing) = compose(docker, mesos);
    assert_eq!(composing.launch(request("web")).await.unwrap(), LAUNCHED);
    assert_eq!((first.launches(), second.launches()), (1, 0));
}

#[tokio::test]
async fn what_is_not_supported_is_tried_by_the_next_and_in_the_end_not_supported() {
    let (_, second, composing) =
        compose(Scripted::new("docker", Answer::DoesNotSupport), Scripted::new("mesos", Answer::Launches));
    assert_eq!(composing.launch(request("web")).await.unwrap(), LAUNCHED);
    assert!(second.contains(&id("web")));

    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::DoesNotSupport),
        Scripted::new("mesos", Answer::DoesNotSupport),
    );
    assert_eq!(composing.launch(request("web")).await.unwrap(), LaunchOutcome::NotSupported);
    assert_eq!((first.launches(), second.launches()), (1, 1));
    // The id is free.
    assert_eq!(composing.launch(request("web")).await.unwrap(), LaunchOutcome::NotSupported);
    assert_eq!(composing.wait(&id("web")).await, None);
}

#[tokio::test]
async fn a_failure_is_final() {
    let (_, second, composing) =
        compose(Scripted::new("docker", Answer::Fails), Scripted::new("mesos", Answer::Launches));
    let error = composing.launch(request("web")).await.unwrap_err();
    assert!(matches!(error, LaunchError::Internal { reason, .. } if reason == "deliberate"));
    assert_eq!(second.launches(), 0);
}

#[tokio::test]
async fn an_id_is_taken_while_it_is_launched_while_it_runs_and_after_its_end() {
    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::DoesNotSupport).waiting(),
        Scripted::new("mesos", Answer::Launches),
    );
    let launching = tokio::spawn({
        let composing = composing.clone();
        async move { composing.launch(request("web")).await }
    });
    first.reached.notified().await;
    // No containerizer has it yet.
    assert!(!composing.contains(&id("web")));
    assert!(matches!(composing.launch(request("web")).await, Err(LaunchError::Duplicate { .. })));
    first.permits.add_permits(1);
    assert_eq!(launching.await.unwrap().unwrap(), LAUNCHED);
    assert!(matches!(composing.launch(request("web")).await, Err(LaunchError::Duplicate { .. })));
    composing.destroy(&id("web")).await.unwrap();
    assert!(matches!(composing.launch(request("web")).await, Err(LaunchError::Ended { .. })));
    // None of these was an attempt.
    assert_eq!((first.launches(), second.launches()), (1, 1));
    assert!(composing.remove(&id("web")).await.unwrap());
    first.permits.add_permits(1);
    assert_eq!(composing.launch(request("web")).await.unwrap(), LAUNCHED);
}

#[tokio::test]
async fn a_foreign_id_is_offered_to_none() {
    let (first, _, composing) =
        compose(Scripted::new("docker", Answer::Launches), Scripted::new("mesos", Answer::Launches));
    composing.0.foreign.add(id("web"), "its version".into());
    assert!(matches!(composing.launch(request("web")).await, Err(LaunchError::Foreign { .. })));
    assert!(matches!(composing.launch(request("web.sub")).await, Err(LaunchError::Foreign { .. })));
    assert_eq!(first.launches(), 0);
}

#[tokio::test]
async fn a_nested_container_goes_to_the_containerizer_of_its_root_only() {
    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::Launches),
        Scripted::new("mesos", Answer::DoesNotSupport).with(&["pod"]),
    );
    assert_eq!(composing.launch(request("pod.web")).await.unwrap(), LaunchOutcome::NotSupported);
    assert_eq!((first.launches(), second.launches()), (0, 1));
    let error = composing.launch(request("other.web")).await.unwrap_err();
    assert!(matches!(error, LaunchError::NoParent { parent, .. } if parent == id("other")));
    assert_eq!((first.launches(), second.launches()), (0, 1));
}

#[tokio::test]
async fn a_destroy_between_two_attempts_ends_the_launch() {
    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::DoesNotSupport).waiting(),
        Scripted::new("mesos", Answer::Launches),
    );
    let launching = tokio::spawn({
        let composing = composing.clone();
        async move { composing.launch(request("web")).await }
    });
    first.reached.notified().await;
    // It waits for the end of the launch.
    let (composing2, web) = (composing.clone(), id("web"));
    let mut destroying = Box::pin(async move { composing2.destroy(&web).await });
    tokio::select! {
        biased;
        _ = &mut destroying => panic!("the launch has not ended"),
        () = std::future::ready(()) => {}
    }
    first.permits.add_permits(1);
    let error = launching.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "container `web` was stopped while STARTING: the container was destroyed");
    assert_eq!((destroying.await, second.launches()), (None, 0));
    // The next one of this id is not affected.
    first.permits.add_permits(1);
    assert_eq!(composing.launch(request("web")).await.unwrap(), LAUNCHED);
}

#[tokio::test]
async fn a_kill_between_two_attempts_ends_the_launch() {
    for force in [false, true] {
        let (first, second, composing) = compose(
            Scripted::new("docker", Answer::DoesNotSupport).waiting(),
            Scripted::new("mesos", Answer::Launches),
        );
        let launching = tokio::spawn({
            let composing = composing.clone();
            async move { composing.launch(request("web")).await }
        });
        first.reached.notified().await;
        match force {
            true => assert!(composing.force(&id("web")).await),
            false => assert!(composing.kill(&id("web"), libc::SIGKILL).await.unwrap()),
        }
        first.permits.add_permits(1);
        assert!(matches!(launching.await.unwrap(), Err(LaunchError::Cancelled { .. })));
        assert_eq!(second.launches(), 0);
    }
}

#[tokio::test]
async fn a_request_before_the_containerizer_has_the_container_ends_the_launch() {
    type Stop = fn(Composing) -> tokio::task::JoinHandle<bool>;
    let stops: [Stop; 3] = [
        |composing| tokio::spawn(async move { composing.kill(&id("web"), libc::SIGTERM).await.unwrap() }),
        |composing| tokio::spawn(async move { composing.force(&id("web")).await }),
        |composing| tokio::spawn(async move { composing.destroy(&id("web")).await.is_none() }),
    ];
    for stop in stops {
        let (first, second, composing) = compose(
            Scripted::new("docker", Answer::LaunchesLate).waiting(),
            Scripted::new("mesos", Answer::Launches),
        );
        let launching = tokio::spawn({
            let composing = composing.clone();
            async move { composing.launch(request("web")).await }
        });
        first.reached.notified().await;
        let stopping = stop(composing.clone());
        while composing.launching(&id("web")).unwrap().check(&id("web")).is_ok() {
            tokio::task::yield_now().await;
        }
        first.permits.add_permits(1);
        assert!(matches!(launching.await.unwrap(), Err(LaunchError::Cancelled { .. })));
        assert!(stopping.await.unwrap());
        // Nothing is left, and the id is free.
        assert!(!composing.contains(&id("web")));
        assert_eq!((first.destroys.load(Ordering::SeqCst), second.launches()), (1, 0));
        first.permits.add_permits(1);
        assert_eq!(composing.launch(request("web")).await.unwrap(), LAUNCHED);
    }
}

#[tokio::test]
async fn a_request_to_the_containerizer_of_a_launch_does_not_stop_the_launch_as_well() {
    let (first, _, composing) = compose(
        Scripted::new("docker", Answer::Launches).waiting(),
        Scripted::new("mesos", Answer::Launches),
    );
    let launching = tokio::spawn({
        let composing = composing.clone();
        async move { composing.launch(request("web")).await }
    });
    first.reached.notified().await;
    // A signal is the containerizer's to judge.
    assert!(composing.kill(&id("web"), libc::SIGTERM).await.unwrap());
    first.permits.add_permits(1);
    assert_eq!(launching.await.unwrap().unwrap(), LAUNCHED);
    assert!(composing.contains(&id("web")));
}

#[tokio::test]
async fn a_destroy_during_an_attempt_goes_to_the_containerizer_that_makes_it() {
    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::Launches).waiting(),
        Scripted::new("mesos", Answer::Launches),
    );
    let launching = tokio::spawn({
        let composing = composing.clone();
        async move { composing.launch(request("web")).await }
    });
    first.reached.notified().await;
    assert_eq!(composing.destroy(&id("web")).await, Some(termination()));
    first.permits.add_permits(1);
    assert!(matches!(launching.await.unwrap(), Err(LaunchError::Internal { .. })));
    assert_eq!(second.launches(), 0);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_end_the_launch() {
    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::DoesNotSupport).waiting(),
        Scripted::new("mesos", Answer::Launches),
    );
    let launching = tokio::spawn({
        let composing = composing.clone();
        async move { composing.launch(request("web")).await }
    });
    first.reached.notified().await;
    launching.abort();
    assert!(launching.await.unwrap_err().is_cancelled());
    // A wait sees the launch through.
    let (composing2, web) = (composing.clone(), id("web"));
    let waiting = tokio::spawn(async move { composing2.wait(&web).await });
    first.permits.add_permits(1);
    second.reached.notified().await;
    composing.destroy(&id("web")).await.unwrap();
    // It was there, whether or not the wait came before its end.
    assert_eq!(waiting.await.unwrap(), Some(termination()));
}

#[tokio::test]
async fn a_destroy_can_be_repeated_and_the_end_be_read_later() {
    let (_, second, composing) = compose(
        Scripted::new("docker", Answer::Launches),
        Scripted::new("mesos", Answer::Launches).with(&["web"]),
    );
    for _ in 0..2 {
        assert_eq!(composing.destroy(&id("web")).await, Some(termination()));
    }
    assert_eq!(second.destroys.load(Ordering::SeqCst), 2);
    assert_eq!(composing.wait(&id("web")).await, Some(termination()));
}

#[tokio::test]
async fn calls_about_unknown_containers_say_so() {
    let (first, second, composing) =
        compose(Scripted::new("docker", Answer::Launches), Scripted::new("mesos", Answer::Launches));
    let unknown = id("unknown");
    assert_eq!(composing.wait(&unknown).await, None);
    assert_eq!(composing.destroy(&unknown).await, None);
    assert!(!composing.kill(&unknown, libc::SIGTERM).await.unwrap());
    assert!(!composing.force(&unknown).await);
    assert!(!composing.remove(&unknown).await.unwrap());
    let updated = composing.update(&unknown, Resources::default()).await;
    assert!(matches!(updated, Err(UpdateError::Unknown { .. })));
    assert!(matches!(composing.attach(&unknown), Err(AttachError::Unknown { .. })));
    assert!(matches!(composing.attach_first(&unknown), Err(AttachError::Unknown { .. })));
    assert!(matches!(composing.attach_input(&unknown), Err(AttachError::Unknown { .. })));
    assert!(composing.inspect(&unknown).is_none() && !composing.contains(&unknown));
    assert_eq!(composing.reports(&[unknown], WantedReports::ALL).await, [Report::default()]);
    let destroys = [&first, &second].map(|one| one.destroys.load(Ordering::SeqCst));
    assert_eq!(destroys, [0, 0]);
}

#[tokio::test]
async fn lists_and_reports_are_of_all_containerizers_in_order() {
    let (_, _, composing) = compose(
        Scripted::new("docker", Answer::Launches).with(&["b", "d"]),
        Scripted::new("mesos", Answer::Launches).with(&["a", "c", "c.x"]),
    );
    let listed: Vec<_> =
        composing.containers().iter().map(|it| format!("{} {}", it.command, it.id)).collect();
    assert_eq!(listed, ["mesos a", "docker b", "mesos c", "mesos c.x", "docker d"]);
    let ids = ["d", "unknown", "a", "b"].map(id);
    let reports = composing.reports(&ids, WantedReports::STATUS).await;
    let by = |report: &Report| Some(report.status.as_ref()?.status["by"].as_str()?.to_owned());
    let by: Vec<_> = reports.iter().map(|report| by(report).unwrap_or_default()).collect();
    assert_eq!(by, ["docker d", "", "mesos a", "docker b"]);
}

fn entry(name: &str, containerizer: &str) -> Entry {
    let part = RawValue::from_string("null".into()).unwrap();
    let mut record = Record::new(containerizer, request(name), "boot".into(), part);
    record.cause = Some(Cause::exited());
    Entry { id: id(name), record: Ok(record) }
}

#[tokio::test]
async fn each_containerizer_recovers_its_own_and_a_record_of_none_is_left_alone() {
    let docker = Scripted {
        sandboxes: ["damaged-of-engine", "damaged-of-both"].map(id).into(),
        ..Scripted::new("docker", Answer::Launches)
    };
    let mesos = Scripted {
        sandboxes: ["damaged-of-processes", "damaged-of-both"].map(id).into(),
        ..Scripted::new("mesos", Answer::Launches)
    };
    let (first, second, composing) = compose(docker, mesos);
    let damaged = |name: &str| Entry { id: id(name), record: Err(RecordError::Truncated { id: id(name) }) };
    let entries = vec![
        entry("a", "mesos"),
        entry("b", "docker"),
        damaged("damaged"),
        damaged("damaged-of-engine"),
        damaged("damaged-of-processes"),
        damaged("damaged-of-both"),
        entry("c", "rkt"),
        entry("d", "docker"),
    ];
    let recorded: BTreeSet<_> = entries.iter().map(|entry| entry.id.clone()).collect();
    let recovered = composing.recover(entries, Arc::new(recorded.clone())).await.unwrap().resume().await;
    assert_eq!(*first.recovered.lock(), ["b", "damaged-of-engine", "d"].map(id));
    let of_second = ["a", "damaged", "damaged-of-processes", "damaged-of-both"];
    assert_eq!(*second.recovered.lock(), of_second.map(id));
    assert_eq!(recovered, Recovered { running: 7, ..Recovered::default() });
    // No sandbox of the other is taken for one without a record.
    for containerizer in [first, second] {
        assert_eq!(**containerizer.recorded.lock(), recorded);
    }
    let error = composing.launch(request("c")).await.unwrap_err().to_string();
    assert!(error.contains("containerizer `rkt`, which is not in use"), "{error}");
}

#[tokio::test]
async fn all_recover_at_once() {
    let (first, second, composing) = compose(
        Scripted::new("docker", Answer::Launches).waiting(),
        Scripted::new("mesos", Answer::Launches).waiting(),
    );
    let recovering =
        tokio::spawn(async move { composing.recover(Vec::new(), Arc::default()).await.map(drop) });
    // Both are reached before any is answered.
    first.reached.notified().await;
    second.reached.notified().await;
    first.permits.add_permits(1);
    second.permits.add_permits(1);
    recovering.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_recovery_fails_if_one_fails() {
    let failing = Scripted { recovery_fails: true, ..Scripted::new("docker", Answer::Launches) };
    let (_, second, composing) = compose(failing, Scripted::new("mesos", Answer::Launches));
    let error = composing.recover(vec![entry("a", "mesos")], Arc::default()).await.err().unwrap();
    assert_eq!(error.to_string(), "cannot list `docker`");
    // It has found its own, and nothing was resumed.
    assert_eq!(second.recovered.lock().len(), 1);
}
