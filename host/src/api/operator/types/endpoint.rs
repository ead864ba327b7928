//! The pages that are fetched with GET, for those who watch agents.

use std::collections::BTreeMap;

use super::{statistics::ResourceStatistics, status::ContainerStatus};

message! {
    /// One element of the array `GET /containers` answers with.
    pub struct ContainerEntry {
        /// The container, by its own name alone.
        required container_id: String,
        /// The names of all it is nested in, outermost first. Ours.
        repeated parents: String,
        /// How it stands; absent if that could not be found out.
        optional status: ContainerStatus,
        /// What it uses; absent if that could not be found out.
        optional statistics: ResourceStatistics,
        /// Its framework. Set by agents that have such, as are the next three.
        optional framework_id: String,
        /// Its executor.
        optional executor_id: String,
        /// The name of its executor.
        optional executor_name: String,
        /// Where its executor came from.
        optional source: String,
    }
}

message! {
    /// One element of the array `GET /monitor/statistics` answers with.
    ///
    /// Collectors expect all four names, so a container without an executor is its own: `executor_id` holds the
    /// container's name, and the others are empty.
    pub struct StatisticsEntry {
        /// The framework.
        required framework_id: String,
        /// The executor.
        required executor_id: String,
        /// The name of the executor.
        required executor_name: String,
        /// Where the executor came from.
        required source: String,
        /// What it uses.
        required statistics: ResourceStatistics,
    }
}

message! {
    /// The answer of `GET /flags`.
    pub struct FlagsPage {
        /// Settings by name, as an operator would write them.
        required flags: BTreeMap<String, String>,
    }
}

message! {
    /// The answer of `GET /state`. Lists that concern frameworks are there and empty, since readers index them.
    pub struct StatePage {
        /// `major.minor.patch`.
        required version: String,
        /// The commit it was built from.
        optional git_sha: String,
        /// The branch it was built from.
        optional git_branch: String,
        /// The tag it was built from.
        optional git_tag: String,
        /// When it was built: `2026-01-31 12:00:00`, UTC.
        optional build_date: String,
        /// When it was built: seconds since the Unix epoch.
        optional build_time: f64,
        /// Who built it.
        optional build_user: String,
        /// When the agent started: seconds since the Unix epoch.
        required start_time: f64,
        /// The agent, by a name that outlives restarts.
        required id: String,
        /// The agent, by the address it listens on.
        required pid: String,
        /// The host.
        required hostname: String,
        /// What the agent can do that older ones could not.
        required capabilities: Vec<String>,
        /// What there is to use: numbers for scalars (`mem` and `disk` in MiB), text for ranges and sets.
        required resources: BTreeMap<String, serde_json::Value>,
        /// What the host is marked with.
        required attributes: BTreeMap<String, serde_json::Value>,
        /// Settings by name, as an operator would write them.
        required flags: BTreeMap<String, String>,
        /// Always empty here.
        required frameworks: Vec<serde_json::Value>,
        /// Always empty here.
        required completed_frameworks: Vec<serde_json::Value>,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_of_a_standalone_container_names_no_executor() {
        let entry = ContainerEntry {
            container_id: "web".into(),
            statistics: Some(ResourceStatistics { timestamp: 1.0, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_value(&entry).unwrap(),
            json!({"container_id": "web", "statistics": {"timestamp": 1.0}}),
        );
    }

    #[test]
    fn lists_that_readers_index_are_there_when_empty() {
        let page = serde_json::to_value(StatePage::default()).unwrap();
        assert_eq!((&page["frameworks"], &page["flags"]), (&json!([]), &json!({})));
    }
}
