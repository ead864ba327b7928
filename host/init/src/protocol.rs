//! Messages between the agent and its keeper, and the file in which the keeper records how processes ended.
//!
//! Each request is one message of a `SOCK_SEQPACKET` socket and is answered by one [`Reply`], in order. Messages have a
//! fixed length; numbers are little-endian. A message of any other length is answered by `EBADMSG`, a kind that the
//! keeper does not know by `ENOSYS`: so [`Request::Hello`] comes first and tells the version.
//!
//! Agents and keepers of different builds meet: an old keeper serves its containers until they end. An agent asks it for
//! nothing but [`Request::Collect`], [`Request::Forget`] and [`Request::Count`], which all versions from [`OLDEST`] on have,
//! with these encodings; what creates processes is for keepers of its own build. The request and the answer of
//! [`Request::Hello`], and the file, are the same in every version there will be. So an agent of an earlier version, which
//! cannot know what a newer keeper answers, still learns which process that is, and how containers ended.
//!
//! The statuses file is a header and an array of [`Entry`], one for each slot. It stays readable when the keeper has
//! ended.

/// Version of the messages.
pub const VERSION: u32 = 3;

/// The oldest version that an agent of this one understands.
pub const OLDEST: u32 = 2;

/// Length of a request in bytes.
pub const REQUEST_LENGTH: usize = 48;
/// Length of a reply in bytes.
pub const REPLY_LENGTH: usize = 32;

/// Maximum number of containers of one keeper.
pub const MAX_SLOTS: usize = 1 << 16;

/// Descriptors with which the keeper starts, after three of `/dev/null`: its listening socket, …
pub const LISTENER: i32 = 3;
/// … the statuses file, …
pub const STATUSES: i32 = 4;
/// … and its first connection.
pub const CONNECTION: i32 = 5;

/// A request of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The first message of a connection. Answered with [`Reply::version`] and the keeper's pid.
    Hello {
        /// [`VERSION`] of the agent.
        version: u32,
        /// Whether all processes are killed when the connection ends.
        kill_on_disconnect: bool,
    },
    /// Creates the first process of a container. Answered with its slot and its pid, and a pidfd as ancillary data.
    Spawn(Spawn),
    /// Asks for the state of a slot, checking for its end first. Answered with the state and the wait status.
    Collect(Slot),
    /// The status is recorded elsewhere: the slot can be used again as soon as its processes have ended.
    Forget(Slot),
    /// Asks how many containers have processes. Answered with their number as the status.
    Count,
    /// Creates the I/O switchboard of a container. Answered with its pid, and a pidfd as ancillary data. It ends by itself
    /// when the streams have ended; nobody asks how.
    Switchboard(Switchboard),
}

/// An I/O switchboard, as [`Request::Switchboard`]. The message has these descriptors: a listening socket, the files or
/// pipes of the log for both streams, the file of [`crate::streams::Counts`], and then the socket from which the terminal comes, the connection to an engine, or the
/// ends of pipes: two to read output from, and one to write input to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Switchboard {
    /// The streams are a terminal.
    pub terminal: bool,
    /// There is a pipe for input, or the engine takes input.
    pub input: bool,
    /// The streams are a connection to a container engine, in frames of the engine.
    pub engine: bool,
}

impl Switchboard {
    /// Number of descriptors of the message.
    #[must_use]
    pub const fn descriptor_count(self) -> usize {
        match self {
            Self { terminal: true, .. } | Self { engine: true, .. } => 5,
            Self { input, .. } => 6 + input as usize,
        }
    }
}

/// A first process, as [`Request::Spawn`]. The message has these descriptors: three standard streams, the control
/// socket, those of the plan, the v2 cgroup, the process whose namespaces are entered, and `tasks` files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spawn {
    /// `CLONE_NEW…` flags of namespaces to create.
    pub create: u64,
    /// `CLONE_NEW…` flags of namespaces to enter; 0 if there is no such process.
    pub enter: u64,
    /// Number of descriptors that the plan refers to.
    pub plan_descriptors: u32,
    /// Whether there is a v2 cgroup, in which the container's processes are created. The setup process stays in the
    /// keeper's.
    pub cgroup: bool,
    /// Number of `tasks` files that are joined before anything else.
    pub early_tasks: u32,
    /// Number of further `tasks` files, which are joined when the container is set up.
    pub late_tasks: u32,
    /// Whether the process stays as the parent of the command.
    pub stays: bool,
}

