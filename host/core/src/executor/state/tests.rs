use proptest::prelude::*;

use super::*;
use crate::executor::update::Source;

fn task(id: &str) -> Task {
    let resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    Task::new(TaskId::new(id).unwrap(), id.to_owned(), Json::Null, resources)
}

fn state(tasks: &[&str], group: bool) -> ExecutorState {
    let framework = Framework {
        id: FrameworkId::new("f").unwrap(),
        info: Json::Null,
        checkpoint: true,
        partition_aware: false,
    };
    let executor = ExecutorDescription {
        id: ExecutorId::new("e").unwrap(),
        kind: ExecutorKind::Custom,
        info: Json::Null,
        resources: Resources::default().with("cpus", 0.1),
        shutdown_grace_ms: 5000,
    };
    let token = crate::executor::Token::presented("t").hash();
    let mut state = ExecutorState::new(framework, executor, ContainerId::parse("c").unwrap(), token, 0);
    state.apply(Entry::Tasks { tasks: tasks.iter().map(|id| task(id)).collect(), group });
    state
}

fn update(task: &str, state: TaskState, number: u8) -> Update {
    Update {
        task: TaskId::new(task).unwrap(),
        state,
        id: UpdateId::from_bytes(&[number; 16]).unwrap(),
        source: Source::Executor,
        timestamp: 0.0,
        reason: None,
        message: None,
        details: serde_json::Map::new(),
    }
}

fn receive(state: &mut ExecutorState, update: &Update) -> Result<Received, UpdateRefused> {
    let received = state.receive(update)?;
    if let Received::New(entry) = &received {
        state.apply(entry.clone());
    }
    Ok(received)
}

fn ended(reason: Option<Reason>, status: Option<i32>) -> End {
    End::Ended(Termination { reason, status, ..Termination::default() })
}

fn id(task: &str) -> TaskId {
    TaskId::new(task).unwrap()
}

#[test]
fn an_update_that_is_sent_again_is_known_and_nothing_follows_the_end() {
    let mut state = state(&["a"], false);
    let running = update("a", TaskState::TaskRunning, 1);
    assert!(matches!(receive(&mut state, &running), Ok(Received::New(_))));
    assert_eq!(receive(&mut state, &running), Ok(Received::Known));
    let finished = update("a", TaskState::TaskFinished, 2);
    assert!(matches!(receive(&mut state, &finished), Ok(Received::New(_))));
    let failed = update("a", TaskState::TaskFailed, 3);
    assert_eq!(receive(&mut state, &failed), Ok(Received::AfterEnd(TaskState::TaskFinished)));
    assert!(matches!(
        receive(&mut state, &update("b", TaskState::TaskRunning, 4)),
        Err(UpdateRefused::UnknownTask { .. })
    ));
    assert_eq!(state.terminate(&ended(None, Some(0)), 0), [Entry::Terminated { at_unix_ms: 0 }]);
}

#[test]
fn updates_are_acknowledged_in_order() {
    let mut state = state(&["a"], false);
    for number in 1..=2 {
        receive(&mut state, &update("a", TaskState::TaskRunning, number)).unwrap();
    }
    let acknowledge = |state: &mut ExecutorState, number: u8| {
        let id = UpdateId::from_bytes(&[number; 16]).unwrap();
        state.apply(Entry::Acknowledged { task: TaskId::new("a").unwrap(), id });
        state.tasks[&TaskId::new("a").unwrap()].unacknowledged.len()
    };
    assert_eq!([2, 1, 1, 2].map(|number| acknowledge(&mut state, number)), [2, 1, 1, 0]);
}

#[test]
fn too_many_updates_are_refused_but_an_end_never_is() {
    let mut state = state(&["a"], false);
    let numbered = |number: usize, state| Update {
        id: UpdateId::from_bytes(&(number as u128).to_le_bytes()).unwrap(),
        ..update("a", state, 0)
    };
    for number in 0..MAX_UNACKNOWLEDGED {
        receive(&mut state, &numbered(number, TaskState::TaskRunning)).unwrap();
    }
    let more = numbered(MAX_UNACKNOWLEDGED, TaskState::TaskRunning);
    assert!(matches!(receive(&mut state, &more), Err(UpdateRefused::TooMany { .. })));
    receive(&mut state, &numbered(MAX_UNACKNOWLEDGED + 1, TaskState::TaskFinished)).unwrap();
}

