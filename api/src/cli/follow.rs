//! A container's output, from its first byte to its last, written out as it comes.

use std::io::{self, Stderr, Stdout};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, Service};
use super::output::Sink;
use super::task::TaskError;

/// How long one request waits for output that is not there yet.
const WAIT_SECONDS: u64 = 20;

#[derive(Deserialize)]
struct Page {
    events: Vec<Event>,
    /// Where to read on.
    position: u64,
    /// The container has ended and this was the last of it.
    end: bool,
}

#[derive(Deserialize)]
struct Event {
    stream: Stream,
    /// Base64.
    data: String,
    /// Whether a newline followed.
    newline: bool,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error("cannot write the task's output: {0}")]
    Write(#[from] io::Error),
}

/// Reads one container's output and passes it on, stdout to stdout and stderr to stderr.
pub(super) struct Follower<'a> {
    client: &'a Client,
    task: &'a str,
    container: Option<&'a str>,
    position: u64,
    stdout: Sink<Stdout>,
    stderr: Sink<Stderr>,
}

impl<'a> Follower<'a> {
    /// Starts at the first byte. No container means the first one of the task.
    pub(super) fn new(client: &'a Client, task: &'a str, container: Option<&'a str>) -> Follower<'a> {
        let (stdout, stderr) = (Sink::new(io::stdout()), Sink::new(io::stderr()));
        Follower {
            client,
            task,
            container,
            position: 0,
            stdout,
            stderr,
        }
    }

    /// Nobody reads stdout any more.
    pub(super) fn is_unread(&self) -> bool {
        self.stdout.is_closed()
    }

    /// Writes all that there is now.
    pub(super) async fn drain(&mut self) -> Result<(), FollowError> {
        while self.step(0).await? == Progress::More {}
        Ok(())
    }

    /// Waits for some output and writes it; true once there will be no more.
    pub(super) async fn next(&mut self) -> Result<bool, FollowError> {
        Ok(self.step(WAIT_SECONDS).await? == Progress::End)
    }

    async fn step(&mut self, wait_seconds: u64) -> Result<Progress, FollowError> {
        let mut input = json!({"task": self.task, "position": self.position, "waitSeconds": wait_seconds});
        if let Some(container) = self.container {
            input["container"] = json!(container);
        }
        let answer = self
            .client
            .call_patiently(Service::Berth, "GetOutput", &input)
            .await
            .map_err(TaskError::from)?;
        let page: Page =
            serde_json::from_value(answer).map_err(|error| TaskError::Malformed(error.to_string()))?;
        let came = !page.events.is_empty();
        for event in page.events {
            let mut bytes = BASE64_STANDARD
                .decode(event.data)
                .map_err(|error| TaskError::Malformed(format!("output is no base64: {error}")))?;
            if event.newline {
                bytes.push(b'\n');
            }
            match event.stream {
                Stream::Stdout => self.stdout.write(&bytes)?,
                Stream::Stderr => {
                    // Whoever reads both sees them in the order in which they were written.
                    self.stdout.flush()?;
                    self.stderr.write(&bytes)?;
                }
            }
        }
        self.stdout.flush()?;
        self.position = page.position;
        Ok(match (page.end, came) {
            (true, _) => Progress::End,
            (false, true) => Progress::More,
            (false, false) => Progress::Nothing,
        })
    }
}

#[derive(PartialEq)]
enum Progress {
    More,
    /// Nothing new for now.
    Nothing,
    End,
}
