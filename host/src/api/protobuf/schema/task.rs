//! Frameworks, executors, tasks and their status.

use super::command::COMMAND_INFO;
use super::container::{CONTAINER_INFO, CONTAINER_STATUS, NETWORK_INFO_PROTOCOL};
use super::resource::{ATTRIBUTE, DOMAIN_INFO, OFFER_FILTERS, RESOURCE};
use super::values::{
    AGENT_ID, DURATION_INFO, EXECUTOR_ID, FRAMEWORK_ID, LABELS, TASK_ID, TIME_INFO, VALUE_SCALAR,
};

message! { TASK = "mesos.v1.Task" {
    1 required name: String,
    2 required task_id: message TASK_ID,
    3 required framework_id: message FRAMEWORK_ID,
    4 optional executor_id: message EXECUTOR_ID,
    5 required agent_id: message AGENT_ID,
    6 required state: enum TASK_STATE,
    7 repeated resources: message RESOURCE,
    8 repeated statuses: message TASK_STATUS,
    9 optional status_update_state: enum TASK_STATE,
    10 optional status_update_uuid: Bytes,
    11 optional labels: message LABELS,
    12 optional discovery: message DISCOVERY_INFO,
    13 optional container: message CONTAINER_INFO,
    14 optional user: String,
    15 optional health_check: message HEALTH_CHECK,
    16 optional kill_policy: message KILL_POLICY,
    17 map limits: message VALUE_SCALAR,
} }

enumeration! { TASK_STATE = "mesos.v1.TaskState" {
    TASK_STAGING = 6,
    TASK_STARTING = 0,
    TASK_RUNNING = 1,
    TASK_KILLING = 8,
    TASK_FINISHED = 2,
    TASK_FAILED = 3,
    TASK_KILLED = 4,
    TASK_ERROR = 7,
    TASK_LOST = 5,
    TASK_DROPPED = 9,
    TASK_UNREACHABLE = 10,
    TASK_GONE = 11,
    TASK_GONE_BY_OPERATOR = 12,
    TASK_UNKNOWN = 13,
} }

message! { TASK_STATUS = "mesos.v1.TaskStatus" {
    1 required task_id: message TASK_ID,
    2 required state: enum TASK_STATE,
    3 optional data: Bytes,
    4 optional message: String,
    5 optional agent_id: message AGENT_ID,
    6 optional timestamp: Double,
    7 optional executor_id: message EXECUTOR_ID,
    8 optional healthy: Bool,
    9 optional source: enum TASK_STATUS_SOURCE,
    10 optional reason: enum TASK_STATUS_REASON,
    11 optional uuid: Bytes,
    12 optional labels: message LABELS,
    13 optional container_status: message CONTAINER_STATUS,
    14 optional unreachable_time: message TIME_INFO,
    15 optional check_status: message CHECK_STATUS_INFO,
    16 optional limitation: message TASK_RESOURCE_LIMITATION,
} }

enumeration! { TASK_STATUS_SOURCE = "mesos.v1.TaskStatus.Source" {
    SOURCE_MASTER = 0,
    SOURCE_AGENT = 1,
    SOURCE_EXECUTOR = 2,
} }

enumeration! { TASK_STATUS_REASON = "mesos.v1.TaskStatus.Reason" {
    REASON_COMMAND_EXECUTOR_FAILED = 0,
    REASON_CONTAINER_LAUNCH_FAILED = 21,
    REASON_CONTAINER_LIMITATION = 19,
    REASON_CONTAINER_LIMITATION_DISK = 20,
    REASON_CONTAINER_LIMITATION_MEMORY = 8,
    REASON_CONTAINER_PREEMPTED = 17,
    REASON_CONTAINER_UPDATE_FAILED = 22,
    REASON_MAX_COMPLETION_TIME_REACHED = 33,
    REASON_EXECUTOR_REGISTRATION_TIMEOUT = 23,
    REASON_EXECUTOR_REREGISTRATION_TIMEOUT = 24,
    REASON_EXECUTOR_TERMINATED = 1,
    REASON_EXECUTOR_UNREGISTERED = 2,
    REASON_FRAMEWORK_REMOVED = 3,
    REASON_GC_ERROR = 4,
    REASON_INVALID_FRAMEWORKID = 5,
    REASON_INVALID_OFFERS = 6,
    REASON_IO_SWITCHBOARD_EXITED = 27,
    REASON_MASTER_DISCONNECTED = 7,
    REASON_RECONCILIATION = 9,
    REASON_RESOURCES_UNKNOWN = 18,
    REASON_AGENT_DISCONNECTED = 10,
    REASON_AGENT_DRAINING = 34,
    REASON_AGENT_REMOVED = 11,
    REASON_AGENT_REMOVED_BY_OPERATOR = 31,
    REASON_AGENT_REREGISTERED = 32,
    REASON_AGENT_RESTARTED = 12,
    REASON_AGENT_UNKNOWN = 13,
    REASON_TASK_KILLED_DURING_LAUNCH = 30,
    REASON_TASK_CHECK_STATUS_UPDATED = 28,
    REASON_TASK_HEALTH_CHECK_STATUS_UPDATED = 29,
    REASON_TASK_GROUP_INVALID = 25,
    REASON_TASK_GROUP_UNAUTHORIZED = 26,
    REASON_TASK_INVALID = 14,
    REASON_TASK_UNAUTHORIZED = 15,
    REASON_TASK_UNKNOWN = 16,
} }

