//! The operator API: `mesos.v1.agent`.

use super::command::COMMAND_INFO;
use super::container::{CONTAINER_INFO, CONTAINER_STATUS, IMAGE, TTYINFO};
use super::resource::RESOURCE;
use super::statistics::RESOURCE_STATISTICS;
use super::task::{
    AGENT_INFO, EXECUTOR_INFO, FRAMEWORK_INFO, TASK, TASK_RESOURCE_LIMITATION, TASK_STATE, TASK_STATUS_REASON,
};
use super::values::{
    CONTAINER_ID, DURATION_INFO, EXECUTOR_ID, FILE_INFO, FLAG, FRAMEWORK_ID, METRIC, VALUE_SCALAR,
    VERSION_INFO,
};

message! { CALL = "mesos.v1.agent.Call" {
    1 optional type: enum CALL_TYPE,
    2 optional get_metrics: message CALL_GET_METRICS,
    3 optional set_logging_level: message CALL_SET_LOGGING_LEVEL,
    4 optional list_files: message CALL_LIST_FILES,
    5 optional read_file: message CALL_READ_FILE,
    6 optional launch_nested_container: message CALL_LAUNCH_NESTED_CONTAINER,
    7 optional wait_nested_container: message CALL_WAIT_NESTED_CONTAINER,
    8 optional kill_nested_container: message CALL_KILL_NESTED_CONTAINER,
    9 optional launch_nested_container_session: message CALL_LAUNCH_NESTED_CONTAINER_SESSION,
    10 optional attach_container_input: message CALL_ATTACH_CONTAINER_INPUT,
    11 optional attach_container_output: message CALL_ATTACH_CONTAINER_OUTPUT,
    12 optional remove_nested_container: message CALL_REMOVE_NESTED_CONTAINER,
    13 optional launch_container: message CALL_LAUNCH_CONTAINER,
    14 optional wait_container: message CALL_WAIT_CONTAINER,
    15 optional kill_container: message CALL_KILL_CONTAINER,
    16 optional remove_container: message CALL_REMOVE_CONTAINER,
    20 optional get_containers: message CALL_GET_CONTAINERS,
    21 optional prune_images: message CALL_PRUNE_IMAGES,
} }

enumeration! { CALL_TYPE = "mesos.v1.agent.Call.Type" {
    UNKNOWN = 0,
    GET_HEALTH = 1,
    GET_FLAGS = 2,
    GET_VERSION = 3,
    GET_METRICS = 4,
    GET_LOGGING_LEVEL = 5,
    SET_LOGGING_LEVEL = 6,
    LIST_FILES = 7,
    READ_FILE = 8,
    GET_STATE = 9,
    GET_CONTAINERS = 10,
    GET_FRAMEWORKS = 11,
    GET_EXECUTORS = 12,
    GET_OPERATIONS = 31,
    GET_TASKS = 13,
    GET_AGENT = 20,
    GET_RESOURCE_PROVIDERS = 26,
    LAUNCH_NESTED_CONTAINER = 14,
    WAIT_NESTED_CONTAINER = 15,
    KILL_NESTED_CONTAINER = 16,
    REMOVE_NESTED_CONTAINER = 21,
    LAUNCH_NESTED_CONTAINER_SESSION = 17,
    ATTACH_CONTAINER_INPUT = 18,
    ATTACH_CONTAINER_OUTPUT = 19,
    LAUNCH_CONTAINER = 22,
    WAIT_CONTAINER = 23,
    KILL_CONTAINER = 24,
    REMOVE_CONTAINER = 25,
    ADD_RESOURCE_PROVIDER_CONFIG = 27,
    UPDATE_RESOURCE_PROVIDER_CONFIG = 28,
    REMOVE_RESOURCE_PROVIDER_CONFIG = 29,
    MARK_RESOURCE_PROVIDER_GONE = 32,
    PRUNE_IMAGES = 30,
} }

message! { CALL_GET_METRICS = "mesos.v1.agent.Call.GetMetrics" {
    1 optional timeout: message DURATION_INFO,
} }

