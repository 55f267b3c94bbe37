//! `berth exec`: a command in a container, with its streams here.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};

use berth_runtime::protocol::MAX_OUTPUT_BYTES;
use berth_runtime::protocol::exec::{FromCommand, STDERR, STDIN, STDOUT, ToCommand};
use berth_runtime::protocol::frame::{Decoder, Frame, encode_data, encode_message};
use clap::Args;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::client::{Client, Connection, Service};
use super::table::printable;
use super::task;
use super::terminal::{self, RawMode};

const PROTOCOL: &str = "berth-command";
/// What shells exit with where a program cannot be run, and where there is none.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Pieces of input that wait to be sent.
const INPUT_PIECES: usize = 8;

#[derive(Args)]
#[command(after_help = "\
Standard input, output and error pass through unchanged, binary too; the exit code is the command's. Without -i the command
has no input. With -t it has a terminal: keys such as Ctrl-C are the command's.

Examples:
  berth exec 3f2a -- cat /etc/hostname
  berth exec -it 3f2a -- sh
  tar c dir | berth exec -i 3f2a -- tar x -C /srv
  berth exec -e DEBUG=1 -c web 3f2a -- /app/check")]
pub(super) struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The container, where the task has several
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Set an environment variable, on top of the container's own; may be repeated
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// The task's id, or any unique beginning of it
    #[arg(value_name = "TASK")]
    task: String,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form NAME=VALUE")),
    }
}

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("standard input is no terminal; leave out -t")]
    NoTerminal,
    #[error("the task has gone, or the daemon; see berth describe")]
    Gone,
}

pub(super) async fn exec(args: ExecArgs) -> anyhow::Result<u8> {
    if args.tty && args.interactive && !io::stdin().is_terminal() {
        return Err(ExecError::NoTerminal.into());
    }
    let client = Client::new(&args.connection)?;
    let found = task::Task::from_json(&task::find(&client, &args.task).await?)?;
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    let size = args.tty.then(terminal::size);
    if args.tty
        && let Ok(name) = std::env::var("TERM")
    {
        environment.insert("TERM".to_owned(), name);
    }
    environment.extend(args.environment);
    let mut input = json!({
        "task": found.id(),
        "command": args.command,
        "environment": environment,
    });
    if let Some(container) = &args.container {
        input["container"] = json!(container);
    }
    if let Some(size) = size {
        input["terminal"] = json!(size);
    }
    let stream = client
        .switch(Service::Berth, "ExecuteCommand", &input, PROTOCOL)
        .await?;
    let raw = (args.tty && args.interactive).then(RawMode::begin).transpose()?;
    let outcome = converse(TokioIo::new(stream), args.interactive, args.tty).await;
    drop(raw);
    match outcome? {
        FromCommand::Exited { exit_code } => Ok(u8::try_from(exit_code).unwrap_or(u8::MAX)),
        FromCommand::Failed { reason } => {
            eprintln!("berth: {}", printable(&reason));
            let missing = reason.contains("not found") || reason.contains("no such file");
            Ok(if missing { NOT_FOUND } else { CANNOT_RUN })
        }
    }
}

/// Passes everything on until the command has ended.
async fn converse(stream: TokioIo<Upgraded>, interactive: bool, tty: bool) -> anyhow::Result<FromCommand> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut input = interactive.then(read_input);
    let mut frame = Vec::new();
    if input.is_none() {
        encode_message(&ToCommand::StdinEnd, &mut frame)?;
    }
    let mut resized = signal(SignalKind::window_change())?;
    let (mut interrupted, mut terminated) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; MAX_OUTPUT_BYTES];
    loop {
        // Output is read while input waits to be taken: the command may do one only after the other.
        tokio::select! {
            written = to.write(&frame), if !frame.is_empty() => {
                let count = written.map_err(|_| ExecError::Gone)?;
                frame.drain(..count);
            }
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return Err(ExecError::Gone.into()),
                Ok(count) => {
                    decoder.push(&buffer[..count]);
                    while let Some(frame) = decoder.next::<FromCommand>()? {
                        match frame {
                            Frame::Message(outcome) => return Ok(outcome),
                            Frame::Data(data) => write_output(data.stream, &data.bytes)?,
                            Frame::Output(_) => {}
                        }
                    }
                }
            },
            piece = next(&mut input), if frame.len() < MAX_OUTPUT_BYTES => match piece {
                Some(bytes) => encode_data(STDIN, &bytes, &mut frame)?,
                None => {
                    input = None;
                    encode_message(&ToCommand::StdinEnd, &mut frame)?;
                }
            },
            _ = resized.recv(), if tty => {
                encode_message(&ToCommand::Resize { size: terminal::size() }, &mut frame)?;
            }
            _ = interrupted.recv() => {
                encode_message(&ToCommand::Signal { signal: libc_signal(SignalKind::interrupt()) }, &mut frame)?;
            }
            _ = terminated.recv() => {
                encode_message(&ToCommand::Signal { signal: libc_signal(SignalKind::terminate()) }, &mut frame)?;
            }
        }
    }
}

fn libc_signal(kind: SignalKind) -> i32 {
    kind.as_raw_value()
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// A thread of its own reads, since a read from a terminal cannot be given up; it ends with the process.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (pieces, input) = mpsc::channel(INPUT_PIECES);
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_OUTPUT_BYTES];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            if pieces.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    input
}

/// As it is: a container's bytes are its user's own.
fn write_output(stream: u8, bytes: &[u8]) -> io::Result<()> {
    let write = |out: &mut dyn Write| out.write_all(bytes).and_then(|()| out.flush());
    match stream {
        STDOUT => write(&mut io::stdout().lock()),
        STDERR => write(&mut io::stderr().lock()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name_and_a_value() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(variable("A="), Ok(("A".to_owned(), String::new())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }
}