message! { CHECK_STATUS_INFO = "mesos.v1.CheckStatusInfo" {
    1 optional type: enum CHECK_INFO_TYPE,
    2 optional command: message CHECK_STATUS_INFO_COMMAND,
    3 optional http: message CHECK_STATUS_INFO_HTTP,
    4 optional tcp: message CHECK_STATUS_INFO_TCP,
} }

enumeration! { CHECK_INFO_TYPE = "mesos.v1.CheckInfo.Type" {
    UNKNOWN = 0,
    COMMAND = 1,
    HTTP = 2,
    TCP = 3,
} }

message! { CHECK_STATUS_INFO_COMMAND = "mesos.v1.CheckStatusInfo.Command" {
    1 optional exit_code: Int32,
} }

message! { CHECK_STATUS_INFO_HTTP = "mesos.v1.CheckStatusInfo.Http" {
    1 optional status_code: Uint32,
} }

message! { CHECK_STATUS_INFO_TCP = "mesos.v1.CheckStatusInfo.Tcp" {
    1 optional succeeded: Bool,
} }

message! { TASK_RESOURCE_LIMITATION = "mesos.v1.TaskResourceLimitation" {
    1 repeated resources: message RESOURCE,
} }

message! { DISCOVERY_INFO = "mesos.v1.DiscoveryInfo" {
    1 required visibility: enum DISCOVERY_INFO_VISIBILITY,
    2 optional name: String,
    3 optional environment: String,
    4 optional location: String,
    5 optional version: String,
    6 optional ports: message PORTS,
    7 optional labels: message LABELS,
} }

enumeration! { DISCOVERY_INFO_VISIBILITY = "mesos.v1.DiscoveryInfo.Visibility" {
    FRAMEWORK = 0,
    CLUSTER = 1,
    EXTERNAL = 2,
} }

message! { PORTS = "mesos.v1.Ports" {
    1 repeated ports: message PORT,
} }

message! { PORT = "mesos.v1.Port" {
    1 required number: Uint32,
    2 optional name: String,
    3 optional protocol: String,
    4 optional visibility: enum DISCOVERY_INFO_VISIBILITY,
    5 optional labels: message LABELS,
} }

message! { HEALTH_CHECK = "mesos.v1.HealthCheck" {
    1 optional http: message HEALTH_CHECK_HTTPCHECK_INFO,
    2 optional delay_seconds: Double,
    3 optional interval_seconds: Double,
    4 optional timeout_seconds: Double,
    5 optional consecutive_failures: Uint32,
    6 optional grace_period_seconds: Double,
    7 optional command: message COMMAND_INFO,
    8 optional type: enum HEALTH_CHECK_TYPE,
    9 optional tcp: message HEALTH_CHECK_TCPCHECK_INFO,
} }

enumeration! { HEALTH_CHECK_TYPE = "mesos.v1.HealthCheck.Type" {
    UNKNOWN = 0,
    COMMAND = 1,
    HTTP = 2,
    TCP = 3,
} }

message! { HEALTH_CHECK_HTTPCHECK_INFO = "mesos.v1.HealthCheck.HTTPCheckInfo" {
    1 required port: Uint32,
    2 optional path: String,
    3 optional scheme: String,
    4 repeated statuses: Uint32,
    5 optional protocol: enum NETWORK_INFO_PROTOCOL,
} }

message! { HEALTH_CHECK_TCPCHECK_INFO = "mesos.v1.HealthCheck.TCPCheckInfo" {
    1 required port: Uint32,
    2 optional protocol: enum NETWORK_INFO_PROTOCOL,
} }

