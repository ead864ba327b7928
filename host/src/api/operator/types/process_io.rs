//! Standard streams of containers, as clients that are attached send and receive them.

use super::{bytes::Bytes, container::TtyInfo, id::ContainerId, wire::DurationInfo};

message! {
    /// A part of a stream, or something about one. Exactly one of the fields is set, as `type` says.
    pub struct ProcessIo {
        #[serde(rename = "type")]
        optional kind: ProcessIoKind,
        /// With `DATA`.
        optional data: ProcessData,
        /// With `CONTROL`.
        optional control: ProcessControl,
    }
}

word! {
    /// Kind of a [`ProcessIo`].
    pub enum ProcessIoKind {
        #[default]
        Unknown,
        Data,
        Control,
    }
}

message! {
    /// A part of a stream.
    pub struct ProcessData {
        #[serde(rename = "type")]
        optional kind: ProcessStream,
        /// Not divided at lines or characters. Empty input is the end of standard input.
        optional data: Bytes,
    }
}

word! {
    /// A standard stream.
    pub enum ProcessStream {
        #[default]
        Unknown,
        Stdin,
        Stdout,
        Stderr,
    }
}

message! {
    /// Something about a stream.
    pub struct ProcessControl {
        #[serde(rename = "type")]
        optional kind: ProcessControlKind,
        /// With `TTY_INFO`, from a client: the size of the terminal has changed.
        optional tty_info: TtyInfo,
        /// With `HEARTBEAT`: the connection is still there.
        optional heartbeat: Heartbeat,
    }
}

word! {
    /// Kind of a [`ProcessControl`].
    pub enum ProcessControlKind {
        #[default]
        Unknown,
        TtyInfo,
        Heartbeat,
    }
}

message! {
    /// Sent to keep a connection open while there is nothing else to send.
    pub struct Heartbeat {
        /// Time to the next one.
        optional interval: DurationInfo,
    }
}

message! {
    /// A message of the request that writes to a container: the first one names the container, all others are input.
    pub struct AttachContainerInput {
        #[serde(rename = "type")]
        optional kind: AttachInputKind,
        /// With `CONTAINER_ID`.
        optional container_id: ContainerId,
        /// With `PROCESS_IO`.
        optional process_io: ProcessIo,
    }
}

word! {
    /// Kind of an [`AttachContainerInput`].
    pub enum AttachInputKind {
        #[default]
        Unknown,
        ContainerId,
        ProcessIo,
    }
}

message! {
    /// Streams the output of a container.
    pub struct AttachContainerOutput {
        /// Its id.
        required container_id: ContainerId,
    }
}

message! {
    /// Which standard streams of a new container clients can attach to.
    pub struct AttachInfo {
        /// Standard input stays open for clients until one of them ends it.
        optional stdin: bool,
        /// All output is kept for the client that attaches first, for up to ten seconds. RUN_CONTAINER sends it in its
        /// response.
        optional output: bool,
    }
}
