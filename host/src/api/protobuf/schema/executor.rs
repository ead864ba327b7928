//! The executor API: `mesos.v1.executor`.

use super::task::{
    AGENT_INFO, EXECUTOR_INFO, FRAMEWORK_INFO, KILL_POLICY, TASK_GROUP_INFO, TASK_INFO, TASK_STATUS,
};
use super::values::{CONTAINER_ID, EXECUTOR_ID, FRAMEWORK_ID, TASK_ID};

message! { CALL = "mesos.v1.executor.Call" {
    1 required executor_id: message EXECUTOR_ID,
    2 required framework_id: message FRAMEWORK_ID,
    3 optional type: enum CALL_TYPE,
    4 optional subscribe: message CALL_SUBSCRIBE,
    5 optional update: message CALL_UPDATE,
    6 optional message: message CALL_MESSAGE,
} }

enumeration! { CALL_TYPE = "mesos.v1.executor.Call.Type" {
    UNKNOWN = 0,
    SUBSCRIBE = 1,
    UPDATE = 2,
    MESSAGE = 3,
    HEARTBEAT = 4,
} }

message! { CALL_SUBSCRIBE = "mesos.v1.executor.Call.Subscribe" {
    1 repeated unacknowledged_tasks: message TASK_INFO,
    2 repeated unacknowledged_updates: message CALL_UPDATE,
} }

message! { CALL_UPDATE = "mesos.v1.executor.Call.Update" {
    1 required status: message TASK_STATUS,
} }

message! { CALL_MESSAGE = "mesos.v1.executor.Call.Message" {
    2 required data: Bytes,
} }

message! { EVENT = "mesos.v1.executor.Event" {
    1 optional type: enum EVENT_TYPE,
    2 optional subscribed: message EVENT_SUBSCRIBED,
    3 optional acknowledged: message EVENT_ACKNOWLEDGED,
    4 optional launch: message EVENT_LAUNCH,
    5 optional kill: message EVENT_KILL,
    6 optional message: message EVENT_MESSAGE,
    7 optional error: message EVENT_ERROR,
    8 optional launch_group: message EVENT_LAUNCH_GROUP,
} }

enumeration! { EVENT_TYPE = "mesos.v1.executor.Event.Type" {
    UNKNOWN = 0,
    SUBSCRIBED = 1,
    LAUNCH = 2,
    LAUNCH_GROUP = 8,
    KILL = 3,
    ACKNOWLEDGED = 4,
    MESSAGE = 5,
    ERROR = 6,
    SHUTDOWN = 7,
    HEARTBEAT = 9,
} }

message! { EVENT_SUBSCRIBED = "mesos.v1.executor.Event.Subscribed" {
    1 required executor_info: message EXECUTOR_INFO,
    2 required framework_info: message FRAMEWORK_INFO,
    3 required agent_info: message AGENT_INFO,
    4 optional container_id: message CONTAINER_ID,
} }

message! { EVENT_ACKNOWLEDGED = "mesos.v1.executor.Event.Acknowledged" {
    1 required task_id: message TASK_ID,
    2 required uuid: Bytes,
} }

message! { EVENT_LAUNCH = "mesos.v1.executor.Event.Launch" {
    1 required task: message TASK_INFO,
} }

message! { EVENT_LAUNCH_GROUP = "mesos.v1.executor.Event.LaunchGroup" {
    1 required task_group: message TASK_GROUP_INFO,
} }

message! { EVENT_KILL = "mesos.v1.executor.Event.Kill" {
    1 required task_id: message TASK_ID,
    2 optional kill_policy: message KILL_POLICY,
} }

message! { EVENT_MESSAGE = "mesos.v1.executor.Event.Message" {
    1 required data: Bytes,
} }

message! { EVENT_ERROR = "mesos.v1.executor.Event.Error" {
    1 required message: String,
} }