message! { KILL_POLICY = "mesos.v1.KillPolicy" {
    1 optional grace_period: message DURATION_INFO,
} }

message! { EXECUTOR_INFO = "mesos.v1.ExecutorInfo" {
    1 required executor_id: message EXECUTOR_ID,
    4 optional data: Bytes,
    5 repeated resources: message RESOURCE,
    7 optional command: message COMMAND_INFO,
    8 optional framework_id: message FRAMEWORK_ID,
    9 optional name: String,
    10 optional source: String,
    11 optional container: message CONTAINER_INFO,
    12 optional discovery: message DISCOVERY_INFO,
    13 optional shutdown_grace_period: message DURATION_INFO,
    14 optional labels: message LABELS,
    15 optional type: enum EXECUTOR_INFO_TYPE,
} }

enumeration! { EXECUTOR_INFO_TYPE = "mesos.v1.ExecutorInfo.Type" {
    UNKNOWN = 0,
    DEFAULT = 1,
    CUSTOM = 2,
} }

message! { FRAMEWORK_INFO = "mesos.v1.FrameworkInfo" {
    1 required user: String,
    2 required name: String,
    3 optional id: message FRAMEWORK_ID,
    4 optional failover_timeout: Double,
    5 optional checkpoint: Bool,
    6 optional role: String,
    7 optional hostname: String,
    8 optional principal: String,
    9 optional webui_url: String,
    10 repeated capabilities: message FRAMEWORK_INFO_CAPABILITY,
    11 optional labels: message LABELS,
    12 repeated roles: String,
    13 map offer_filters: message OFFER_FILTERS,
} }

message! { FRAMEWORK_INFO_CAPABILITY = "mesos.v1.FrameworkInfo.Capability" {
    1 optional type: enum FRAMEWORK_INFO_CAPABILITY_TYPE,
} }

enumeration! { FRAMEWORK_INFO_CAPABILITY_TYPE = "mesos.v1.FrameworkInfo.Capability.Type" {
    UNKNOWN = 0,
    REVOCABLE_RESOURCES = 1,
    TASK_KILLING_STATE = 2,
    GPU_RESOURCES = 3,
    SHARED_RESOURCES = 4,
    PARTITION_AWARE = 5,
    MULTI_ROLE = 6,
    RESERVATION_REFINEMENT = 7,
    REGION_AWARE = 8,
} }

message! { TASK_INFO = "mesos.v1.TaskInfo" {
    1 required name: String,
    2 required task_id: message TASK_ID,
    3 required agent_id: message AGENT_ID,
    4 repeated resources: message RESOURCE,
    5 optional executor: message EXECUTOR_INFO,
    6 optional data: Bytes,
    7 optional command: message COMMAND_INFO,
    8 optional health_check: message HEALTH_CHECK,
    9 optional container: message CONTAINER_INFO,
    10 optional labels: message LABELS,
    11 optional discovery: message DISCOVERY_INFO,
    12 optional kill_policy: message KILL_POLICY,
    13 optional check: message CHECK_INFO,
    14 optional max_completion_time: message DURATION_INFO,
    15 map limits: message VALUE_SCALAR,
} }

message! { CHECK_INFO = "mesos.v1.CheckInfo" {
    1 optional type: enum CHECK_INFO_TYPE,
    2 optional command: message CHECK_INFO_COMMAND,
    3 optional http: message CHECK_INFO_HTTP,
    4 optional delay_seconds: Double,
    5 optional interval_seconds: Double,
    6 optional timeout_seconds: Double,
    7 optional tcp: message CHECK_INFO_TCP,
} }

message! { CHECK_INFO_COMMAND = "mesos.v1.CheckInfo.Command" {
    1 required command: message COMMAND_INFO,
} }

message! { CHECK_INFO_HTTP = "mesos.v1.CheckInfo.Http" {
    1 required port: Uint32,
    2 optional path: String,
} }

message! { CHECK_INFO_TCP = "mesos.v1.CheckInfo.Tcp" {
    1 required port: Uint32,
} }

message! { AGENT_INFO = "mesos.v1.AgentInfo" {
    1 required hostname: String,
    3 repeated resources: message RESOURCE,
    5 repeated attributes: message ATTRIBUTE,
    6 optional id: message AGENT_ID,
    8 optional port: Int32,
    10 optional domain: message DOMAIN_INFO,
} }

message! { TASK_GROUP_INFO = "mesos.v1.TaskGroupInfo" {
    1 repeated tasks: message TASK_INFO,
} }
