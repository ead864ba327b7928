//! Clients that attach to the standard streams, or the terminal, of a container.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response as HttpResponse;
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use super::decode::decode_id;
use super::error::{ApiError, not_launched};
use super::media::RECORDIO;
use super::media::{ResponseMedia, record_encoding};
use super::reply;
use super::stream::{self, Disconnected, Records, take_record};
use super::types::{self as wire, Call};
use crate::api::context::ApiContext;
use crate::api::encoding::Codec;
use crate::api::protobuf::schema::agent::PROCESS_IO;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_core::switchboard::{AttachedInput, Attachment, Output, OutputStream};

/// Time between heartbeats, as in Mesos.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// Streams the output of a container until it ends.
pub(super) fn output(
    context: &Arc<ApiContext>,
    media: ResponseMedia,
    id: &ContainerId,
) -> Result<HttpResponse, ApiError> {
    let attachment = context.agent.attach(id)?;
    let context = Arc::clone(context);
    Ok(stream::respond(media, media.record.of(&PROCESS_IO), async move |records| {
        drop(send_output(&context, attachment, &records).await);
    }))
}

/// Launches a container for this client and streams its output. Ends and removes it when the client disconnects, also
/// during the launch.
pub(super) async fn session(
    context: &Arc<ApiContext>,
    media: ResponseMedia,
    request: Request,
) -> Result<HttpResponse, ApiError> {
    let context = Arc::clone(context);
    let (answer, response) = oneshot::channel();
    // A task of its own, as the handler of the request ends when the client disconnects.
    tokio::spawn(async move {
        let id = request.id.clone();
        if let Err(error) = context.agent.launch(request).await {
            drop(answer.send(Ok(not_launched(error))));
            return;
        }
        let sent = match context.agent.attach_first(&id) {
            Ok(attachment) => {
                let (records, response) = stream::response(media, media.record.of(&PROCESS_IO));
                // If the client has gone, so has the other end of the stream.
                drop(answer.send(Ok(response)));
                tokio::select! {
                    sent = send_output(&context, attachment, &records) => sent,
                    () = records.disconnected() => Err(Disconnected),
                }
            }
            Err(error) => {
                drop(answer.send(Err(error.into())));
                Err(Disconnected)
            }
        };
        // An agent that stops leaves it to the next one, like all containers.
        if sent.is_err() && !context.is_stopping() {
            context.agent.destroy(&id).await;
            // Nobody else knows of it. If its parent is removed at the same time, so is it.
            drop(context.agent.remove(&id).await);
        }
    });
    // The task answers, unless the runtime shuts down.
    response.await.unwrap_or_else(|_| Err(ApiError::stopping()))
}

/// Sends all output, with heartbeats in between. Ends with the output, or when the agent stops.
async fn send_output(
    context: &ApiContext,
    mut attachment: Attachment,
    records: &Records,
) -> Result<(), Disconnected> {
    let stopped = context.stopped();
    let mut stopped = pin!(stopped);
    loop {
        tokio::select! {
            output = attachment.output.next() => match output {
                Ok(Some(output)) => records.send(&process_io(output)).await?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!("the output of a container ended early: {error}");
                    return Ok(());
                }
            },
            () = tokio::time::sleep(HEARTBEAT_INTERVAL) => records.send(&heartbeat()).await?,
            () = &mut stopped => return Ok(()),
        }
    }
}

/// Output as a message.
pub(super) fn process_io(Output { stream, data }: Output) -> wire::ProcessIo {
    let kind = match stream {
        OutputStream::Stdout => wire::ProcessStream::Stdout,
        OutputStream::Stderr => wire::ProcessStream::Stderr,
    };
    wire::ProcessIo {
        kind: Some(wire::ProcessIoKind::Data),
        data: Some(wire::ProcessData { kind: Some(kind), data: Some(wire::Bytes(data)) }),
        control: None,
    }
}

fn heartbeat() -> wire::ProcessIo {
    let nanoseconds = i64::try_from(HEARTBEAT_INTERVAL.as_nanos()).unwrap_or(i64::MAX);
    let interval = wire::DurationInfo { nanoseconds };
    wire::ProcessIo {
        kind: Some(wire::ProcessIoKind::Control),
        data: None,
        control: Some(wire::ProcessControl {
            kind: Some(wire::ProcessControlKind::Heartbeat),
            tty_info: None,
            heartbeat: Some(wire::Heartbeat { interval: Some(interval) }),
        }),
    }
}