/// A slot of the keeper. The generation distinguishes its uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "writer", derive(serde::Serialize, serde::Deserialize))]
pub struct Slot {
    /// Its number, from 0.
    pub index: u32,
    /// Counts its uses, from 1.
    pub generation: u32,
}

/// An answer of the keeper.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reply {
    /// 0, or the error of the request.
    pub errno: i32,
    /// The slot.
    pub slot: Slot,
    /// Its state.
    pub state: State,
    /// With [`State::Ended`] and [`State::Exited`], the wait status as wait(2) gives it; or a number.
    pub status: i32,
    /// Pid of the container's process, or of the keeper.
    pub pid: i32,
    /// [`VERSION`] of the keeper.
    pub version: u32,
    /// Pid of the container's setup process, if that has not ended. Not told before version 3.
    pub setup: i32,
}

/// State of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Not in use.
    #[default]
    Free = 0,
    /// The container is being set up.
    Starting = 1,
    /// The command runs.
    Running = 2,
    /// The command has ended.
    Ended = 3,
    /// The command never ran.
    NotStarted = 4,
    /// The command has ended, but its setup process, which tells whether it ran, or process 1 of its pid namespace has
    /// not.
    Exited = 5,
}

impl State {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Free,
            1 => Self::Starting,
            2 => Self::Running,
            3 => Self::Ended,
            4 => Self::NotStarted,
            5 => Self::Exited,
            _ => return None,
        })
    }
}

mod kind {
    pub(super) const HELLO: u32 = 1;
    pub(super) const SPAWN: u32 = 2;
    pub(super) const COLLECT: u32 = 3;
    pub(super) const FORGET: u32 = 4;
    pub(super) const COUNT: u32 = 5;
    pub(super) const SWITCHBOARD: u32 = 6;
}

/// Why a message is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRequest {
    /// Its length or a value is wrong.
    Malformed,
    /// Its kind is unknown.
    Unknown,
}

impl Request {
    /// Encodes the request.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LENGTH] {
        let slot = |slot: &Slot| [slot.index, slot.generation, 0, 0, 0, 0, 0, 0, 0];
        let (kind, words) = match self {
            Self::Hello { version, kill_on_disconnect } => {
                (kind::HELLO, [*version, u32::from(*kill_on_disconnect), 0, 0, 0, 0, 0, 0, 0])
            }
            Self::Spawn(spawn) => {
                let (create, enter) = (halves(spawn.create), halves(spawn.enter));
                let Spawn { plan_descriptors, cgroup, early_tasks, late_tasks, stays, .. } = *spawn;
                let [cgroup, stays] = [cgroup, stays].map(u32::from);
                let numbers = [plan_descriptors, cgroup, early_tasks, late_tasks, stays];
                let [a, b, c, d, e] = numbers;
                (kind::SPAWN, [create[0], create[1], enter[0], enter[1], a, b, c, d, e])
            }
            Self::Collect(of) => (kind::COLLECT, slot(of)),
            Self::Forget(of) => (kind::FORGET, slot(of)),
            Self::Count => (kind::COUNT, [0; 9]),
            Self::Switchboard(Switchboard { terminal, input, engine }) => {
                let [terminal, input, engine] = [*terminal, *input, *engine].map(u32::from);
                (kind::SWITCHBOARD, [terminal, input, engine, 0, 0, 0, 0, 0, 0])
            }
        };
        let mut bytes = [0; REQUEST_LENGTH];
        let words = core::iter::once(kind).chain(words);
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// [`NoRequest`].
    pub fn parse(message: &[u8]) -> Result<Self, NoRequest> {
        let message: &[u8; REQUEST_LENGTH] = message.try_into().map_err(|_| NoRequest::Malformed)?;
        let word = |index| word(message, index);
        let boolean = |index| match word(index) {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(NoRequest::Malformed),
        };
        let slot = Slot { index: word(1), generation: word(2) };
        Ok(match word(0) {
            kind::HELLO => Self::Hello { version: word(1), kill_on_disconnect: boolean(2)? },
            kind::SPAWN => Self::Spawn(Spawn {
                create: joined(word(1), word(2)),
                enter: joined(word(3), word(4)),
                plan_descriptors: word(5),
                cgroup: boolean(6)?,
                early_tasks: word(7),
                late_tasks: word(8),
                stays: boolean(9)?,
            }),
            kind::COLLECT => Self::Collect(slot),
            kind::FORGET => Self::Forget(slot),
            kind::COUNT => Self::Count,
            kind::SWITCHBOARD => Self::Switchboard(Switchboard {
                terminal: boolean(1)?,
                input: boolean(2)?,
                engine: boolean(3)?,
            }),
            _ => return Err(NoRequest::Unknown),
        })
    }
}

