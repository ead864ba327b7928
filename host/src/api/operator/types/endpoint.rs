//! Responses of the GET endpoints.

use std::collections::BTreeMap;

use super::{statistics::ResourceStatistics, status::ContainerStatus};

message! {
    /// An entry of the array of `GET /containers`.
    pub struct ContainerEntry {
        /// Name of the container, without those of its ancestors.
        required container_id: String,
        /// Names of its ancestors, outermost first. Extension.
        repeated parents: String,
        /// Its status.
        optional status: ContainerStatus,
        /// Its resource usage; absent if it is not running.
        optional statistics: ResourceStatistics,
        /// Id of its framework, if it is that of an executor.
        optional framework_id: String,
        /// Id of its executor.
        optional executor_id: String,
        /// Name of its executor.
        optional executor_name: String,
        /// Source of its executor.
        optional source: String,
    }
}

message! {
    /// An entry of the array of `GET /monitor/statistics`.
    ///
    /// Collectors expect all four names. For a container that is not of an executor, `executor_id` is the name of the
    /// container and the others are empty.
    pub struct StatisticsEntry {
        /// Id of the framework.
        required framework_id: String,
        /// Id of the executor.
        required executor_id: String,
        /// Name of the executor.
        required executor_name: String,
        /// Source of the executor.
        required source: String,
        /// Its resource usage.
        required statistics: ResourceStatistics,
    }
}

message! {
    /// The response of `GET /flags`.
    pub struct FlagsPage {
        /// Settings by name, formatted as in a configuration file.
        required flags: BTreeMap<String, String>,
    }
}

message! {
    /// The response of `GET /state`. Empty lists are present, as clients index them.
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
        /// The user who built it.
        optional build_user: String,
        /// When the agent started: seconds since the Unix epoch.
        required start_time: f64,
        /// Id of the agent, the same after a restart.
        required id: String,
        /// Address that the agent listens on.
        required pid: String,
        /// Name of the host.
        required hostname: String,
        /// Optional features of the agent.
        required capabilities: Vec<String>,
        /// Resources of the host: numbers for scalars (`mem` and `disk` in MiB), text for ranges and sets.
        required resources: BTreeMap<String, serde_json::Value>,
        /// Attributes of the host.
        required attributes: BTreeMap<String, serde_json::Value>,
        /// Settings by name, formatted as in a configuration file.
        required flags: BTreeMap<String, String>,
        /// Frameworks with executors that have not ended.
        required frameworks: Vec<serde_json::Value>,
        /// Frameworks of which all executors have ended.
        required completed_frameworks: Vec<serde_json::Value>,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_of_a_standalone_container_has_no_executor() {
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
    fn empty_lists_are_present() {
        let page = serde_json::to_value(StatePage::default()).unwrap();
        assert_eq!((&page["frameworks"], &page["flags"]), (&json!([]), &json!({})));
    }
}
