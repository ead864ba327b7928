//! `cgroups/perf_event`, with events that the kernel counts itself.

use std::time::{Duration, Instant};

use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, run};
use serde_json::{Value as Json, json};

use super::{Fixture, across_restart, isolator, world};

/// Runs processes.
const BUSY: &str = "(while :; do busybox true; done) & true";

impl Fixture {
    /// The sample of a container that has counted something.
    async fn perf(&self, name: &str) -> Json {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let usage = self.agent.usage(&id(name)).await.unwrap();
            assert_eq!(usage.failed, [].into());
            match usage.statistics.get("perf") {
                Some(perf) if perf["page_faults"].as_u64() > Some(0) => {
                    assert_eq!(usage.owners["perf"], "cgroups/perf_event");
                    return perf.clone();
                }
                other => assert!(Instant::now() < end, "no sample of `{name}` has counted: {other:?}"),
            }
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn usage_has_the_events_of_a_container_also_with_a_later_agent() {
    if !is_root("cgroups") {
        return;
    }
    let table = json!({
        "perf_events": ["task-clock", "page-faults", "context-switches", "cpu-migrations"],
        "perf_interval": "50ms",
        "perf_duration": "20ms",
    });
    across_restart(
        &world(vec![isolator("cgroups/perf_event", table)]),
        async |fixture| {
            fixture.launch(fixture.request("web", "root", BUSY)).await;
            fixture.launch(fixture.request("idle", "root", "true")).await;
            let perf = fixture.perf("web").await;
            assert!(perf["task_clock"].as_f64() > Some(0.0), "{perf}");
            assert!(perf["cpu_migrations"].is_u64() && perf["duration"].as_f64() >= Some(0.02), "{perf}");
        },
        async |fixture| {
            fixture.perf("web").await;
            // What nested containers do counts for those that they are in.
            let mut own = fixture.request("idle.own", "root", BUSY);
            own.linux.share_cgroups = false;
            fixture.launch(own).await;
            fixture.perf("idle.own").await;
            fixture.perf("idle").await;
            let mut shared = fixture.request("web.shared", "root", "true");
            shared.linux.share_cgroups = true;
            run(&fixture.agent, shared).await;
            fixture.agent.remove(&id("web.shared")).await.unwrap();
            fixture.agent.destroy(&id("idle")).await.unwrap();
            fixture.agent.remove(&id("idle")).await.unwrap();
            fixture.destroy("web").await;
        },
    );
}