impl Spawn {
    /// Number of descriptors of the message. Saturates.
    #[must_use]
    pub fn descriptor_count(&self) -> usize {
        let numbers = [
            4,
            self.plan_descriptors,
            u32::from(self.cgroup),
            u32::from(self.enter != 0),
            self.early_tasks,
            self.late_tasks,
        ];
        numbers.into_iter().fold(0_usize, |sum, number| sum.saturating_add(number as usize))
    }
}

impl Reply {
    /// An answer that is an error.
    #[must_use]
    pub fn error(errno: i32) -> Self {
        Self { errno, ..Self::default() }
    }

    /// Encodes the reply.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_LENGTH] {
        let words = [
            self.errno.cast_unsigned(),
            self.slot.index,
            self.slot.generation,
            self.state as u32,
            self.status.cast_unsigned(),
            self.pid.cast_unsigned(),
            self.version,
            self.setup.cast_unsigned(),
        ];
        let mut bytes = [0; REPLY_LENGTH];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Decodes a message. `None` if it is no reply.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let message: &[u8; REPLY_LENGTH] = message.try_into().ok()?;
        let word = |index| word(message, index);
        Some(Self {
            errno: word(0).cast_signed(),
            slot: Slot { index: word(1), generation: word(2) },
            state: State::from_number(word(3))?,
            status: word(4).cast_signed(),
            pid: word(5).cast_signed(),
            version: word(6),
            setup: word(7).cast_signed(),
        })
    }
}

/// Length in bytes of the header of a statuses file, and of each entry.
pub const ENTRY_LENGTH: usize = 16;

/// The header of a statuses file.
pub const HEADER: [u8; ENTRY_LENGTH] = *b"cofferdam st\x01\0\0\0";

/// What the statuses file tells of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// The use of the slot.
    pub generation: u32,
    /// Pid of the command, or of the first process while the container is set up.
    pub pid: i32,
    /// With [`State::Ended`] and [`State::Exited`], the wait status.
    pub status: i32,
    /// The state.
    pub state: State,
}

impl Entry {
    /// Position of a slot's entry in the file.
    #[must_use]
    pub fn offset(index: u32) -> u64 {
        (u64::from(index) + 1) * ENTRY_LENGTH as u64
    }

    /// Encodes the entry.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_LENGTH] {
        let words =
            [self.generation, self.pid.cast_unsigned(), self.status.cast_unsigned(), self.state as u32];
        let mut bytes = [0; ENTRY_LENGTH];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Decodes an entry. `None` if its state is unknown.
    #[must_use]
    pub fn parse(bytes: &[u8; ENTRY_LENGTH]) -> Option<Self> {
        let word = |index| word(bytes, index);
        Some(Self {
            generation: word(0),
            pid: word(1).cast_signed(),
            status: word(2).cast_signed(),
            state: State::from_number(word(3))?,
        })
    }
}

