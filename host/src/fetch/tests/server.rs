//! A server that sees the headers of requests.

use std::collections::BTreeMap;

use super::*;

/// A request.
pub(super) struct Request {
    headers: BTreeMap<String, String>,
}

impl Request {
    /// A header, by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Reads a request; `None` if the client has sent none.
    pub(super) fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next()?.ok()?;
        let mut headers = BTreeMap::new();
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Some(Self { headers })
    }
}

/// Serves every connection by `respond`. Returns the URL of the root.
pub(super) fn serve_requests(respond: impl Fn(&Request, TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            if let Some(request) = Request::read(&stream) {
                respond(&request, stream);
            }
        }
    });
    root
}
