//! `berth volume`: disks that outlive tasks.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, Connection, Service};
use super::{output, table};

/// How long one request waits for a disk to be made.
const WAIT_SECONDS: u64 = 10;
const POLL: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "\
A volume is a disk of its own that one task at a time can have, and that stays when the task has gone. It is named, or has an
id (vol-…). A snapshot is a copy of a volume that no task has just then; new volumes are made of it.

Examples:
  berth volume create db --size 20
  berth run --volume db:/var/lib/postgresql/data postgres
  berth volume snapshot db --as db-monday
  berth volume create db-copy --snapshot db-monday
  berth volume rm db-copy db-monday")]
pub(super) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Subcommand)]
enum VolumeCommand {
    /// Make a volume, empty or as a copy of a snapshot
    Create(CreateArgs),
    /// List volumes and snapshots
    Ls(LsArgs),
    /// Delete volumes and snapshots for good; none that a task has
    Rm(RmArgs),
    /// Copy a volume that no task has
    Snapshot(SnapshotArgs),
}

#[derive(Args)]
struct CreateArgs {
    /// Up to 64 letters, digits, dots, dashes and underscores
    #[arg(value_name = "NAME")]
    name: String,
    /// Most that it holds; a copy has the size of its snapshot
    #[arg(long, value_name = "GIB", required_unless_present = "snapshot")]
    size: Option<u32>,
    /// Start with what is in this snapshot
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
struct RmArgs {
    /// Names or ids
    #[arg(value_name = "VOLUME", required = true)]
    volumes: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
struct SnapshotArgs {
    /// The volume's name or id
    #[arg(value_name = "VOLUME")]
    volume: String,
    /// The snapshot's name; it has an id in any case
    #[arg(long = "as", value_name = "NEW")]
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn volume(args: VolumeArgs) -> anyhow::Result<()> {
    match args.command {
        VolumeCommand::Create(args) => create(args).await,
        VolumeCommand::Ls(args) => list(args).await,
        VolumeCommand::Rm(args) => remove(args).await,
        VolumeCommand::Snapshot(args) => snapshot(args).await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let input = json!({
        "name": args.name, "sizeInGiB": args.size, "snapshot": args.snapshot, "waitSeconds": WAIT_SECONDS,
    });
    let made = client.call(Service::Berth, "CreateVolume", &input).await?;
    say(&made_whole(&client, made["volume"].clone()).await?, args.json)
}

async fn snapshot(args: SnapshotArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let input = json!({ "volume": args.volume, "name": args.name, "waitSeconds": WAIT_SECONDS });
    let made = client.call(Service::Berth, "SnapshotVolume", &input).await?;
    say(&made_whole(&client, made["volume"].clone()).await?, args.json)
}

/// The volume once its disk is there.
async fn made_whole(client: &Client, mut volume: Value) -> anyhow::Result<Value> {
    let id = volume["volumeId"].clone();
    while volume["state"] == "creating" {
        tokio::time::sleep(POLL).await;
        let answer = client.call(Service::Berth, "ListVolumes", &json!({})).await?;
        let mut all = answer["volumes"].as_array().into_iter().flatten();
        let found = all.find(|volume| volume["volumeId"] == id);
        volume = found.cloned().ok_or_else(|| {
            anyhow::anyhow!("the volume could not be made; the daemon's log has the reason")
        })?;
    }
    Ok(volume)
}

fn say(volume: &Value, json: bool) -> anyhow::Result<()> {
    let text = match json {
        true => format!("{volume:#}\n"),
        false => format!("{}\n", called(volume)),
    };
    Ok(output::print(&text)?)
}

async fn list(args: LsArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let answer = client.call(Service::Berth, "ListVolumes", &json!({})).await?;
    let text = match args.json {
        true => format!("{answer:#}\n"),
        false => page(&answer),
    };
    Ok(output::print(&text)?)
}

async fn remove(args: RmArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let mut removed = Vec::new();
    for volume in &args.volumes {
        let input = json!({ "volume": volume });
        removed.push(client.call(Service::Berth, "DeleteVolume", &input).await?);
        if !args.json {
            output::print(&format!("{}\n", table::printable(volume)))?;
        }
    }
    match args.json {
        true => Ok(output::print(&format!("{:#}\n", json!({ "removed": removed })))?),
        false => Ok(()),
    }
}

fn page(answer: &Value) -> String {
    let volumes = answer["volumes"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = volumes
        .map(|volume| {
            let state = match volume["kind"].as_str() {
                Some("snapshot") if volume["state"] == "available" => "snapshot".to_owned(),
                _ => shown(&volume["state"]),
            };
            let task = shown(&volume["taskArn"]);
            vec![
                shown(&volume["name"]),
                shown(&volume["volumeId"]),
                format!("{} GiB", volume["sizeInGiB"]),
                table::bytes(volume["usedBytes"].as_u64().unwrap_or(0)),
                state,
                task.rsplit('/').next().unwrap_or_default().to_owned(),
            ]
        })
        .collect();
    table::columns(&["NAME", "ID", "SIZE", "USED", "STATE", "TASK"], &rows, &[2, 3])
}

/// Its name, or its id.
fn called(volume: &Value) -> String {
    let name = match volume["name"].is_string() {
        true => &volume["name"],
        false => &volume["volumeId"],
    };
    shown(name)
}

/// On one line, and without what a terminal would obey.
fn shown(value: &Value) -> String {
    table::printable(value.as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_listed_with_their_task() {
        let text = page(&json!({ "volumes": [
            { "name": "db", "volumeId": "vol-1", "kind": "volume", "sizeInGiB": 20, "usedBytes": 3 << 20,
              "state": "attached", "taskArn": "arn:aws:ecs:x:y:task/default/00ff" },
            { "name": null, "volumeId": "snap-2", "kind": "snapshot", "sizeInGiB": 20, "usedBytes": 0,
              "state": "available", "taskArn": null },
        ] }));
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            ["db", "vol-1", "20", "GiB", "3.0", "MiB", "attached", "00ff"]
        );
        assert_eq!(lines[2], ["snap-2", "20", "GiB", "0", "B", "snapshot"]);
    }

    #[test]
    fn what_has_no_name_is_called_by_its_id() {
        assert_eq!(called(&json!({ "name": "db", "volumeId": "vol-1" })), "db");
        assert_eq!(called(&json!({ "name": null, "volumeId": "vol-1" })), "vol-1");
    }
}
