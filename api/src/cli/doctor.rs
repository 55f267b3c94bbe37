//! `berth doctor`: what a host of tasks needs, and what to do about what is missing. Looks only; changes nothing.

mod guest;
mod host;
pub(super) mod kvm;
mod network;

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

pub(super) use self::guest::GuestArgs;
use super::{client, output, table};

#[derive(Args)]
#[command(after_help = "\
Exits with 1 if anything is missing.

Examples:
  sudo berth doctor
  sudo berth doctor --data-dir /srv/berth --json")]
pub(super) struct DoctorArgs {
    /// Where the daemon keeps, or would keep, its data
    #[arg(long, env = "BERTH_DATA_DIR", value_name = "DIR", default_value = client::DEFAULT_DATA_DIR, hide_env_values = true)]
    data_dir: PathBuf,
    #[command(flatten)]
    guest: GuestArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What one check found.
struct Check {
    name: &'static str,
    finding: Finding,
}

enum Finding {
    Fine(String),
    /// Tasks run, but something is worth knowing.
    Note {
        found: String,
        advice: String,
    },
    Missing {
        found: String,
        advice: String,
    },
}

impl Check {
    fn fine(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            finding: Finding::Fine(found.into()),
        }
    }
    fn note(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            name,
            finding: Finding::Note {
                found: found.into(),
                advice: advice.into(),
            },
        }
    }
    fn missing(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            name,
            finding: Finding::Missing {
                found: found.into(),
                advice: advice.into(),
            },
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self.finding, Finding::Missing { .. })
    }

    /// Status, what was found, and what to do.
    fn parts(&self) -> (&'static str, &str, Option<&str>) {
        match &self.finding {
            Finding::Fine(found) => ("ok", found, None),
            Finding::Note { found, advice } => ("note", found, Some(advice)),
            Finding::Missing { found, advice } => ("missing", found, Some(advice)),
        }
    }
}

pub(super) fn doctor(args: DoctorArgs) -> anyhow::Result<u8> {
    let mut checks = vec![host::root()];
    checks.extend(kvm::checks());
    checks.extend(host::cgroups());
    checks.extend(network::checks());
    checks.extend(host::tools());
    checks.extend(guest::checks(&args.guest));
    checks.push(host::disk(&args.data_dir));
    let text = if args.json {
        format!("{:#}\n", as_json(&checks))
    } else {
        as_text(&checks)
    };
    output::print(&text)?;
    Ok(u8::from(checks.iter().any(Check::is_missing)))
}

fn as_json(checks: &[Check]) -> Value {
    let checks_json: Vec<Value> = checks
        .iter()
        .map(|check| {
            let (status, found, advice) = check.parts();
            json!({"check": check.name, "status": status, "found": found, "advice": advice})
        })
        .collect();
    json!({"ready": !checks.iter().any(Check::is_missing), "checks": checks_json})
}

fn as_text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (status, found, advice) = check.parts();
        text.push_str(&format!(
            "{status:7}  {:width$}  {}\n",
            check.name,
            table::printable(found)
        ));
        if let Some(advice) = advice {
            text.push_str(&format!(
                "{:7}  {:width$}  -> {}\n",
                "",
                "",
                table::printable(advice)
            ));
        }
    }
    text.push_str(match checks.iter().filter(|check| check.is_missing()).count() {
        0 => "This machine can run tasks.\n",
        _ => "This machine cannot run tasks yet: see the lines marked missing.\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_says_what_to_do_and_counts() {
        let checks = [
            Check::fine("a", "there"),
            Check::missing("bb", "not there", "get it"),
        ];
        let text = as_text(&checks);
        assert!(text.contains("ok       a   there\n"), "{text}");
        assert!(
            text.contains("missing  bb  not there\n             -> get it\n"),
            "{text}"
        );
        assert_eq!(as_json(&checks)["ready"], false);
    }

    #[test]
    fn a_note_does_not_count() {
        let checks = [Check::note("a", "odd", "mind it")];
        assert_eq!(as_json(&checks)["ready"], true);
        assert!(as_text(&checks).ends_with("This machine can run tasks.\n"));
    }
}
