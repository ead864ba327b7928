//! A Docker volume driver for tests: `test-volume-driver SOCKET DIRECTORY`.
//!
//! ```text
//! DIRECTORY/
//!   log              a line per call: method, volume, id
//!   data/NAME        content of a volume, and NAME.options
//!   mnt/NAME         where it is mounted, while an id uses it
//!   fault-METHOD     what to do instead, see `Fault`
//! ```
//!
//! It mounts for the first id and unmounts for the last one, refuses an id that it knows or does not know, and does not unmount
//! what is in use.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::{env, thread};

use rustix::mount::{UnmountFlags, mount, mount_bind, unmount};
use serde_json::{Value as Json, json};

struct Driver {
    directory: PathBuf,
    /// The ids that use each volume.
    users: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

fn main() {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [socket, directory] = &arguments[..] else { panic!("expected a socket and a directory") };
    for part in ["data", "mnt"] {
        fs::create_dir_all(directory.join(part)).unwrap();
    }
    drop(fs::remove_file(socket));
    let listener = UnixListener::bind(socket).unwrap();
    println!("ready");
    let driver = Arc::new(Driver { directory: directory.clone(), users: Mutex::default() });
    for connection in listener.incoming() {
        let driver = Arc::clone(&driver);
        thread::spawn(move || {
            // A client that has gone is none of the driver's business.
            let _ = driver.serve(connection.unwrap());
        });
    }
}

impl Driver {
    fn serve(&self, connection: UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let method = line.split(['/', ' ']).nth(2).unwrap_or_default().rsplit('.').next().unwrap().to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request: Json = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
        let (name, id) = (text("Name"), text("ID"));
        // Before the call is logged: a test that waits for that changes the fault for the next one.
        let fault = fs::read_to_string(self.directory.join(format!("fault-{method}"))).unwrap_or_default();
        self.log(&format!("{method} {name} {id}"));
        let (fault, argument) = fault.trim_end().split_once(' ').unwrap_or((fault.trim_end(), ""));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        match fault {
            "" => {}
            // Never answers.
            "hang" => return reader.read_to_end(&mut Vec::new()).map(drop),
            // Answers when a FIFO has a writer.
            "wait" => drop(fs::read(argument)?),
            // Does it, and never answers.
            "forget" => {
                self.answer(&method, &name, &id, &request);
                self.log(&format!("done: {method}"));
                return reader.read_to_end(&mut Vec::new()).map(drop);
            }
            "say" => return (&connection).write_all(argument.replace("\\r\\n", "\r\n").as_bytes()),
            // A body without an end, by byte or by block.
            "trickle" | "flood" => {
                (&connection).write_all(head.as_bytes())?;
                let piece = if fault == "flood" { vec![b' '; 1 << 16] } else { b"x".to_vec() };
                if fault == "flood" {
                    (&connection).write_all(b"\r\n")?;
                }
                loop {
                    (&connection).write_all(&piece)?;
                }
            }
            "error" => return respond(&connection, &json!({ "Err": argument })),
            "mountpoint" => {
                self.answer(&method, &name, &id, &request);
                return respond(&connection, &json!({ "Mountpoint": argument, "Err": "" }));
            }
            other => panic!("unknown fault `{other}`"),
        }
        respond(&connection, &self.answer(&method, &name, &id, &request))
    }

    fn log(&self, line: &str) {
        let path = self.directory.join("log");
        let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
        log.write_all(format!("{}\n", line.trim_end()).as_bytes()).unwrap();
    }

    fn answer(&self, method: &str, name: &str, id: &str, request: &Json) -> Json {
        let mut users = self.users.lock().unwrap();
        // Names may be paths.
        let file = name.replace('/', "_");
        let (data, at) = (self.directory.join("data").join(&file), self.directory.join("mnt").join(&file));
        let error = |message: String| json!({ "Err": message });
        let found = |name: &str| json!({ "Name": name, "Mountpoint": if at.exists() { json!(at) } else { json!("") } });
        match method {
            "Activate" => json!({ "Implements": ["VolumeDriver"] }),
            "Capabilities" => json!({ "Capabilities": { "Scope": "local" } }),
            "Create" => {
                fs::create_dir_all(&data).unwrap();
                fs::write(data.with_extension("options"), request["Opts"].to_string()).unwrap();
                json!({ "Err": "" })
            }
            "Get" if data.is_dir() => json!({ "Volume": found(name), "Err": "" }),
            "List" => {
                let entries = fs::read_dir(self.directory.join("data")).unwrap().flatten();
                let names = entries.filter(|entry| entry.path().is_dir());
                let all: Vec<Json> =
                    names.map(|entry| json!({ "Name": entry.file_name().to_str().unwrap() })).collect();
                json!({ "Volumes": all, "Err": "" })
            }
            "Remove" => {
                drop(fs::remove_dir_all(&data));
                drop(fs::remove_file(data.with_extension("options")));
                json!({ "Err": "" })
            }
            "Path" => json!({ "Mountpoint": at, "Err": "" }),
            "Mount" if !data.is_dir() => error(format!("no volume {name}")),
            "Mount" => {
                let users = users.entry(name.to_owned()).or_default();
                if !users.insert(id.to_owned()) {
                    return error(format!("{name} is mounted for {id} already"));
                }
                if users.len() == 1 {
                    fs::create_dir_all(&at).unwrap();
                    let options = fs::read_to_string(data.with_extension("options")).unwrap_or_default();
                    if options.contains("tmpfs") {
                        mount("none", &at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
                    } else {
                        mount_bind(&data, &at).unwrap();
                    }
                }
                json!({ "Mountpoint": at, "Err": "" })
            }
            "Unmount" => {
                let is_last = match users.get(name) {
                    Some(users) if users.contains(id) => users.len() == 1,
                    _ => return error(format!("{name} is not mounted for {id}")),
                };
                if is_last {
                    if let Err(errno) = unmount(&at, UnmountFlags::empty()) {
                        return error(format!("cannot unmount {name}: {errno}"));
                    }
                    fs::remove_dir(&at).unwrap();
                }
                users.get_mut(name).unwrap().remove(id);
                json!({ "Err": "" })
            }
            other => error(format!("no such volume or method: {other} {name}")),
        }
    }
}

/// Answers, and says that the connection ends. An engine that takes it for a further call, which then fails, repeats the call
/// without its body.
fn respond(mut connection: &UnixStream, answer: &Json) -> io::Result<()> {
    let body = answer.to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    write!(connection, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    connection.flush()
}
