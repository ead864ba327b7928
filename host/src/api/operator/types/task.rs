//! Frameworks, executors and tasks.
//!
//! `FrameworkInfo`, `ExecutorInfo` and `TaskInfo` are passed on as they were sent, with fields that this agent does not
//! know. The types here have the fields that it needs.

use serde_json::Value as Json;

use super::{
    bytes::Bytes,
    command::CommandInfo,
    container::ContainerInfo,
    id::{ContainerId, ExecutorId, FrameworkId, TaskId},
    resource::{Resource, Scalar},
    wire::DurationInfo,
};

message! {
    /// Launches a task, and its executor if that is not running.
    pub struct LaunchTask {
        /// Its framework: [`FrameworkInfo`].
        required framework_info: Json,
        /// The task: [`TaskInfo`].
        required task_info: Json,
        /// Its executor, as `task_info.executor`: [`ExecutorInfo`].
        optional executor_info: Json,
    }
}

message! {
    /// Launches tasks that are delivered to their executor as a group.
    pub struct LaunchTaskGroup {
        /// Their framework: [`FrameworkInfo`].
        required framework_info: Json,
        /// Their executor: [`ExecutorInfo`]; one of the agent's when absent.
        optional executor_info: Json,
        /// The tasks.
        required task_group: TaskGroup,
    }
}

message! {
    /// A group of tasks.
    pub struct TaskGroup {
        /// The tasks: [`TaskInfo`].
        repeated tasks: Json,
    }
}

message! {
    /// Asks for the end of a task.
    pub struct KillTask {
        /// Its framework. May be absent if only one framework has such a task.
        optional framework_id: FrameworkId,
        /// The task.
        required task_id: TaskId,
        /// How it is killed: `KillPolicy`, verbatim.
        optional kill_policy: Json,
    }
}

message! {
    /// Asks for the end of an executor and its tasks.
    pub struct ShutdownExecutor {
        /// Its framework.
        required framework_id: FrameworkId,
        /// The executor.
        required executor_id: ExecutorId,
    }
}

message! {
    /// Sends a message to an executor. It is not stored.
    pub struct MessageExecutor {
        /// Its framework.
        required framework_id: FrameworkId,
        /// The executor.
        required executor_id: ExecutorId,
        /// The message.
        required data: Bytes,
    }
}

message! {
    /// Streams status updates.
    pub struct SubscribeStatusUpdates {
        /// Whose tasks; all when absent.
        optional framework_id: FrameworkId,
    }
}

message! {
    /// Acknowledges a status update.
    pub struct AcknowledgeStatusUpdate {
        /// The framework of the task.
        required framework_id: FrameworkId,
        /// The task.
        required task_id: TaskId,
        /// Which update: `uuid` of its status.
        required uuid: Bytes,
    }
}

message! {
    /// A framework.
    pub struct FrameworkInfo {
        /// Its id. Required, as there is no master that chooses one.
        optional id: FrameworkId,
        /// Its name.
        required name: String,
        /// User of its executors and tasks; that of the agent when empty.
        required user: String,
        /// Whether its executors survive the agent; false when absent.
        optional checkpoint: bool,
        /// What it can handle.
        repeated capabilities: FrameworkCapability,
    }
}

message! {
    /// Something that a framework can handle.
    pub struct FrameworkCapability {
        /// Such as `PARTITION_AWARE`; a number if it is newer than what this agent knows.
        #[serde(rename = "type")]
        required kind: Json,
    }
}

message! {
    /// An executor.
    pub struct ExecutorInfo {
        /// `DEFAULT` for that of the agent; `CUSTOM` or absent for one of the framework.
        #[serde(rename = "type")]
        optional kind: String,
        /// Its id.
        required executor_id: ExecutorId,
        /// Its command, required for a custom one.
        optional command: CommandInfo,
        /// Its container.
        optional container: ContainerInfo,
        /// What it uses itself.
        repeated resources: Resource,
        /// Its name, for people.
        optional name: String,
        /// How long it may take to shut down.
        optional shutdown_grace_period: DurationInfo,
    }
}

message! {
    /// A task.
    pub struct TaskInfo {
        /// Its name, for people.
        required name: String,
        /// Its id.
        required task_id: TaskId,
        /// Its resources.
        repeated resources: Resource,
        /// Its limits.
        map limits: Scalar,
        /// Its executor. Excludes `command`.
        optional executor: ExecutorInfo,
        /// Its command, which an executor of the agent runs. Excludes `executor`.
        optional command: CommandInfo,
        /// Its container.
        optional container: ContainerInfo,
    }
}

message! {
    /// A message of the stream of SUBSCRIBE_STATUS_UPDATES.
    pub struct UpdateEvent {
        /// `SUBSCRIBED`, `STATUS_UPDATE`, `FRAMEWORK_MESSAGE` or `HEARTBEAT`.
        #[serde(rename = "type")]
        required kind: String,
        /// Body of the first message.
        optional subscribed: Json,
        /// A status update.
        optional status_update: StatusUpdate,
        /// A message of an executor to its framework.
        optional framework_message: FrameworkMessage,
    }
}

message! {
    /// A status update of a task.
    pub struct StatusUpdate {
        /// Its framework.
        required framework_id: FrameworkId,
        /// Its executor.
        required executor_id: ExecutorId,
        /// The container of the executor.
        required container_id: ContainerId,
        /// `TaskStatus`.
        required status: Json,
        /// The last known state of the task.
        required latest_state: String,
    }
}

message! {
    /// A message of an executor to its framework.
    pub struct FrameworkMessage {
        /// The framework.
        required framework_id: FrameworkId,
        /// The executor.
        required executor_id: ExecutorId,
        /// The message.
        required data: Bytes,
    }
}
