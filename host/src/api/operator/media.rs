//! Which encoding a request has, and which ones its client accepts.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::accept::Accepted;
use super::error::ApiError;
use crate::api::encoding::Encoding;

/// The media type of RecordIO.
pub(crate) const RECORDIO: &str = "application/recordio";

/// Which encoding the records have.
pub(crate) const MESSAGE_CONTENT_TYPE: &str = "message-content-type";

/// Which encodings of records the client accepts, as `Accept` for the messages within a stream.
const MESSAGE_ACCEPT: HeaderName = HeaderName::from_static("message-accept");

/// What a client accepts as response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) struct ResponseMedia {
    /// Encoding of a message.
    pub(in crate::api) message: Encoding,
    /// Encoding of the records of a stream.
    pub(in crate::api) record: Encoding,
    /// `Content-Type` of a stream.
    pub(in crate::api) stream: &'static str,
    /// Whether JSON is accepted, also if it is not preferred.
    pub(in crate::api) json: bool,
}

impl ResponseMedia {
    /// For what exists in JSON only; `None` if the client does not accept that.
    pub(in crate::api) fn json_only(self) -> Option<Self> {
        let json = Encoding::Json;
        let stream = if self.stream == RECORDIO { RECORDIO } else { json.media_type() };
        self.json.then_some(Self { message: json, record: json, stream, json: true })
    }
}

/// The encoding of the body.
pub(in crate::api) fn request_encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::bad_request(
            "the header `Content-Type` is missing; send `application/json` or `application/x-protobuf`",
        ));
    };
    encoding_named("Content-Type", value)
}

/// The encoding of the records of a body that is a stream.
pub(in crate::api) fn record_encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let value = headers.get(MESSAGE_CONTENT_TYPE);
    value.map_or(Ok(Encoding::Json), |value| encoding_named("Message-Content-Type", value))
}

fn encoding_named(header: &str, value: &HeaderValue) -> Result<Encoding, ApiError> {
    let media = essence(value.to_str().unwrap_or_default());
    let is_it = |encoding: &Encoding| media.eq_ignore_ascii_case(encoding.media_type());
    Encoding::ALL.into_iter().find(is_it).ok_or_else(|| {
        ApiError::message(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "`{header}: {}` is not supported; send `application/json` or `application/x-protobuf`",
                escape(value)
            ),
        )
    })
}

/// What the client accepts. As in Mesos, JSON is preferred if it is as welcome as another encoding, and without `Accept`.
pub(in crate::api) fn response_media(headers: &HeaderMap) -> Result<ResponseMedia, ApiError> {
    let record = headers.get(&MESSAGE_ACCEPT).map(|first| preferred(headers, &MESSAGE_ACCEPT).ok_or(first));
    let record = record.transpose().map_err(|first| not_acceptable("Message-Accept", first))?;
    let Some(first) = headers.get(header::ACCEPT) else {
        let record = record.unwrap_or(Encoding::Json);
        return Ok(ResponseMedia { message: Encoding::Json, record, stream: RECORDIO, json: true });
    };
    let accepted = Accepted::of(headers);
    let is_stream = accepted.weight(RECORDIO, None) > 0.0;
    let message = match preferred(headers, &header::ACCEPT) {
        Some(encoding) => encoding,
        None if is_stream => record.unwrap_or(Encoding::Json),
        None => return Err(not_acceptable("Accept", first)),
    };
    let record = record.filter(|_| is_stream).unwrap_or(message);
    // One that accepts messages only gets the records as what they consist of, as in Mesos.
    let stream = if is_stream { RECORDIO } else { record.media_type() };
    let json = accepted.weight(Encoding::Json.media_type(), None) > 0.0 || message == Encoding::Json;
    Ok(ResponseMedia { message, record, stream, json })
}

/// The encoding with the greatest weight; `None` if none is accepted.
fn preferred(headers: &HeaderMap, name: &HeaderName) -> Option<Encoding> {
    let accepted = Accepted::named_in(headers, name);
    let weights = Encoding::ALL.map(|encoding| (encoding, accepted.weight(encoding.media_type(), None)));
    let accepted = weights.into_iter().filter(|(_, weight)| *weight > 0.0);
    accepted.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(encoding, _)| encoding)
}

