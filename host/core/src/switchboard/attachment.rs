//! A client's connection to the switchboard of a container.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use cofferdam_init::streams::{HEADER, Header, Kind, MAX_INPUT, MAX_OUTPUT, WITH_OUTPUT, encode_size};
use cofferdam_plugin_model::ContainerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::connection;

/// Which stream output came from. That of a terminal is all [`OutputStream::Stdout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Output of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it came from.
    pub stream: OutputStream,
    /// A part of the stream, not divided at lines or characters.
    pub data: Vec<u8>,
}

/// Why a client cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such container.
    #[error("there is no container `{id}`")]
    Unknown {
        /// The id.
        id: ContainerId,
    },
    /// It was launched without a terminal and without the option to attach.
    #[error(
        "container `{id}` was launched without a terminal and without interactive input: clients cannot attach to it; read its log"
    )]
    NotAttachable {
        /// The container.
        id: ContainerId,
    },
    /// It has not started, or its streams have ended.
    #[error("container `{id}` is not running: nothing can be attached to it")]
    NotRunning {
        /// The container.
        id: ContainerId,
    },
    /// The connection to its switchboard failed.
    #[error("cannot attach to container `{id}`")]
    Connection {
        /// The container.
        id: ContainerId,
        /// Why.
        source: io::Error,
    },
}

/// A client's connection to the standard streams, or the terminal, of a container. Dropping it has no effect on the
/// container, nor on other clients.
///
/// All output since it was attached is delivered; it is attached to a container that was launched for it from the start.
/// A client that does not read holds the container up, like the reader of a pipe.
#[derive(Debug)]
pub struct Attachment {
    /// What comes from the container.
    pub output: AttachedOutput,
    /// What goes to the container.
    pub input: AttachedInput,
}

/// Output of a container, as a client receives it.
#[derive(Debug)]
pub struct AttachedOutput {
    connection: OwnedReadHalf,
    /// What is not a complete frame yet.
    received: Vec<u8>,
    has_ended: bool,
}

/// Input of a container, as a client sends it.
#[derive(Debug)]
pub struct AttachedInput {
    /// `None` only while it is dropped.
    connection: Option<OwnedWriteHalf>,
    /// The other half, if the client wants no output: it ends with the streams.
    end: Option<OwnedReadHalf>,
}

/// Connects to the switchboard of a container before it is started, so that nothing is missed.
pub(crate) fn first_attachment(directory: &Path) -> io::Result<OwnedFd> {
    connection(directory, WITH_OUTPUT)
}

impl Attachment {
    /// Connects to the switchboard of a container.
    pub(crate) fn connect(directory: &Path) -> io::Result<Self> {
        Self::new(first_attachment(directory)?)
    }

    /// A connection that was made before.
    pub(crate) fn new(connection: OwnedFd) -> io::Result<Self> {
        let (output, input) = halves(connection)?;
        let output = AttachedOutput { connection: output, received: Vec::new(), has_ended: false };
        Ok(Self { output, input: AttachedInput { connection: Some(input), end: None } })
    }
}

fn halves(connection: OwnedFd) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let connection = StdUnixStream::from(connection);
    connection.set_nonblocking(true)?;
    Ok(UnixStream::from_std(connection)?.into_split())
}

impl AttachedOutput {
    /// The next part of the output; `None` at its end, when all processes of the container have closed their streams.
    /// Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// Those of the connection: the switchboard was killed.
    pub async fn next(&mut self) -> io::Result<Option<Output>> {
        while !self.has_ended {
            if let Some(output) = self.take_frame()? {
                return Ok(Some(output));
            }
            if self.has_ended {
                break;
            }
            self.received.reserve(HEADER + MAX_OUTPUT);
            if self.connection.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(None)
    }

    fn take_frame(&mut self) -> io::Result<Option<Output>> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed frame of a switchboard");
        let Some(header) = self.received.first_chunk::<HEADER>() else { return Ok(None) };
        let Header { kind, length } = Header::parse(*header).ok_or_else(malformed)?;
        let stream = match kind {
            Kind::Stdout => OutputStream::Stdout,
            Kind::Stderr => OutputStream::Stderr,
            Kind::End => {
                self.has_ended = true;
                return Ok(None);
            }
            _ => return Err(malformed()),
        };
        let end = HEADER + usize::from(length);
        if usize::from(length) > MAX_OUTPUT {
            return Err(malformed());
        }
        let Some(data) = self.received.get(HEADER..end).map(<[u8]>::to_vec) else { return Ok(None) };
        self.received.drain(..end);
        Ok(Some(Output { stream, data }))
    }
}

impl AttachedInput {
    /// Connects to the switchboard of a container, without output.
    pub(crate) fn connect(directory: &Path) -> io::Result<Self> {
        let (end, input) = halves(connection(directory, 0)?)?;
        Ok(Self { connection: Some(input), end: Some(end) })
    }

    /// Waits until the streams of the container have ended. Never for the input of an [`Attachment`], whose output ends then.
    pub async fn ended(&mut self) {
        match &mut self.end {
            // Nothing is ever sent.
            Some(end) => drop(end.read(&mut [0]).await),
            None => std::future::pending().await,
        }
    }

    /// Writes to standard input, or as if typed at the terminal. Waits while the container does not read. What it does not
    /// read because it has closed its input is discarded.
    ///
    /// # Errors
    /// Those of the connection: the streams have ended.
    pub async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(MAX_INPUT) {
            self.send(Kind::Input, part).await?;
        }
        Ok(())
    }

    /// Ends standard input: the container reads end-of-file. Has no effect on a terminal.
    ///
    /// # Errors
    /// Those of the connection: the streams have ended.
    pub async fn end(&mut self) -> io::Result<()> {
        self.send(Kind::EndOfInput, &[]).await
    }

    /// Sets the size of the terminal. Has no effect without one.
    ///
    /// # Errors
    /// Those of the connection: the streams have ended.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        self.send(Kind::Resize, &encode_size(rows, columns)).await
    }

    async fn send(&mut self, kind: Kind, data: &[u8]) -> io::Result<()> {
        let length = u16::try_from(data.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(HEADER + data.len());
        frame.extend(Header { kind, length }.encode());
        frame.extend(data);
        match &mut self.connection {
            Some(connection) => connection.write_all(&frame).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Drop for AttachedInput {
    fn drop(&mut self) {
        // Otherwise the connection would be shut down, and the output end.
        if let Some(connection) = self.connection.take() {
            connection.forget();
        }
    }
}
