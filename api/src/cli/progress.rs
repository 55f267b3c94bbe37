//! How far the start of a task is, on stderr: a bar on a terminal, one line a phase elsewhere, nothing if asked so.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;

/// How far an image pull is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PullStatus {
    /// `resolving`, `downloading`, `unpacking` or `packing`.
    pub(super) phase: String,
    pub(super) layers_done: u32,
    pub(super) layers_total: u32,
    pub(super) bytes_done: u64,
    pub(super) bytes_total: u64,
}

pub(super) enum Progress {
    Bar(ProgressBar),
    Lines { last: String },
    Quiet,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Progress {
        if quiet {
            Progress::Quiet
        } else if stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(120));
            Progress::Bar(bar)
        } else {
            Progress::Lines { last: String::new() }
        }
    }

    /// What the task waits for in this status.
    pub(super) fn status(&mut self, last_status: &str) {
        match last_status {
            "PROVISIONING" => self.phase("making its network interface"),
            "PENDING" => self.phase("pulling the image"),
            "ACTIVATING" => self.phase("starting its machine"),
            _ => {}
        }
    }

    pub(super) fn pull(&mut self, pull: &PullStatus) {
        match self {
            Progress::Bar(bar) if pull.bytes_total > 0 => {
                bar.set_length(pull.bytes_total);
                bar.set_position(pull.bytes_done.min(pull.bytes_total));
                let counted = if pull.layers_total > 0 {
                    format!(
                        "{} (layer {}/{})",
                        pull.phase, pull.layers_done, pull.layers_total
                    )
                } else {
                    pull.phase.clone()
                };
                bar.set_message(super::table::printable(&counted));
                if let Ok(style) =
                    ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}")
                {
                    bar.set_style(style.progress_chars("=> "));
                }
            }
            _ => self.phase(&format!("pulling the image: {}", pull.phase)),
        }
    }

    fn phase(&mut self, name: &str) {
        let name = super::table::printable(name);
        match self {
            Progress::Bar(bar) => {
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                    bar.set_style(style);
                }
                bar.set_message(name);
            }
            Progress::Lines { last } if *last != name => {
                eprintln!("berth: {name}");
                *last = name;
            }
            Progress::Lines { .. } | Progress::Quiet => {}
        }
    }

    /// Takes the bar off the terminal, so that the output starts on a clean line.
    pub(super) fn finish(self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
