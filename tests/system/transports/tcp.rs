//! TCP on the loopback interface: who may use it, and how.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::{TOKEN, World};
use cofferdam_tests::{assert_contains, is_root, paths};

use super::{PYTHON, address, has_protobuf, world};

const HEALTH: &str = r#"{"type": "GET_HEALTH"}"#;

/// The response to a request with some lines in its head.
fn exchange(address: &str, request: &str, lines: &[&str], body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut head = format!("{request} HTTP/1.1\r\nConnection: close\r\n");
    for line in lines {
        head += &format!("{line}\r\n");
    }
    let length = body.len();
    write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn assert_status(response: &str, status: u16) {
    assert_contains(response, &[&format!("HTTP/1.1 {status} ")]);
}

#[test]
fn every_request_needs_a_token() {
    let world = world();
    let daemon = Daemon::start(&world);
    let address = address(&daemon);
    let host = format!("Host: {address}");
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let requests = [
        "GET /state",
        "GET /health",
        "POST /api/v1",
        "POST /api/v1/executor",
        "GET /slave(1)/state",
        "GET /none",
    ];
    for request in requests {
        for line in [
            "X-None: x".to_owned(),
            "Authorization: Bearer".to_owned(),
            "Authorization: Bearer ".to_owned(),
            format!("Authorization: Basic {TOKEN}"),
            format!("Authorization: Bearer {}", &TOKEN[1..]),
            format!("Authorization: Bearer {TOKEN}x"),
        ] {
            let response = exchange(&address, request, &[&host, &line], HEALTH);
            assert_status(&response, 401);
            assert_contains(&response, &["www-authenticate: Bearer", "`api.token_file`"]);
        }
    }
    for path in ["/state", "/slave(1)/state", "/slave%281%29/state", "/state.json", "/state/"] {
        let response = exchange(&address, &format!("GET {path}"), &[&host, &authorization], "");
        assert_status(&response, 200);
    }
    for path in ["/api/v1", "/api/v1/", "/api/v1/operator", "/slave(1)/api/v1"] {
        let response = exchange(&address, &format!("POST {path}"), &[&host, &authorization], HEALTH);
        assert_status(&response, 200);
        assert_contains(&response, &[r#"{"healthy":true}"#]);
    }
    // The token of operators is not that of an executor.
    let response = exchange(&address, "POST /api/v1/executor", &[&host, &authorization], HEALTH);
    assert_status(&response, 404);
    assert!(!daemon.log().contains(&TOKEN[1..]), "the token is in the log");
}

#[test]
fn names_that_others_have_given_to_the_address_are_refused() {
    let world = world();
    let daemon = Daemon::start(&world);
    let address = address(&daemon);
    let authorization = format!("Authorization: Bearer {TOKEN}");
    for host in ["Host: rebound.example", "Host: 10.0.0.1:5051"] {
        let response = exchange(&address, "POST /api/v1", &[host, &authorization], HEALTH);
        assert_status(&response, 403);
        assert_contains(&response, &["is not a name of the loopback interface"]);
    }
    assert_status(&exchange(&address, "POST /api/v1", &[&authorization], HEALTH), 400);
    assert_status(&exchange(&address, "POST /api/v1", &["Host: localhost:1", &authorization], HEALTH), 200);
}

#[test]
fn executors_can_tell_where_the_agent_listens() {
    let world = world();
    let daemon = Daemon::start(&world);
    let address = address(&daemon);
    assert!(address.parse::<SocketAddr>().unwrap().port() > 0);
    // It stays the same for as long as the agent runs, and is off by default.
    assert_eq!(super::address(&daemon), address);
    let plain = World::posix();
    let daemon = Daemon::start(&plain);
    assert!(daemon.get("/flags")["flags"].get("api.listen").is_none());
}

#[test]
fn an_agent_without_a_usable_token_does_not_start() {
    let world = world();
    let config = world.write_config();
    let token = world.directory().join("token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o640)).unwrap();
    let agent = Command::new(paths::build().join("cofferdam"))
        .arg("agent")
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&agent.stderr);
    assert!(!agent.status.success());
    assert_contains(&errors, &["`api.token_file` cannot be used", "its mode is 0640", "chmod 600"]);
    assert!(!errors.contains(TOKEN));
    assert!(!world.socket().exists(), "it has not begun to start");
}

#[test]
fn a_group_may_use_the_socket() {
    if !is_root("becoming another user") || !has_protobuf() {
        return;
    }
    /// A user and a group that nobody has.
    const GROUP: &str = "61234";
    let mut world = World::posix();
    world.socket_access = Some((GROUP.to_owned(), "0660".to_owned()));
    let daemon = Daemon::start(&world);
    let file = fs::symlink_metadata(world.socket()).unwrap();
    assert_eq!((file.mode() & 0o777, file.gid().to_string()), (0o660, GROUP.to_owned()));
    assert_eq!(daemon.get("/flags")["flags"]["socket_group"], GROUP);
    fs::set_permissions(world.directory(), fs::Permissions::from_mode(0o711)).unwrap();
    let connect = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                   s.sendall(b'GET /health HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n'); \
                   print(s.makefile().read())";
    let as_user = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", GROUP, "--regid", "61235", groups, PYTHON, "-c", connect]);
        command.arg(world.socket()).output().unwrap()
    };
    let member = as_user(&format!("--groups={GROUP}"));
    assert_contains(&String::from_utf8_lossy(&member.stdout), &["HTTP/1.1 200 ", "\"healthy\":true"]);
    let other = as_user("--clear-groups");
    assert_contains(&String::from_utf8_lossy(&other.stderr), &["PermissionError"]);
    assert!(!other.status.success());
    // The mode of the file is not all that keeps others out.
    fs::set_permissions(world.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let other = as_user("--clear-groups");
    assert_contains(
        &String::from_utf8_lossy(&other.stdout),
        &["HTTP/1.1 403 ", "members of group 61234 may"],
    );
}