message! { CALL_SET_LOGGING_LEVEL = "mesos.v1.agent.Call.SetLoggingLevel" {
    1 required level: Uint32,
    2 required duration: message DURATION_INFO,
} }

message! { CALL_LIST_FILES = "mesos.v1.agent.Call.ListFiles" {
    1 required path: String,
} }

message! { CALL_READ_FILE = "mesos.v1.agent.Call.ReadFile" {
    1 required path: String,
    2 required offset: Uint64,
    3 optional length: Uint64,
} }

message! { CALL_GET_CONTAINERS = "mesos.v1.agent.Call.GetContainers" {
    1 optional show_nested: Bool,
    2 optional show_standalone: Bool,
} }

message! { CALL_LAUNCH_NESTED_CONTAINER = "mesos.v1.agent.Call.LaunchNestedContainer" {
    1 required container_id: message CONTAINER_ID,
    2 optional command: message COMMAND_INFO,
    3 optional container: message CONTAINER_INFO,
} }

message! { CALL_WAIT_NESTED_CONTAINER = "mesos.v1.agent.Call.WaitNestedContainer" {
    1 required container_id: message CONTAINER_ID,
} }

message! { CALL_KILL_NESTED_CONTAINER = "mesos.v1.agent.Call.KillNestedContainer" {
    1 required container_id: message CONTAINER_ID,
    2 optional signal: Int32,
} }

message! { CALL_REMOVE_NESTED_CONTAINER = "mesos.v1.agent.Call.RemoveNestedContainer" {
    1 required container_id: message CONTAINER_ID,
} }

message! { CALL_LAUNCH_NESTED_CONTAINER_SESSION = "mesos.v1.agent.Call.LaunchNestedContainerSession" {
    1 required container_id: message CONTAINER_ID,
    2 optional command: message COMMAND_INFO,
    3 optional container: message CONTAINER_INFO,
} }

message! { CALL_ATTACH_CONTAINER_INPUT = "mesos.v1.agent.Call.AttachContainerInput" {
    1 optional type: enum CALL_ATTACH_CONTAINER_INPUT_TYPE,
    2 optional container_id: message CONTAINER_ID,
    3 optional process_io: message PROCESS_IO,
} }

enumeration! { CALL_ATTACH_CONTAINER_INPUT_TYPE = "mesos.v1.agent.Call.AttachContainerInput.Type" {
    UNKNOWN = 0,
    CONTAINER_ID = 1,
    PROCESS_IO = 2,
} }

message! { PROCESS_IO = "mesos.v1.agent.ProcessIO" {
    1 optional type: enum PROCESS_IO_TYPE,
    2 optional data: message PROCESS_IO_DATA,
    3 optional control: message PROCESS_IO_CONTROL,
} }

enumeration! { PROCESS_IO_TYPE = "mesos.v1.agent.ProcessIO.Type" {
    UNKNOWN = 0,
    DATA = 1,
    CONTROL = 2,
} }

message! { PROCESS_IO_DATA = "mesos.v1.agent.ProcessIO.Data" {
    1 optional type: enum PROCESS_IO_DATA_TYPE,
    2 optional data: Bytes,
} }

enumeration! { PROCESS_IO_DATA_TYPE = "mesos.v1.agent.ProcessIO.Data.Type" {
    UNKNOWN = 0,
    STDIN = 1,
    STDOUT = 2,
    STDERR = 3,
} }

message! { PROCESS_IO_CONTROL = "mesos.v1.agent.ProcessIO.Control" {
    1 optional type: enum PROCESS_IO_CONTROL_TYPE,
    2 optional tty_info: message TTYINFO,
    3 optional heartbeat: message PROCESS_IO_CONTROL_HEARTBEAT,
} }

enumeration! { PROCESS_IO_CONTROL_TYPE = "mesos.v1.agent.ProcessIO.Control.Type" {
    UNKNOWN = 0,
    TTY_INFO = 1,
    HEARTBEAT = 2,
} }

message! { PROCESS_IO_CONTROL_HEARTBEAT = "mesos.v1.agent.ProcessIO.Control.Heartbeat" {
    1 optional interval: message DURATION_INFO,
} }

