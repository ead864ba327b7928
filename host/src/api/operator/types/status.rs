//! How a container stands, and how it ended.

use super::{id::ContainerId, network::NetworkInfo, resource::Resource};

message! {
    /// What isolators know about a running container.
    pub struct ContainerStatus {
        /// The container.
        optional container_id: ContainerId,
        /// Its networks, with the addresses it has there.
        repeated network_infos: NetworkInfo,
        /// What its cgroups say.
        optional cgroup_info: CgroupInfo,
        /// The process id of its first process, in the host's numbering.
        optional executor_pid: u32,
    }
}

message! {
    /// What cgroups say about a container.
    pub struct CgroupInfo {
        /// Its network class.
        optional net_cls: NetCls,
    }
}

message! {
    /// A network class.
    pub struct NetCls {
        /// The handle: primary in the upper, secondary in the lower 16 bits.
        optional classid: u32,
    }
}

message! {
    /// The resources of which a container used more than it may.
    pub struct TaskResourceLimitation {
        /// The resources, with the amounts that were in use.
        repeated resources: Resource,
    }
}

word! {
    /// How a task stands. Containers end as finished, failed or killed.
    pub enum TaskState {
        TaskStaging,
        TaskStarting,
        TaskRunning,
        TaskKilling,
        /// It ended by itself with status 0.
        TaskFinished,
        /// It ended otherwise, or it exceeded a limit.
        #[default]
        TaskFailed,
        /// Somebody ended it.
        TaskKilled,
        TaskError,
        TaskLost,
        TaskDropped,
        TaskUnreachable,
        TaskGone,
        TaskGoneByOperator,
        TaskUnknown,
    }
}

word! {
    /// Why a task stands as it does.
    pub enum Reason {
        ReasonCommandExecutorFailed,
        /// It could not be started.
        ReasonContainerLaunchFailed,
        /// It exceeded a limit that has no word of its own.
        #[default]
        ReasonContainerLimitation,
        /// It wrote more than its `disk`.
        ReasonContainerLimitationDisk,
        /// It needed more than its `mem`.
        ReasonContainerLimitationMemory,
        ReasonContainerPreempted,
        /// Its resources could not be changed.
        ReasonContainerUpdateFailed,
        ReasonMaxCompletionTimeReached,
        ReasonExecutorRegistrationTimeout,
        ReasonExecutorReregistrationTimeout,
        ReasonExecutorTerminated,
        ReasonExecutorUnregistered,
        ReasonFrameworkRemoved,
        ReasonGcError,
        ReasonInvalidFrameworkid,
        ReasonInvalidOffers,
        /// What carries its input and output has gone.
        ReasonIoSwitchboardExited,
        ReasonMasterDisconnected,
        ReasonReconciliation,
        ReasonResourcesUnknown,
        ReasonAgentDisconnected,
        ReasonAgentDraining,
        ReasonAgentRemoved,
        ReasonAgentRemovedByOperator,
        ReasonAgentReregistered,
        ReasonAgentRestarted,
        ReasonAgentUnknown,
        ReasonTaskKilledDuringLaunch,
        ReasonTaskCheckStatusUpdated,
        ReasonTaskHealthCheckStatusUpdated,
        ReasonTaskGroupInvalid,
        ReasonTaskGroupUnauthorized,
        ReasonTaskInvalid,
        ReasonTaskUnauthorized,
        ReasonTaskUnknown,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_of_the_schema_are_spelt_right() {
        for (reason, word) in [
            (Reason::ReasonContainerLimitationMemory, "REASON_CONTAINER_LIMITATION_MEMORY"),
            (Reason::ReasonInvalidFrameworkid, "REASON_INVALID_FRAMEWORKID"),
            (Reason::ReasonIoSwitchboardExited, "REASON_IO_SWITCHBOARD_EXITED"),
            (Reason::ReasonGcError, "REASON_GC_ERROR"),
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), json!(word));
        }
        assert_eq!(
            serde_json::to_value(TaskState::TaskGoneByOperator).unwrap(),
            json!("TASK_GONE_BY_OPERATOR")
        );
    }

    #[test]
    fn a_status_as_isolators_fill_it() {
        let wire = json!({
            "container_id": {"value": "web"},
            "executor_pid": 4242,
            "cgroup_info": {"net_cls": {"classid": 1_048_577}},
            "network_infos": [{"ip_addresses": [{"protocol": "IPv4", "ip_address": "10.1.0.7"}]}],
        });
        let status: ContainerStatus = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(serde_json::to_value(&status).unwrap(), wire);
    }
}
