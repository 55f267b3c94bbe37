//! `berth bill`: what tasks cost, to the nano-dollar.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Connection, Service};
use super::{output, table, task, time};

/// Digits of a task id that are shown.
const SHORT_ID: usize = 12;

#[derive(Args)]
#[command(after_help = "\
A task is billed from the start of its image pull to the end of its execution, rounded up to the second, at least one
minute. While it is paused its memory costs, and its processors do not, unless the price list says otherwise. Amounts
are exact.

Examples:
  berth bill                       # every task there ever was
  berth bill --since 2026-11-01    # those whose billing began on that day (UTC) or later
  berth bill --since 1h
  berth bill --task 3f2a --json")]
pub(super) struct BillArgs {
    /// Only this task: its id, or any unique beginning of it
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Only tasks whose billing began at that time or later: 2026-11-01, an RFC 3339 time, or 30m, 1h, 7d ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Print JSON; amounts are integers of 10^-9 dollars
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bill {
    currency: String,
    lines: Vec<Line>,
    total_nanos: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    task: String,
    family: String,
    revision: u32,
    cpu_units: u32,
    memory_mib: u32,
    billed_seconds: u64,
    open: bool,
    vcpu_nanos: u64,
    memory_nanos: u64,
    storage_nanos: u64,
    total_nanos: u64,
}

pub(super) async fn bill(args: BillArgs) -> anyhow::Result<()> {
    let mut input = json!({});
    if let Some(since) = &args.since {
        let since = time::since(since, jiff::Timestamp::now())?;
        input["since"] = json!(since.as_second());
    }
    let client = Client::new(&args.connection)?;
    if let Some(prefix) = &args.task {
        input["task"] = json!(whole_id(&client, prefix).await?);
    }
    let answer = client.call(Service::Berth, "GetBill", &input).await?;
    let text = if args.json {
        format!("{answer:#}\n")
    } else {
        page(answer)?
    };
    Ok(output::print(&text)?)
}

/// A whole id is taken as it is: the ledger remembers tasks longer than they can be described.
async fn whole_id(client: &Client, prefix: &str) -> Result<String, task::TaskError> {
    if prefix.len() == 32 {
        return Ok(prefix.to_owned());
    }
    let found = task::Task::from_json(&task::find(client, prefix).await?)?;
    Ok(found.id().to_owned())
}

fn page(answer: Value) -> Result<String, task::TaskError> {
    let bill: Bill =
        serde_json::from_value(answer).map_err(|error| task::TaskError::Malformed(error.to_string()))?;
    let header = [
        "TASK",
        "DEFINITION",
        "CPU",
        "MIB",
        "BILLED",
        "VCPU",
        "MEMORY",
        "STORAGE",
        "TOTAL",
    ];
    let rows: Vec<Vec<String>> = bill.lines.iter().map(row).collect();
    let mut text = table::columns(&header, &rows, &[2, 3, 4, 5, 6, 7, 8]);
    text.push_str(&format!(
        "{} task{}, {} {} in all\n",
        bill.lines.len(),
        if bill.lines.len() == 1 { "" } else { "s" },
        table::money(bill.total_nanos),
        table::printable(&bill.currency),
    ));
    Ok(text)
}

fn row(line: &Line) -> Vec<String> {
    vec![
        line.task.chars().take(SHORT_ID).collect(),
        format!("{}:{}", line.family, line.revision),
        line.cpu_units.to_string(),
        line.memory_mib.to_string(),
        // A running task is billed up to now, and goes on.
        format!("{}s{}", line.billed_seconds, if line.open { "+" } else { "" }),
        table::money(line.vcpu_nanos),
        table::money(line.memory_nanos),
        table::money(line.storage_nanos),
        table::money(line.total_nanos),
    ]
}