message! { CALL_ATTACH_CONTAINER_OUTPUT = "mesos.v1.agent.Call.AttachContainerOutput" {
    1 required container_id: message CONTAINER_ID,
} }

message! { CALL_LAUNCH_CONTAINER = "mesos.v1.agent.Call.LaunchContainer" {
    1 required container_id: message CONTAINER_ID,
    2 optional command: message COMMAND_INFO,
    3 repeated resources: message RESOURCE,
    4 optional container: message CONTAINER_INFO,
    5 map limits: message VALUE_SCALAR,
} }

message! { CALL_WAIT_CONTAINER = "mesos.v1.agent.Call.WaitContainer" {
    1 required container_id: message CONTAINER_ID,
} }

message! { CALL_KILL_CONTAINER = "mesos.v1.agent.Call.KillContainer" {
    1 required container_id: message CONTAINER_ID,
    2 optional signal: Int32,
} }

message! { CALL_REMOVE_CONTAINER = "mesos.v1.agent.Call.RemoveContainer" {
    1 required container_id: message CONTAINER_ID,
} }

message! { CALL_PRUNE_IMAGES = "mesos.v1.agent.Call.PruneImages" {
    1 repeated excluded_images: message IMAGE,
} }

message! { RESPONSE = "mesos.v1.agent.Response" {
    1 optional type: enum RESPONSE_TYPE,
    2 optional get_health: message RESPONSE_GET_HEALTH,
    3 optional get_flags: message RESPONSE_GET_FLAGS,
    4 optional get_version: message RESPONSE_GET_VERSION,
    5 optional get_metrics: message RESPONSE_GET_METRICS,
    6 optional get_logging_level: message RESPONSE_GET_LOGGING_LEVEL,
    7 optional list_files: message RESPONSE_LIST_FILES,
    8 optional read_file: message RESPONSE_READ_FILE,
    9 optional get_state: message RESPONSE_GET_STATE,
    10 optional get_containers: message RESPONSE_GET_CONTAINERS,
    11 optional get_frameworks: message RESPONSE_GET_FRAMEWORKS,
    12 optional get_executors: message RESPONSE_GET_EXECUTORS,
    13 optional get_tasks: message RESPONSE_GET_TASKS,
    14 optional wait_nested_container: message RESPONSE_WAIT_NESTED_CONTAINER,
    15 optional get_agent: message RESPONSE_GET_AGENT,
    16 optional wait_container: message RESPONSE_WAIT_CONTAINER,
    17 optional get_resource_providers: message RESPONSE_GET_RESOURCE_PROVIDERS,
    18 optional get_operations: message RESPONSE_GET_OPERATIONS,
} }

enumeration! { RESPONSE_TYPE = "mesos.v1.agent.Response.Type" {
    UNKNOWN = 0,
    GET_HEALTH = 1,
    GET_FLAGS = 2,
    GET_VERSION = 3,
    GET_METRICS = 4,
    GET_LOGGING_LEVEL = 5,
    LIST_FILES = 6,
    READ_FILE = 7,
    GET_STATE = 8,
    GET_CONTAINERS = 9,
    GET_FRAMEWORKS = 10,
    GET_EXECUTORS = 11,
    GET_OPERATIONS = 17,
    GET_TASKS = 12,
    GET_AGENT = 14,
    GET_RESOURCE_PROVIDERS = 16,
    WAIT_NESTED_CONTAINER = 13,
    WAIT_CONTAINER = 15,
} }

message! { RESPONSE_GET_HEALTH = "mesos.v1.agent.Response.GetHealth" {
    1 required healthy: Bool,
} }

message! { RESPONSE_GET_FLAGS = "mesos.v1.agent.Response.GetFlags" {
    1 repeated flags: message FLAG,
} }

message! { RESPONSE_GET_VERSION = "mesos.v1.agent.Response.GetVersion" {
    1 required version_info: message VERSION_INFO,
} }

message! { RESPONSE_GET_METRICS = "mesos.v1.agent.Response.GetMetrics" {
    1 repeated metrics: message METRIC,
} }