fn not_acceptable(header: &str, first: &HeaderValue) -> ApiError {
    ApiError::message(
        StatusCode::NOT_ACCEPTABLE,
        format!(
            "`{header}: {}` includes neither `application/json` nor `application/x-protobuf`",
            escape(first)
        ),
    )
}

/// A media type without its parameters.
fn essence(media: &str) -> &str {
    media.split(';').next().unwrap_or_default().trim()
}

fn escape(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    fn headers(values: &[(&'static str, &'static str)]) -> HeaderMap {
        let parse = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        values.iter().map(parse).collect()
    }

    #[test]
    fn requests_have_an_encoding() {
        let encoding = |value: Option<&'static str>| {
            let headers = value.map(|value| headers(&[("content-type", value)])).unwrap_or_default();
            request_encoding(&headers).map_err(|error| error.into_response().status().as_u16())
        };
        assert_eq!(encoding(Some("application/json")), Ok(Encoding::Json));
        assert_eq!(encoding(Some("Application/JSON; charset=utf-8")), Ok(Encoding::Json));
        assert_eq!(encoding(Some("application/x-protobuf")), Ok(Encoding::Protobuf));
        assert_eq!(encoding(None), Err(400));
        for other in ["application/protobuf", "application/recordio", "text/plain", "application/jsonx", ""] {
            assert_eq!(encoding(Some(other)), Err(415), "{other}");
        }
    }

    #[test]
    fn clients_get_what_they_prefer() {
        const JSON: &str = "application/json";
        const PROTOBUF: &str = "application/x-protobuf";
        let media = |values: &[(&'static str, &'static str)]| {
            let media = response_media(&headers(values));
            media.map(|ResponseMedia { message, record, stream, .. }| {
                (message.media_type(), record.media_type(), stream)
            })
        };
        for (values, expected) in [
            (&[][..], (JSON, JSON, RECORDIO)),
            (&[("accept", "*/*")], (JSON, JSON, RECORDIO)),
            (&[("accept", "application/*;q=0.5")], (JSON, JSON, RECORDIO)),
            (&[("accept", "text/html, application/json")], (JSON, JSON, JSON)),
            (&[("accept", "application/x-protobuf")], (PROTOBUF, PROTOBUF, PROTOBUF)),
            (&[("accept", "application/x-protobuf, application/json;q=0.9")], (PROTOBUF, PROTOBUF, PROTOBUF)),
            (&[("accept", "application/x-protobuf, application/json")], (JSON, JSON, JSON)),
            (&[("accept", "application/recordio")], (JSON, JSON, RECORDIO)),
            (
                &[("accept", "application/recordio"), ("message-accept", PROTOBUF)],
                (PROTOBUF, PROTOBUF, RECORDIO),
            ),
            (
                &[("accept", "application/json, application/recordio"), ("message-accept", PROTOBUF)],
                (JSON, PROTOBUF, RECORDIO),
            ),
            (&[("message-accept", PROTOBUF)], (JSON, PROTOBUF, RECORDIO)),
        ] {
            assert_eq!(media(values).unwrap(), expected, "{values:?}");
        }
        for refused in [
            &[("accept", "text/html, text/plain")][..],
            &[("accept", "")],
            &[("accept", "application/json;q=0")],
            &[("accept", "application/recordio"), ("message-accept", "text/plain")],
        ] {
            let status = media(refused).map_err(|error| error.into_response().status().as_u16());
            assert_eq!(status, Err(406), "{refused:?}");
        }
    }

    #[test]
    fn what_exists_in_json_only_is_for_those_who_accept_json_at_all() {
        let json_only = |accept| response_media(&headers(&[("accept", accept)])).unwrap().json_only();
        for accept in ["*/*", "application/x-protobuf, application/json;q=0.5", "application/recordio"] {
            let media = json_only(accept).unwrap();
            assert_eq!((media.message, media.record), (Encoding::Json, Encoding::Json), "{accept}");
        }
        for accept in ["application/x-protobuf", "application/x-protobuf, application/json;q=0"] {
            assert_eq!(json_only(accept), None, "{accept}");
        }
    }
}
