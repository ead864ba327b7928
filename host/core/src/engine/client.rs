//! The calls.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tokio::time::timeout;

use super::error::EngineError;
use super::transport::{Body, Method, Request, Response, Transport, TransportError};
use super::types::{Container, ContainerSummary, Credentials, EngineVersion, Image, Network, percent_encode};

/// Oldest version of the API that has everything (Docker 20.10 and podman 4).
pub(super) const MIN_API: &str = "1.40";

/// Newest version of the API that this was written for.
pub(super) const MAX_API: &str = "1.47";

/// Maximum length of an answer, and of one line of the progress of a pull.
const MAX_ANSWER: usize = 64 << 20;
const MAX_LINE: usize = 1 << 20;

/// Maximum length of an engine's words in an error.
const MAX_MESSAGE: usize = 4096;

/// How long calls may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Any call but those below.
    pub call: Duration,
    /// Creating and starting a container.
    pub launch: Duration,
    /// A pull without progress.
    pub pull_stall: Duration,
}

/// Calls an engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    timeouts: Timeouts,
    /// The version of the API that is spoken, if that is known. Forgotten when the engine cannot be reached, as another
    /// one may come.
    api: Mutex<Option<String>>,
}

impl Client {
    /// A client of the engine behind `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, timeouts: Timeouts) -> Self {
        Self(Arc::new(Inner { transport, timeouts, api: Mutex::default() }))
    }

    /// The engine's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.0.transport.socket()
    }

    /// The versions of the engine.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn version(&self) -> Result<EngineVersion, EngineError> {
        let request = Request { method: Method::Get, path: "/version".into(), header: None, body: None };
        self.within(self.0.timeouts.call, self.read("report its version", request)).await
    }

    /// The version of the API that is spoken with the engine: major and minor.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn api_version(&self) -> Result<(u32, u32), EngineError> {
        let api = self.api().await?;
        Ok(number(&api).unwrap_or_default())
    }

    /// An image that the engine has. `None` if it has none of that name.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn image(&self, name: &str) -> Result<Option<Image>, EngineError> {
        // A name has slashes, which are part of the path.
        let name = name.split('/').map(percent_encode).collect::<Vec<_>>().join("/");
        let found = self.call("inspect an image", Method::Get, &format!("/images/{name}/json"), None).await;
        or_missing(found)
    }

    /// Pulls an image. Waits for as long as there is progress.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn pull(
        &self,
        image: &str,
        platform: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<(), EngineError> {
        let action = format!("{}`{image}`", super::advice::PULL);
        // A name without a tag would stand for all of them.
        let platform = platform.map(|platform| format!("&platform={}", percent_encode(platform)));
        let platform = platform.unwrap_or_default();
        let path = format!("/images/create?fromImage={}{platform}", percent_encode(&with_tag(image)));
        let header = credentials.map(|credentials| {
            let encoded = serde_json::to_vec(credentials).unwrap_or_default();
            ("X-Registry-Auth", BASE64URL.encode(&encoded))
        });
        let request = Request { header, ..self.prepared(Method::Post, &path, None).await? };
        let stall = self.0.timeouts.pull_stall;
        let send = async { self.0.transport.request(request).await.map_err(|error| self.unreachable(error)) };
        let mut response = self.within(stall, send).await?;
        if response.status >= 300 {
            return self.within(stall, async { Err(self.refusal(&action, response).await) }).await;
        }
        let mut line = Vec::new();
        loop {
            let next = async { response.body.next().await.map_err(|error| self.unreachable(error)) };
            let Some(part) = self.within(stall, next).await? else { return Ok(()) };
            for byte in part {
                if byte != b'\n' {
                    line.push(byte);
                } else if let Some(message) = failure_of(&std::mem::take(&mut line)) {
                    return Err(EngineError::Pull { image: image.to_owned(), message });
                }
            }
            if line.len() > MAX_LINE {
                return Err(self.malformed(&action, "a line of its progress is too long"));
            }
        }
    }

    /// A network of the engine. `None` if it has none of that name.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn network(&self, name: &str) -> Result<Option<Network>, EngineError> {
        let path = format!("/networks/{}", percent_encode(name));
        or_missing(self.call("inspect a network", Method::Get, &path, None).await)
    }

    /// Creates a container. Returns its id.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn create(
        &self,
        name: &str,
        platform: Option<&str>,
        spec: &Json,
    ) -> Result<String, EngineError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let platform = platform.map(|platform| format!("&platform={}", percent_encode(platform)));
        let path =
            format!("/containers/create?name={}{}", percent_encode(name), platform.unwrap_or_default());
        let action = "create the container";
        let request = self.prepared(Method::Post, &path, Some(spec)).await?;
        let created: Created = self.within(self.0.timeouts.launch, self.read(action, request)).await?;
        Ok(created.id)
    }

    /// Connects to the output of a container, and to its input if `input` says so.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn attach(&self, container: &str, input: bool) -> Result<OwnedFd, EngineError> {
        let action = "attach to the container";
        let container = percent_encode(container);
        let path =
            format!("/containers/{container}/attach?stream=1&stdout=1&stderr=1&stdin={}", u8::from(input));
        let request = self.prepared(Method::Post, &path, None).await?;
        let attach = async {
            let taken = self.0.transport.take_over(request).await;
            match taken.map_err(|error| self.unreachable(error))? {
                Ok(connection) => Ok(connection),
                Err(response) => Err(self.refusal(action, response).await),
            }
        };
        self.within(self.0.timeouts.call, attach).await
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn start(&self, container: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{}/start", percent_encode(container));
        let request = self.prepared(Method::Post, &path, None).await?;
        self.within(self.0.timeouts.launch, self.act("start the container", request)).await
    }

    /// A container. `None` if the engine has none of that name or id.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn container(&self, container: &str) -> Result<Option<Container>, EngineError> {
        let path = format!("/containers/{}/json", percent_encode(container));
        or_missing(self.call("inspect the container", Method::Get, &path, None).await)
    }

    /// Waits until a container does not run, without a deadline of its own.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn wait(&self, container: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{}/wait?condition=not-running", percent_encode(container));
        let request = self.prepared(Method::Post, &path, None).await?;
        let _: Json = self.read("wait for the container", request).await?;
        Ok(())
    }

    /// Waits until the engine has removed a container.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn wait_removed(&self, container: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{}/wait?condition=removed", percent_encode(container));
        match self.act_within_call("wait for the removal of the container", Method::Post, &path, None).await {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// Sends a signal to the first process of a container. Returns false if it does not run.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn kill(&self, container: &str, signal: i32) -> Result<bool, EngineError> {
        let path = format!("/containers/{}/kill?signal={signal}", percent_encode(container));
        match self.act_within_call("send a signal to the container", Method::Post, &path, None).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() || error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes the resources of a container.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn update(&self, container: &str, resources: &Json) -> Result<(), EngineError> {
        let path = format!("/containers/{}/update", percent_encode(container));
        let request = self.prepared(Method::Post, &path, Some(resources)).await?;
        let update = self.read::<Json>("update the container", request);
        self.within(self.0.timeouts.call, update).await.map(drop)
    }

    /// Removes a container with its anonymous volumes, killing it if it runs. It need not exist.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn remove(&self, container: &str) -> Result<(), EngineError> {
        let path = format!("/containers/{}?force=1&v=1", percent_encode(container));
        match self.act_within_call("remove the container", Method::Delete, &path, None).await {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// All containers with a label, whether or not they run.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn containers(&self, label: &str) -> Result<Vec<ContainerSummary>, EngineError> {
        self.list(&json!({ "label": [label] })).await
    }

    /// All containers with a text as part of their names, whether or not they run.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn containers_named(&self, part: &str) -> Result<Vec<ContainerSummary>, EngineError> {
        self.list(&json!({ "name": [part] })).await
    }

    async fn list(&self, filters: &Json) -> Result<Vec<ContainerSummary>, EngineError> {
        let filters = filters.to_string();
        let path = format!("/containers/json?all=1&filters={}", percent_encode(&filters));
        self.call("list containers", Method::Get, &path, None).await
    }

    // ── requests ───────────────────────────────────────────────────────────────────────────────────────────────

    /// A call that is answered with JSON.
    async fn call<T: DeserializeOwned>(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<T, EngineError> {
        let request = self.prepared(method, path, body).await?;
        self.within(self.0.timeouts.call, self.read(action, request)).await
    }

    async fn act_within_call(
        &self,
        action: &str,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<(), EngineError> {
        let request = self.prepared(method, path, body).await?;
        self.within(self.0.timeouts.call, self.act(action, request)).await
    }

    /// A request with the version of the API in its path.
    async fn prepared(
        &self,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<Request, EngineError> {
        let api = self.api().await?;
        let body = body.map(|body| body.to_string().into_bytes());
        Ok(Request { method, path: format!("/v{api}{path}"), header: None, body })
    }

    /// The newest version of the API that both sides know.
    async fn api(&self) -> Result<String, EngineError> {
        if let Some(api) = self.0.api.lock().clone() {
            return Ok(api);
        }
        let engine = self.version().await?;
        let api = negotiate(&engine).ok_or_else(|| EngineError::Version {
            version: engine.version.clone(),
            min: engine.min_api_version.clone(),
            max: engine.api_version.clone(),
        })?;
        tracing::info!(version = engine.version, api, "container engine found");
        *self.0.api.lock() = Some(api.clone());
        Ok(api)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        timeout(limit, work).await.map_err(|_| self.timed_out(limit))?
    }

    /// The error of a call that was not answered in time.
    pub(crate) fn timed_out(&self, timeout: Duration) -> EngineError {
        EngineError::TimedOut { socket: self.socket().to_owned(), timeout }
    }

    async fn read<T: DeserializeOwned>(&self, action: &str, request: Request) -> Result<T, EngineError> {
        let response = self.0.transport.request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status >= 300 {
            return Err(self.refusal(action, response).await);
        }
        let body = self.body(action, response.body, MAX_ANSWER).await?;
        serde_json::from_slice(&body).map_err(|error| self.malformed(action, &error.to_string()))
    }

    async fn act(&self, action: &str, request: Request) -> Result<(), EngineError> {
        let response = self.0.transport.request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status >= 300 {
            return Err(self.refusal(action, response).await);
        }
        // Some answer when they are done, with the end of the body.
        self.body(action, response.body, MAX_ANSWER).await.map(drop)
    }

    async fn body(&self, action: &str, mut body: Box<dyn Body>, max: usize) -> Result<Vec<u8>, EngineError> {
        let mut all = Vec::new();
        while let Some(part) = body.next().await.map_err(|error| self.unreachable(error))? {
            all.extend(part);
            if all.len() > max {
                return Err(self.malformed(action, "it is too long"));
            }
        }
        Ok(all)
    }

    /// The engine's words.
    async fn refusal(&self, action: &str, response: Response) -> EngineError {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let status = response.status;
        let body = match self.body(action, response.body, MAX_LINE).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let message = match serde_json::from_slice(&body) {
            Ok(Message { message }) => message,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        EngineError::Refused { action: action.to_owned(), status, message: shortened(&message) }
    }

    fn unreachable(&self, source: TransportError) -> EngineError {
        *self.0.api.lock() = None;
        EngineError::Unreachable { socket: self.socket().to_owned(), source }
    }

    fn malformed(&self, action: &str, reason: &str) -> EngineError {
        let (socket, action) = (self.socket().to_owned(), action.to_owned());
        EngineError::Malformed { socket, action, reason: reason.to_owned() }
    }
}

fn or_missing<T>(found: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The error that a line of the progress of a pull reports.
fn failure_of(line: &[u8]) -> Option<String> {
    let line: Json = serde_json::from_slice(line).ok()?;
    line.get("error")?.as_str().map(shortened)
}

/// A message without control characters, which may come from a registry, and not too long.
fn shortened(message: &str) -> String {
    let message: String = message.trim().chars().take(MAX_MESSAGE).collect();
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The name of an image with the tag that it has by default.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// The newest version of the API that both sides know.
fn negotiate(engine: &EngineVersion) -> Option<String> {
    let newest = number(&engine.api_version)?.min(number(MAX_API)?);
    let oldest = number(&engine.min_api_version).unwrap_or_default();
    (newest >= number(MIN_API)? && newest >= oldest).then(|| format!("{}.{}", newest.0, newest.1))
}

fn number(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let engine = |api: &str, min: &str| EngineVersion {
            version: "1".into(),
            api_version: api.into(),
            min_api_version: min.into(),
        };
        assert_eq!(negotiate(&engine("1.41", "1.12")).as_deref(), Some("1.41"));
        assert_eq!(negotiate(&engine("1.51", "1.24")).as_deref(), Some(MAX_API));
        assert_eq!(negotiate(&engine("1.40", "")).as_deref(), Some("1.40"));
        for unusable in [engine("1.39", "1.12"), engine("1.60", "1.50"), engine("one", "1.1")] {
            assert_eq!(negotiate(&unusable), None);
        }
    }

    #[test]
    fn an_image_without_a_tag_has_the_default_one() {
        for (image, expected) in [
            ("busybox", "busybox:latest"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            ("host:5000/a/b:1", "host:5000/a/b:1"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_tag(image), expected);
        }
    }

    #[test]
    fn the_words_of_an_engine_are_one_line() {
        assert_eq!(failure_of(br#"{"error":"no\nbasic auth","errorDetail":{}}"#).unwrap(), "no basic auth");
        assert_eq!(failure_of(br#"{"status":"Pulling"}"#), None);
        assert_eq!(failure_of(b"not JSON"), None);
    }
}