message! { RESPONSE_GET_LOGGING_LEVEL = "mesos.v1.agent.Response.GetLoggingLevel" {
    1 required level: Uint32,
} }

message! { RESPONSE_LIST_FILES = "mesos.v1.agent.Response.ListFiles" {
    1 repeated file_infos: message FILE_INFO,
} }

message! { RESPONSE_READ_FILE = "mesos.v1.agent.Response.ReadFile" {
    1 required size: Uint64,
    2 required data: Bytes,
} }

message! { RESPONSE_GET_STATE = "mesos.v1.agent.Response.GetState" {
    1 optional get_tasks: message RESPONSE_GET_TASKS,
    2 optional get_executors: message RESPONSE_GET_EXECUTORS,
    3 optional get_frameworks: message RESPONSE_GET_FRAMEWORKS,
} }

message! { RESPONSE_GET_TASKS = "mesos.v1.agent.Response.GetTasks" {
    1 repeated pending_tasks: message TASK,
    2 repeated queued_tasks: message TASK,
    3 repeated launched_tasks: message TASK,
    4 repeated terminated_tasks: message TASK,
    5 repeated completed_tasks: message TASK,
} }

message! { RESPONSE_GET_EXECUTORS = "mesos.v1.agent.Response.GetExecutors" {
    1 repeated executors: message RESPONSE_GET_EXECUTORS_EXECUTOR,
    2 repeated completed_executors: message RESPONSE_GET_EXECUTORS_EXECUTOR,
} }

message! { RESPONSE_GET_EXECUTORS_EXECUTOR = "mesos.v1.agent.Response.GetExecutors.Executor" {
    1 required executor_info: message EXECUTOR_INFO,
} }

message! { RESPONSE_GET_FRAMEWORKS = "mesos.v1.agent.Response.GetFrameworks" {
    1 repeated frameworks: message RESPONSE_GET_FRAMEWORKS_FRAMEWORK,
    2 repeated completed_frameworks: message RESPONSE_GET_FRAMEWORKS_FRAMEWORK,
} }

message! { RESPONSE_GET_FRAMEWORKS_FRAMEWORK = "mesos.v1.agent.Response.GetFrameworks.Framework" {
    1 required framework_info: message FRAMEWORK_INFO,
} }

// Lists that are always empty, so that their elements need no description.
message! { RESPONSE_GET_OPERATIONS = "mesos.v1.agent.Response.GetOperations" {} }

message! { RESPONSE_GET_RESOURCE_PROVIDERS = "mesos.v1.agent.Response.GetResourceProviders" {} }

message! { RESPONSE_GET_AGENT = "mesos.v1.agent.Response.GetAgent" {
    1 optional agent_info: message AGENT_INFO,
} }

message! { RESPONSE_GET_CONTAINERS = "mesos.v1.agent.Response.GetContainers" {
    1 repeated containers: message RESPONSE_GET_CONTAINERS_CONTAINER,
} }

message! { RESPONSE_GET_CONTAINERS_CONTAINER = "mesos.v1.agent.Response.GetContainers.Container" {
    1 optional framework_id: message FRAMEWORK_ID,
    2 optional executor_id: message EXECUTOR_ID,
    3 optional executor_name: String,
    4 required container_id: message CONTAINER_ID,
    5 optional container_status: message CONTAINER_STATUS,
    6 optional resource_statistics: message RESOURCE_STATISTICS,
} }

message! { RESPONSE_WAIT_NESTED_CONTAINER = "mesos.v1.agent.Response.WaitNestedContainer" {
    1 optional exit_status: Int32,
    2 optional state: enum TASK_STATE,
    3 optional reason: enum TASK_STATUS_REASON,
    4 optional limitation: message TASK_RESOURCE_LIMITATION,
    5 optional message: String,
} }

message! { RESPONSE_WAIT_CONTAINER = "mesos.v1.agent.Response.WaitContainer" {
    1 optional exit_status: Int32,
    2 optional state: enum TASK_STATE,
    3 optional reason: enum TASK_STATUS_REASON,
    4 optional limitation: message TASK_RESOURCE_LIMITATION,
    5 optional message: String,
} }