/// The word at an index; 0 beyond the end.
fn word(bytes: &[u8], index: usize) -> u32 {
    let word = bytes.get(index * 4..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

const fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        Entry, NoRequest, REPLY_LENGTH, REQUEST_LENGTH, Reply, Request, Slot, Spawn, State, Switchboard,
    };

    #[test]
    fn requests_are_decoded_as_they_were_encoded() {
        let slot = Slot { index: 7, generation: 9 };
        let spawn = Spawn {
            create: 0x1_2000_0000,
            enter: 0x4000_0000,
            plan_descriptors: 3,
            cgroup: true,
            early_tasks: 1,
            late_tasks: 5,
            stays: true,
        };
        assert_eq!(spawn.descriptor_count(), 4 + 3 + 1 + 1 + 1 + 5);
        for request in [
            Request::Hello { version: 3, kill_on_disconnect: true },
            Request::Spawn(spawn),
            Request::Collect(slot),
            Request::Forget(slot),
            Request::Count,
            Request::Switchboard(Switchboard { terminal: true, input: false, engine: false }),
            Request::Switchboard(Switchboard { terminal: false, input: true, engine: false }),
            Request::Switchboard(Switchboard { terminal: false, input: true, engine: true }),
        ] {
            assert_eq!(Request::parse(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn a_reply_and_an_entry_are_decoded_as_they_were_encoded() {
        let slot = Slot { index: 1, generation: 2 };
        let reply = Reply { errno: 0, slot, state: State::Ended, status: -5, pid: 77, version: 4, setup: 78 };
        assert_eq!(Reply::parse(&reply.encode()), Some(reply));
        let entry = Entry { generation: 3, pid: 9, status: 0x700, state: State::NotStarted };
        assert_eq!(Entry::parse(&entry.encode()), Some(entry));
    }

    #[test]
    fn other_messages_are_refused() {
        let mut message = [0; REQUEST_LENGTH];
        assert_eq!(Request::parse(&message), Err(NoRequest::Unknown));
        assert_eq!(Request::parse(&message[1..]), Err(NoRequest::Malformed));
        message[0] = 2;
        message[4 * 9] = 2;
        assert_eq!(Request::parse(&message), Err(NoRequest::Malformed));
        let mut reply = [0; REPLY_LENGTH];
        reply[12] = 6;
        assert_eq!(Reply::parse(&reply), None);
    }

    /// As [`OLDEST`] has it, and every keeper that may still run.
    ///
    /// [`OLDEST`]: super::OLDEST
    #[test]
    fn what_agents_ask_keepers_of_other_builds_for_is_encoded_as_ever() {
        let message = |words: &[u32]| {
            let mut message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            message.resize(48, 0);
            message
        };
        let slot = Slot { index: 7, generation: 9 };
        for (request, words) in [
            (Request::Hello { version: 2, kill_on_disconnect: false }, vec![1, 2, 0]),
            (Request::Collect(slot), vec![3, 7, 9]),
            (Request::Forget(slot), vec![4, 7, 9]),
            (Request::Count, vec![5]),
        ] {
            assert_eq!(request.encode()[..], message(&words), "{request:?}");
        }
        let words = [0, 7, 9, 5, 0x700, 77, 2, 0];
        let reply = message(&words)[..32].to_vec();
        let expected =
            Reply { errno: 0, slot, state: State::Exited, status: 0x700, pid: 77, version: 2, setup: 0 };
        assert_eq!(Reply::parse(&reply), Some(expected));
        let states =
            [State::Free, State::Starting, State::Running, State::Ended, State::NotStarted, State::Exited];
        for (number, state) in (0_u32..).zip(states) {
            let bytes = message(&[9, 77, 0x700, number])[..16].try_into().unwrap();
            let expected = Entry { generation: 9, pid: 77, status: 0x700, state };
            assert_eq!((Entry::parse(&bytes), Entry::offset(7)), (Some(expected), 128));
        }
        assert_eq!(super::HEADER, *b"cofferdam st\x01\0\0\0");
    }

    proptest! {
        #[test]
        fn any_message_is_decoded_or_refused(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(request) = Request::parse(&message) {
                prop_assert_eq!(Request::parse(&request.encode()), Ok(request));
            }
            if let Ok(Request::Spawn(spawn)) = Request::parse(&message) {
                prop_assert!(spawn.descriptor_count() >= 4);
            }
            let _ = Reply::parse(&message);
        }
    }

    #[test]
    fn any_changed_message_is_decoded_or_refused() {
        let slot = Slot { index: 1, generation: 2 };
        let requests =
            [Request::Hello { version: 3, kill_on_disconnect: true }, Request::Collect(slot), Request::Count];
        let reply = Reply { errno: 0, slot, state: State::Ended, status: -5, pid: 77, version: 4, setup: 78 };
        let entry = Entry { generation: 3, pid: 9, status: 0x700, state: State::NotStarted };
        let mut samples: Vec<_> = requests.iter().map(|request| request.encode().to_vec()).collect();
        samples.extend([reply.encode().to_vec(), entry.encode().to_vec()]);
        cofferdam_fuzz::fuzz_bytes(&samples, &[], |message| {
            if let Ok(request) = Request::parse(message) {
                assert_eq!(Request::parse(&request.encode()), Ok(request));
            }
            if let Some(reply) = Reply::parse(message) {
                assert_eq!(Reply::parse(&reply.encode()), Some(reply));
            }
            if let Some(entry) = message.first_chunk().and_then(Entry::parse) {
                assert_eq!(Entry::parse(&entry.encode()), Some(entry));
            }
            if let Some(record) = crate::report::Record::parse(message) {
                assert!(record.detail.len() < message.len());
            }
        });
    }
}
