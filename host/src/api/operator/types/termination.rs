//! How a container ended.

use super::resource::Resource;

message! {
    /// How a container ended. Empty if nothing is known except that it has ended.
    pub struct Termination {
        /// Raw status of wait(2): 256 for exit 1, 9 for SIGKILL.
        optional exit_status: i32,
        /// State, if the command did not exit by itself.
        optional state: TaskState,
        /// Why it was ended, if the command did not exit by itself.
        optional reason: Reason,
        /// Resources whose limit was exceeded.
        optional limitation: TaskResourceLimitation,
        /// Explanation for people.
        optional message: String,
    }
}

message! {
    /// Resources whose limit was exceeded.
    pub struct TaskResourceLimitation {
        /// The resources, with their usage at the time.
        repeated resources: Resource,
    }
}

word! {
    /// State of a task. A container ends as finished, failed or killed.
    pub enum TaskState {
        TaskStaging,
        TaskStarting,
        TaskRunning,
        TaskKilling,
        /// Exited with status 0.
        TaskFinished,
        /// Exited with another status, or exceeded a limit.
        #[default]
        TaskFailed,
        /// Killed on request.
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
    /// Reason for a state.
    pub enum Reason {
        ReasonCommandExecutorFailed,
        /// The launch failed.
        ReasonContainerLaunchFailed,
        /// A limit was exceeded for which there is no reason of its own.
        #[default]
        ReasonContainerLimitation,
        /// The limit of `disk` was exceeded.
        ReasonContainerLimitationDisk,
        /// The limit of `mem` was exceeded.
        ReasonContainerLimitationMemory,
        ReasonContainerPreempted,
        /// Its resources could not be updated.
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
        /// The process that carries its input and output exited.
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
    fn enum_values_have_the_names_of_mesos() {
        for (reason, name) in [
            (Reason::ReasonContainerLimitationMemory, "REASON_CONTAINER_LIMITATION_MEMORY"),
            (Reason::ReasonInvalidFrameworkid, "REASON_INVALID_FRAMEWORKID"),
            (Reason::ReasonIoSwitchboardExited, "REASON_IO_SWITCHBOARD_EXITED"),
            (Reason::ReasonGcError, "REASON_GC_ERROR"),
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), json!(name));
        }
        assert_eq!(
            serde_json::to_value(TaskState::TaskGoneByOperator).unwrap(),
            json!("TASK_GONE_BY_OPERATOR")
        );
    }
}