#[test]
fn large_updates_are_refused_before_there_are_many() {
    let mut state = state(&["a", "b"], false);
    let large = |number: u8, task, task_state, length| Update {
        message: Some("x".repeat(length)),
        ..update(task, task_state, number)
    };
    let number = (0..=u8::MAX).find(|&number| {
        receive(&mut state, &large(number, "a", TaskState::TaskRunning, MAX_BYTES / 10)).is_err()
    });
    assert_eq!(number, Some(9));
    receive(&mut state, &large(20, "a", TaskState::TaskFinished, MAX_BYTES / 10)).unwrap();
    let refused = receive(&mut state, &large(21, "b", TaskState::TaskFailed, MAX_BYTES_WITH_ENDS / 2));
    assert!(matches!(refused, Err(UpdateRefused::TooMany { .. })));
    // The next agent counts the same.
    let read: ExecutorState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert_eq!(read.counted(), state);
    for number in [0, 1, 2, 3, 4, 5, 6, 7, 8, 20] {
        let id = UpdateId::from_bytes(&[number; 16]).unwrap();
        state.apply(Entry::Acknowledged { task: TaskId::new("a").unwrap(), id });
    }
    assert_eq!(state.waiting, Waiting::default());
    receive(&mut state, &large(21, "b", TaskState::TaskFailed, MAX_BYTES_WITH_ENDS / 2)).unwrap();
}

#[test]
fn a_task_is_delivered_until_its_executor_knows_it() {
    let mut state = state(&["a", "b"], false);
    let mut group = state.clone();
    group.apply(Entry::Tasks { tasks: vec![task("x"), task("y")], group: true });
    let deliveries = |state: &ExecutorState, known: &[&str]| {
        let known = known.iter().map(|id| TaskId::new(*id).unwrap()).collect();
        let ids = |delivery: Delivery| match delivery {
            Delivery::Task(task) => vec![task.id.to_string()],
            Delivery::Group { tasks, .. } => tasks.iter().map(|task| task.id.to_string()).collect(),
        };
        state.undelivered(&known).into_iter().map(ids).collect::<Vec<_>>()
    };
    assert_eq!(deliveries(&state, &[]), [["a"], ["b"]]);
    assert_eq!(deliveries(&state, &["a"]), [["b"]]);
    receive(&mut state, &update("b", TaskState::TaskRunning, 1)).unwrap();
    assert_eq!(deliveries(&state, &[]), [["a"]]);
    assert_eq!(deliveries(&group, &["b"]), [vec!["a"], vec!["x", "y"]]);
    assert_eq!(deliveries(&group, &["b", "y"]), [["a"]], "an executor knows a group as a whole");
}

#[test]
fn a_kill_before_the_executor_knows_the_task_ends_it_and_its_group() {
    let mut group = state(&["a", "b"], true);
    let KillAction::Undelivered { entries, last } = group.kill(&group.tasks[&id("a")], Kill::default(), 0.0)
    else {
        panic!("the executor has not subscribed");
    };
    assert!(last);
    entries.into_iter().for_each(|entry| group.apply(entry));
    assert!(group.tasks.values().all(|task| task.state == TaskState::TaskKilled));
    assert_eq!(group.phase, ExecutorPhase::Terminating);

    let mut single = state(&["a", "b"], false);
    let KillAction::Undelivered { entries, last } =
        single.kill(&single.tasks[&id("a")], Kill::default(), 0.0)
    else {
        panic!("the executor has not subscribed");
    };
    assert_eq!((entries.len(), last), (1, false));
    single.apply(Entry::Subscribed);
    assert!(matches!(single.kill(&single.tasks[&id("b")], Kill::default(), 0.0), KillAction::Deliver(_)));
    single.apply(Entry::Kill { task: id("b"), kill: Kill::default() });
    assert_eq!(single.killed_undelivered(&BTreeSet::new(), 0.0).len(), 1);
    assert!(single.killed_undelivered(&BTreeSet::from([id("b")]), 0.0).is_empty());
}