/// Whether a request is a stream of records, as `ATTACH_CONTAINER_INPUT` is.
pub(super) fn is_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(axum::http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(RECORDIO.as_bytes()))
}

/// Passes the records of a request on to a container. Answers at the end of the request, or of the container's streams.
pub(super) async fn input(
    context: &ApiContext,
    headers: &HeaderMap,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let codec = Call::codec(record_encoding(headers)?);
    let mut requests = Requests { body, codec, received: Vec::new(), max: context.config.api.max_body };
    let first = tokio::time::timeout(context.config.api.idle_timeout, requests.next()).await;
    let first = first.map_err(|_| {
        ApiError::message(StatusCode::REQUEST_TIMEOUT, "no record arrived within `api.idle_timeout`")
    })??;
    let id = match first {
        Some(wire::AttachContainerInput { container_id: Some(id), .. }) => {
            decode_id("attach_container_input.container_id", &id)?
        }
        _ => {
            return Err(ApiError::bad_request(
                "the first record must have the type `CONTAINER_ID` and name the container",
            ));
        }
    };
    let mut input = context.agent.attach_input(&id)?;
    loop {
        let next = tokio::select! {
            next = requests.next() => next?,
            () = input.ended() => None,
            () = context.stopped() => return Err(ApiError::stopping()),
        };
        let Some(next) = next else { return Ok(reply::empty()) };
        let io = next.process_io.ok_or_else(|| {
            ApiError::bad_request("a record after the first must have the type `PROCESS_IO` and `process_io`")
        })?;
        tokio::select! {
            passed = pass_on(&mut input, io) => {
                if !passed? {
                    return Ok(reply::empty());
                }
            }
            () = context.stopped() => return Err(ApiError::stopping()),
        }
    }
}

/// Passes a record on. Returns false if the streams have ended.
async fn pass_on(input: &mut AttachedInput, io: wire::ProcessIo) -> Result<bool, ApiError> {
    let passed = match io {
        wire::ProcessIo { data: Some(wire::ProcessData { data, kind }), .. } => {
            if kind.is_some_and(|kind| kind != wire::ProcessStream::Stdin) {
                return Err(ApiError::bad_request(
                    "only data of the type `STDIN` can be sent to a container",
                ));
            }
            match data.unwrap_or_default().0 {
                data if data.is_empty() => input.end().await,
                data => input.write(&data).await,
            }
        }
        wire::ProcessIo { control: Some(wire::ProcessControl { tty_info: Some(info), .. }), .. } => {
            let size = super::decode::decode_tty(Some(&info))?.unwrap_or_default();
            input.resize(size.rows, size.columns).await
        }
        wire::ProcessIo { control: Some(wire::ProcessControl { heartbeat: Some(_), .. }), .. } => Ok(()),
        _ => {
            return Err(ApiError::bad_request(
                "`process_io` must have `data`, or `control` with `tty_info` or `heartbeat`",
            ));
        }
    };
    Ok(passed.is_ok())
}

/// The records of a request.
struct Requests {
    body: Body,
    codec: Codec,
    received: Vec<u8>,
    /// Maximum length of a record.
    max: usize,
}

impl Requests {
    /// The next one; `None` at the end. Nothing is lost if the future is dropped.
    async fn next(&mut self) -> Result<Option<wire::AttachContainerInput>, ApiError> {
        loop {
            if let Some(record) = take_record(&mut self.received).map_err(ApiError::bad_request)? {
                return match Call::read(self.codec, &record)? {
                    Call::AttachContainerInput(call) => Ok(Some(*call)),
                    other => Err(ApiError::bad_request(format!(
                        "`{}` is not a stream of records; send it as `application/json` or `application/x-protobuf`",
                        other.type_name()
                    ))),
                };
            }
            if self.received.len() > self.max {
                return Err(ApiError::message(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a record exceeds `api.max_body`, {} bytes", self.max),
                ));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.received.extend(frame.into_data().unwrap_or_default()),
                // The client has disconnected, which is no end of input.
                Some(Err(error)) => return Err(ApiError::new(StatusCode::BAD_REQUEST, &error)),
                None if self.received.is_empty() => return Ok(None),
                None => return Err(ApiError::bad_request("the request ends within a record")),
            }
        }
    }
}
