//! The API on the loopback interface, for clients and executors that know TCP only.
//!
//! Whoever is on this host can connect, also a browser on behalf of a page, and every container with the network of the
//! host. So each request has to present a token, that of the operator API or that of an executor, and the name under which
//! the agent was found must be one of the loopback interface: names that others have given to that address are refused.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::context::ApiContext;
use super::executor::{self, Requests, bearer, unauthorized};
use super::operator::error::ApiError;
use super::operator::routes;
use super::token::{OperatorToken, TokenError};
use crate::config::TcpConfig;
use cofferdam_core::executor::Token;

/// The first port that needs no privilege.
const FIRST_UNPRIVILEGED_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// The listening socket. Whoever connects waits until the API is served: if the kernel did not listen from the beginning,
/// another user could, and would get the tokens of clients.
#[derive(Debug)]
pub struct LoopbackListener {
    listener: TcpListener,
    address: SocketAddr,
    token: OperatorToken,
    /// Keeps the port of the other address that `localhost` stands for, at which nobody listens: clients may try that one
    /// first, and another user could listen there.
    _other: Option<TcpSocket>,
}

/// Why the API cannot be served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// There is no usable token.
    #[error("`api.token_file` cannot be used")]
    Token(#[from] TokenError),
    /// The address cannot be used.
    #[error("cannot listen on `{address}`, the setting `api.listen`")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The port of the other address cannot be kept.
    #[error(
        "`api.listen` has port {}, and `{other}`, where clients that connect to `localhost` may go as well, cannot be kept from \
         others; use another port, or end what uses this one", .other.port()
    )]
    Other {
        /// The other address.
        other: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl LoopbackListener {
    /// Reads the token and listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`TcpError`].
    pub fn bind(config: &TcpConfig) -> Result<Self, TcpError> {
        let token = OperatorToken::read(&config.token_file)?;
        let bind = || {
            let socket = socket(config.address)?;
            // Connections of the agent before this one may still be in the state TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(config.address)?;
            let listener = socket.listen(BACKLOG)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            bind().map_err(|source| TcpError::Address { address: config.address, source })?;
        let other = match keep_other(address) {
            // Nobody knows a port that the kernel has chosen.
            Err(_) if config.address.port() == 0 => None,
            kept => kept?,
        };
        Ok(Self { listener, address, token, _other: other })
    }

    /// The address, with the port that the kernel has chosen if none was configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether any user can listen at its port while no agent does.
    #[must_use]
    pub fn is_open_to_users(&self) -> bool {
        let first =
            fs::read_to_string(FIRST_UNPRIVILEGED_PORT).ok().and_then(|port| port.trim().parse().ok());
        self.address.port() >= first.unwrap_or(1024)
    }

    pub(super) async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        // Events and answers are small. Without it they come later.
        drop(stream.set_nodelay(true));
        Ok(stream)
    }

    /// What a client may use.
    pub(super) fn router(&self, context: &Arc<ApiContext>, requests: &Arc<Requests>) -> Router {
        let endpoints = Endpoints {
            context: Arc::clone(context),
            token: self.token.clone(),
            operator: routes::router(Arc::clone(context)),
            executors: executor::router(Arc::clone(context), Arc::clone(requests)),
        };
        let endpoints = Arc::new(endpoints);
        Router::new().fallback(move |request| serve(Arc::clone(&endpoints), request))
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Keeps the port of the other address that `localhost` stands for, if this host has that address.
fn keep_other(address: SocketAddr) -> Result<Option<TcpSocket>, TcpError> {
    let other: IpAddr = match address {
        SocketAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
    };
    let other = SocketAddr::new(other, address.port());
    // Without SO_REUSEADDR, nobody can bind it as well, although it does not listen.
    let kept = socket(other).and_then(|socket| socket.bind(other).map(|()| socket));
    match kept {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            Ok(None)
        }
        Err(source) => Err(TcpError::Other { other, source }),
    }
}

/// The endpoints of both APIs.
struct Endpoints {
    context: Arc<ApiContext>,
    token: OperatorToken,
    operator: Router,
    executors: Router,
}

/// Answers a request with the endpoints of its token.
async fn serve(endpoints: Arc<Endpoints>, request: Request) -> Response {
    if let Err(error) = check_host(&request) {
        return error.into_response();
    }
    let presented = bearer(request.headers());
    let is_executor =
        |token: &str| endpoints.context.agent.executors().authenticate(&Token::presented(token)).is_some();
    let router = match presented {
        Some(token) if endpoints.token.is(token) => &endpoints.operator,
        Some(token) if is_executor(token) => &endpoints.executors,
        _ => {
            return unauthorized(
                "the header `Authorization: Bearer …` has neither the token of `api.token_file` nor that of an executor",
            );
        }
    };
    match TowerToHyperService::new(router.clone()).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Refuses requests that were sent to a name which is not that of the loopback interface: a page whose name somebody has
/// given to its address would be allowed by a browser to send any request to it.
fn check_host(request: &Request) -> Result<(), ApiError> {
    let host = match request.uri().authority() {
        Some(authority) => authority.clone(),
        None => host(request.headers())?,
    };
    if is_loopback(host.host()) {
        return Ok(());
    }
    let text = format!(
        "`{}` is not a name of the loopback interface; use `127.0.0.1`, `[::1]` or `localhost`",
        host.as_str().escape_debug()
    );
    Err(ApiError::message(StatusCode::FORBIDDEN, text))
}

fn host(headers: &HeaderMap) -> Result<Authority, ApiError> {
    let mut values = headers.get_all(header::HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(ApiError::bad_request("a request must have the header `Host` once"));
    };
    Authority::try_from(value.as_bytes())
        .map_err(|_| ApiError::bad_request("the header `Host` is not a host with an optional port"))
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn status(uri: &str, hosts: &[&str]) -> u16 {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let checked = check_host(&request.body(Body::empty()).unwrap());
        checked.map_or_else(|error| error.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn names_of_the_loopback_interface_are_accepted() {
        for host in
            ["127.0.0.1:5051", "127.0.0.1", "127.8.9.1:1", "[::1]:5051", "localhost", "LOCALHOST:5051"]
        {
            assert_eq!(status("/state", &[host]), 200, "{host}");
        }
        assert_eq!(status("http://localhost:5051/state", &["localhost:5051"]), 200);
    }

    #[test]
    fn other_names_of_its_address_are_refused() {
        for host in [
            "rebound.example:5051",
            "127.0.0.1.example",
            "localhost.example",
            "localhost.",
            "0.0.0.0:5051",
            "[::ffff:127.0.0.1]",
            "10.0.0.1",
        ] {
            assert_eq!(status("/state", &[host]), 403, "{host}");
        }
        // That of the request line counts.
        assert_eq!(status("http://rebound.example/state", &["localhost"]), 403);
        for hosts in [&[][..], &[""], &["a b"], &["localhost", "localhost"]] {
            assert_eq!(status("/state", hosts), 400, "{hosts:?}");
        }
    }

    fn token_file(directory: &tempfile::TempDir) -> std::path::PathBuf {
        let token_file = directory.path().join("token");
        std::fs::write(&token_file, "x".repeat(32)).unwrap();
        std::fs::set_permissions(&token_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        token_file
    }

    #[tokio::test]
    async fn nobody_else_can_listen_at_the_other_address_of_localhost() {
        let directory = tempfile::tempdir().unwrap();
        let token_file = token_file(&directory);
        for (address, other) in [
            ("127.0.0.1:0", IpAddr::from(Ipv6Addr::LOCALHOST)),
            ("[::1]:0", IpAddr::from(Ipv4Addr::LOCALHOST)),
        ] {
            let config = TcpConfig { address: address.parse().unwrap(), token_file: token_file.clone() };
            // Other programs may use the port that the kernel has chosen.
            let listener =
                (0..100).map(|_| LoopbackListener::bind(&config).unwrap()).find(|it| it._other.is_some());
            let other = SocketAddr::new(other, listener.as_ref().unwrap().address().port());
            let taken = std::net::TcpListener::bind(other).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            // An agent does not start if somebody is there.
            drop(listener);
            let Ok(_somebody) = std::net::TcpListener::bind(other) else { continue };
            let address = SocketAddr::new(config.address.ip(), other.port());
            let error = LoopbackListener::bind(&TcpConfig { address, ..config }).unwrap_err();
            assert!(matches!(error, TcpError::Other { .. } | TcpError::Address { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_else_can_listen_before_the_api_is_served() {
        let directory = tempfile::tempdir().unwrap();
        let token_file = token_file(&directory);
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let config = TcpConfig { address: address.parse().unwrap(), token_file: token_file.clone() };
            let listener = LoopbackListener::bind(&config).unwrap();
            let taken = TcpConfig { address: listener.address(), ..config };
            let error = LoopbackListener::bind(&taken).unwrap_err();
            assert!(matches!(error, TcpError::Address { .. }), "{error}");
        }
    }
}
