//! `cofferdam top`: shows the usage of containers on the whole screen, and the most demanding ones first.

mod keys;
mod sort;
mod view;

use std::io::{self, IsTerminal, Read, Write};
use std::pin::pin;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::keys::{Action, Keys};
use self::sort::SortBy;
use self::view::View;
use super::client::{Client, ClientError};
use super::failure::Failure;
use super::foreground::{RawMode, window_size};
use super::output::{escape_control, has_colour};
use super::ps::{self, Details};
use super::unknown::USAGE;
use super::{Outcome, block_on, time};
use crate::api::operator::types::Container;

/// Shows the usage of all running containers on the whole screen, until `q` is typed
///
/// The keys `c`, `m`, `p`, `i` and `n` sort by CPU, memory, processes, I/O and name, `r` reverses the order, and the arrows
/// scroll. I/O is that of block devices.
///
/// Examples:
///   cofferdam top
///   cofferdam top --sort memory --interval 5s
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// For users of docker, whose `top` shows the processes of a container
    #[arg(hide = true)]
    id: Option<String>,
    /// What comes first
    #[arg(long, short, value_enum, value_name = "COLUMN", default_value_t = SortBy::Cpu)]
    sort: SortBy,
    /// Time between two samples
    #[arg(long, short, value_name = "TIME", default_value = "2s", value_parser = time::parse_interval)]
    interval: Duration,
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    if let Some(id) = &arguments.id {
        let id = escape_control(id);
        return Err(Failure::message(format!(
            "`top` shows all containers; `cofferdam exec {id} -- ps` shows the processes of `{id}`, if it has `ps`, and \
             `cofferdam stats --watch {id}` its usage"
        ))
        .with_status(USAGE));
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::message("`top` needs a terminal; `cofferdam stats` prints a table"));
    }
    block_on(async {
        // Fails before the screen is changed.
        let first = ps::list(client, &[], Details::STATISTICS).await?;
        let screen = RawMode::enter_screen()?;
        let finished = fill(arguments, client, View::new(arguments.sort, first)).await;
        screen.restore();
        finished
    })
}

/// Shows the containers until the user or a signal ends it. Returns the exit status.
async fn fill(arguments: &Arguments, client: &Client, mut view: View) -> Outcome {
    let failed = |source| Failure::system("cannot handle signals", source);
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hung_up = signal(SignalKind::hangup()).map_err(failed)?;
    let mut typed = read_keys()?;
    let mut keys = Keys::default();
    // The first usage comes soon. An agent that does not answer delays neither keys nor signals.
    let mut next = pin!(list_after(time::MIN_INTERVAL, client));
    loop {
        draw(&view)?;
        tokio::select! {
            containers = &mut next => {
                view.update(containers?);
                next.set(list_after(arguments.interval, client));
            }
            bytes = typed.recv() => {
                // The end of input is that of the terminal.
                let Some(bytes) = bytes else { return Ok(0) };
                for action in keys.actions(&bytes) {
                    if action == Action::Quit {
                        return Ok(0);
                    }
                    view.act(action, rows());
                }
            }
            _ = resized.recv() => {}
            _ = terminated.recv() => return Ok(128 + 15),
            _ = interrupted.recv() => return Ok(128 + 2),
            _ = hung_up.recv() => return Ok(128 + 1),
        }
    }
}

/// The containers with their usage, after a time.
async fn list_after(time: Duration, client: &Client) -> Result<Vec<Container>, ClientError> {
    tokio::time::sleep(time).await;
    ps::list(client, &[], Details::STATISTICS).await
}

/// What is typed, from a thread that is left behind when the program ends.
fn read_keys() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    };
    let started = thread::Builder::new().name("keys".to_owned()).spawn(read);
    started.map_err(|source| Failure::system("cannot start a thread", source))?;
    Ok(receiver)
}

/// Rows of the terminal.
fn rows() -> usize {
    window_size().map_or(24, |(rows, _)| usize::from(rows)).max(1)
}

fn draw(view: &View) -> io::Result<()> {
    let columns = window_size().map_or(80, |(_, columns)| usize::from(columns)).max(1);
    let mut stdout = io::stdout().lock();
    stdout.write_all(view.screen(rows(), columns, has_colour(&io::stdout())).as_bytes())?;
    stdout.flush()
}