#[test]
fn the_end_of_a_container_says_how_its_tasks_ended() {
    let reason = |end: &End, cause: Option<Verdict>, partition_aware: bool, was_running: bool| {
        let mut state = state(&["a"], false);
        state.framework.partition_aware = partition_aware;
        if was_running {
            receive(&mut state, &update("a", TaskState::TaskRunning, 1)).unwrap();
        }
        if let Some(cause) = cause {
            state.apply(Entry::Stop(cause));
        }
        for entry in state.terminate(end, 1000) {
            state.apply(entry);
        }
        assert_eq!(state.phase, ExecutorPhase::Terminated);
        let last = state.tasks[&id("a")].last().unwrap().clone();
        (last.state, last.reason.unwrap())
    };
    let of = |end: &End| reason(end, None, false, true);
    let failed = |reason: &str| (TaskState::TaskFailed, reason.to_owned());
    assert_eq!(of(&ended(None, Some(0))), failed("REASON_EXECUTOR_TERMINATED"));
    assert_eq!(of(&End::NotLaunched("x".into())), failed("REASON_CONTAINER_LAUNCH_FAILED"));
    let limit = ended(Some(Reason::Limitation("REASON_CONTAINER_LIMITATION_MEMORY".into())), None);
    assert_eq!(of(&limit), failed("REASON_CONTAINER_LIMITATION_MEMORY"));
    assert_eq!(of(&ended(Some(Reason::Killed), None)).0, TaskState::TaskKilled);
    assert_eq!(of(&End::Lost).0, TaskState::TaskLost);
    assert_eq!(reason(&End::Lost, None, true, true).0, TaskState::TaskGone);
    assert_eq!(reason(&End::Lost, None, true, false).0, TaskState::TaskDropped);
    let cause = Verdict::new(TaskState::TaskFailed, "REASON_EXECUTOR_REGISTRATION_TIMEOUT", "late");
    let killed = ended(Some(Reason::Killed), None);
    assert_eq!(reason(&killed, Some(cause), false, false), failed("REASON_EXECUTOR_REGISTRATION_TIMEOUT"));
}

#[test]
fn the_end_that_the_agent_gives_a_task_has_the_same_id_when_it_is_repeated() {
    let state = state(&["a", "b"], false);
    assert_eq!(state.terminate(&End::Lost, 5), state.terminate(&End::Lost, 5));
    let Some(Entry::Update(a)) = state.terminate(&End::Lost, 5).into_iter().next() else {
        panic!("no update")
    };
    let Some(Entry::Update(b)) = state.terminate(&End::Lost, 5).into_iter().nth(1) else {
        panic!("no update")
    };
    assert_ne!(a.id, b.id);
}

#[test]
fn an_executor_cannot_send_the_end_that_the_agent_gives_a_task() {
    let mut state = state(&["a"], false);
    let Some(Entry::Update(end)) = state.terminate(&End::Lost, 5).into_iter().next() else {
        panic!("no update")
    };
    let sent = Update { id: end.id, ..update("a", TaskState::TaskRunning, 1) };
    assert!(matches!(receive(&mut state, &sent), Err(UpdateRefused::ReservedId { .. })));
}

#[test]
fn resources_are_those_of_the_executor_and_of_tasks_that_have_not_ended() {
    let mut state = state(&["a", "b"], false);
    assert_eq!((state.allocated().cpus(), state.allocated().scalar("mem")), (Some(1.1), Some(128.0)));
    receive(&mut state, &update("a", TaskState::TaskFinished, 1)).unwrap();
    assert_eq!((state.allocated().cpus(), state.allocated().scalar("mem")), (Some(0.6), Some(64.0)));

    let overhead = Resources::default().with("mem", 32.0);
    let limited = Resources::default().with("mem", 64.0).with_limit("mem", Limit::At(128.0));
    assert_eq!(add(overhead.clone(), &limited).limit("mem"), Some(Limit::At(160.0)));
    let unlimited = Resources::default().with("mem", 64.0).with_limit("mem", Limit::Unlimited);
    assert_eq!(add(overhead, &unlimited).limit("mem"), Some(Limit::Unlimited));
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Happens {
    Update(u8, TaskState, u8),
    Acknowledge(u8),
    Kill(u8),
    Subscribe,
    Stop,
    Terminate,
}

fn happens() -> impl Strategy<Value = Happens> {
    use TaskState::{TaskFailed, TaskFinished, TaskKilled, TaskKilling, TaskRunning, TaskStarting};
    let states = prop::sample::select(vec![
        TaskStarting,
        TaskRunning,
        TaskRunning,
        TaskKilling,
        TaskFinished,
        TaskFailed,
        TaskKilled,
    ]);
    prop_oneof![
        6 => (0..3_u8, states, 0..40_u8).prop_map(|(task, state, id)| Happens::Update(task, state, id)),
        3 => (0..3_u8).prop_map(Happens::Acknowledge),
        1 => (0..3_u8).prop_map(Happens::Kill),
        1 => Just(Happens::Subscribe),
        1 => Just(Happens::Stop),
        1 => Just(Happens::Terminate),
    ]
}

proptest! {
    /// Whatever happens: no task has two ends or an update after its end, no update is lost before it is acknowledged, an
    /// executor that has terminated has no live task, and the state is the sum of its entries.
    #[test]
    fn every_task_ends_once(events in prop::collection::vec(happens(), 0..60)) {
        let names = ["0", "1", "2"];
        let mut current = state(&names, false);
        let mut replayed = current.clone();
        let mut sent: BTreeMap<TaskId, Vec<Update>> = BTreeMap::new();
        let mut acknowledged: BTreeMap<TaskId, Vec<UpdateId>> = BTreeMap::new();
        for event in events {
            let entries = match event {
                _ if current.phase == ExecutorPhase::Terminated && !matches!(event, Happens::Acknowledge(_)) => vec![],
                Happens::Update(task, state, id) => {
                    match current.receive(&update(names[usize::from(task)], state, id)) {
                        Ok(Received::New(entry)) => vec![entry],
                        _ => vec![],
                    }
                }
                Happens::Acknowledge(task) => {
                    let task = id(names[usize::from(task)]);
                    let first = current.tasks[&task].unacknowledged.front();
                    first.map(|first| Entry::Acknowledged { task, id: first.id }).into_iter().collect()
                }
                Happens::Kill(task) => {
                    let task = &current.tasks[&id(names[usize::from(task)])];
                    match current.kill(task, Kill::default(), 0.0) {
                        KillAction::Undelivered { entries, .. } => entries,
                        KillAction::Deliver(entry) => vec![entry],
                        KillAction::Ended => vec![],
                    }
                }
                Happens::Subscribe => vec![Entry::Subscribed],
                Happens::Stop => vec![Entry::Stop(Verdict::new(TaskState::TaskKilled, "REASON", "stop"))],
                Happens::Terminate => current.terminate(&ended(None, Some(9)), 1),
            };
            for entry in entries {
                match &entry {
                    Entry::Update(update) => sent.entry(update.task.clone()).or_default().push((**update).clone()),
                    Entry::Acknowledged { task, id } => acknowledged.entry(task.clone()).or_default().push(*id),
                    _ => {}
                }
                let json = serde_json::to_string(&entry).unwrap();
                current.apply(entry);
                replayed.apply(serde_json::from_str(&json).unwrap());
            }
        }
        prop_assert_eq!(&current, &replayed);
        for (task, updates) in &sent {
            let ends = updates.iter().filter(|update| update.state.is_terminal()).count();
            prop_assert!(ends <= 1);
            prop_assert!(ends == 0 || updates.last().unwrap().state.is_terminal());
            let kept = current.tasks[task].unacknowledged.iter().map(|update| update.id);
            let known: Vec<UpdateId> = acknowledged.get(task).into_iter().flatten().copied().chain(kept).collect();
            let all: Vec<UpdateId> = updates.iter().map(|update| update.id).collect();
            prop_assert_eq!(known, all);
        }
        if current.phase == ExecutorPhase::Terminated {
            prop_assert!(current.live_tasks().is_empty());
        }
    }
}
