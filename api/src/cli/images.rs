//! `berth images`: what the daemon keeps of images, and what it is to fetch or delete.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, Connection, Service};
use super::progress::{Progress, PullStatus};
use super::{output, table, time};

/// How long one request waits for a pull to go on.
const WAIT_SECONDS: u64 = 1;

#[derive(Args)]
#[command(after_help = "\
A task's image is pulled when the task starts; what is here of it already is not fetched again. Images are kept within the
budget of `berth serve --image-budget`: beyond it, what was used least recently goes, and never what a task uses.

Examples:
  berth images ls
  berth images pull registry.example/team/web:1.2     # so that its first task starts at once
  berth images rm registry.example/team/web:1.1
  berth images prune --unused-for 7d")]
pub(super) struct ImagesArgs {
    #[command(subcommand)]
    command: ImagesCommand,
}

#[derive(Subcommand)]
enum ImagesCommand {
    /// List the images that are here, and what they take on disk
    Ls(LsArgs),
    /// Pull an image, with the credentials of the daemon's Docker configuration
    Pull(PullArgs),
    /// Remove images that no task uses
    Rm(RmArgs),
    /// Remove every image that no task uses
    Prune(PruneArgs),
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
struct PullArgs {
    /// The image, such as busybox, registry.example/team/web:1.2 or …@sha256:…
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
struct RmArgs {
    /// The image, as `berth images ls` shows it or shorter
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
struct PruneArgs {
    /// Only what no task has used for so long, such as 12h or 7d
    #[arg(long, value_name = "SPAN", default_value = "0s", value_parser = time::span)]
    unused_for: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn images(args: ImagesArgs) -> anyhow::Result<()> {
    match args.command {
        ImagesCommand::Ls(args) => list(args).await,
        ImagesCommand::Pull(args) => pull(args).await,
        ImagesCommand::Rm(args) => remove(args).await,
        ImagesCommand::Prune(args) => prune(args).await,
    }
}

async fn list(args: LsArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let answer = client.call(Service::Berth, "ListImages", &json!({})).await?;
    let now = jiff::Timestamp::now().as_second();
    let text = match args.json {
        true => format!("{answer:#}\n"),
        false => page(&answer, now),
    };
    Ok(output::print(&text)?)
}

async fn pull(args: PullArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let mut progress = Progress::new(args.quiet);
    let input = json!({ "image": args.image, "waitSeconds": WAIT_SECONDS });
    let pulled = loop {
        let answer = client.call(Service::Berth, "PullImage", &input).await?;
        match &answer["image"] {
            Value::Null => {}
            image => break image.clone(),
        }
        if let Ok(pull) = serde_json::from_value::<PullStatus>(answer["pull"].clone()) {
            progress.pull(&pull);
        }
    };
    progress.finish();
    let text = match args.json {
        true => format!("{pulled:#}\n"),
        false => format!("{} {}\n", shown(&pulled["image"]), shown(&pulled["digest"])),
    };
    Ok(output::print(&text)?)
}

async fn remove(args: RmArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let mut removed = Vec::new();
    for image in &args.images {
        let answer = client
            .call(Service::Berth, "RemoveImage", &json!({ "image": image }))
            .await?;
        anyhow::ensure!(
            answer["removed"].as_bool().unwrap_or_default(),
            "there is no image {image:?} here; `berth images ls` shows what there is"
        );
        if !args.json {
            let freed = table::bytes(answer["freedBytes"].as_u64().unwrap_or(0));
            output::print(&format!("{}: {freed} freed\n", table::printable(image)))?;
        }
        removed.push(json!({ "image": image, "freedBytes": answer["freedBytes"] }));
    }
    match args.json {
        true => Ok(output::print(&format!("{:#}\n", json!({ "removed": removed })))?),
        false => Ok(()),
    }
}

async fn prune(args: PruneArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let input = json!({ "unusedSeconds": args.unused_for.as_secs() });
    let answer = client.call(Service::Berth, "PruneImages", &input).await?;
    if args.json {
        return Ok(output::print(&format!("{answer:#}\n"))?);
    }
    let images = answer["images"].as_array().into_iter().flatten();
    let mut text: String = images.map(|image| shown(image) + "\n").collect();
    let freed = answer["freedBytes"].as_u64().unwrap_or(0);
    text.push_str(&format!("{} freed\n", table::bytes(freed)));
    Ok(output::print(&text)?)
}

fn page(answer: &Value, now: i64) -> String {
    let images = answer["images"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = images
        .map(|image| {
            let used = image["lastUsedAt"].as_i64().unwrap_or(0);
            let ago = table::span(u64::try_from(now.saturating_sub(used)).unwrap_or(0));
            let digest: String = shown(&image["digest"]).chars().take(19).collect();
            let tasks = image["tasks"].as_array().map_or(0, Vec::len);
            vec![
                shown(&image["image"]),
                digest,
                table::bytes(image["sizeBytes"].as_u64().unwrap_or(0)),
                format!("{ago} ago"),
                tasks.to_string(),
            ]
        })
        .collect();
    let size = |name: &str| table::bytes(answer[name].as_u64().unwrap_or(0));
    format!(
        "{}{} of {} used on disk\n",
        table::columns(&["IMAGE", "DIGEST", "SIZE", "USED", "TASKS"], &rows, &[2, 4]),
        size("usedBytes"),
        size("budgetBytes")
    )
}

/// On one line, and without what a terminal would obey.
fn shown(value: &Value) -> String {
    table::printable(value.as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_with_their_tasks_and_the_room_they_take() {
        let text = page(
            &json!({
                "images": [{
                    "image": "docker.io/library/busybox:latest\u{1b}", "digest": format!("sha256:{}", "a".repeat(64)),
                    "sizeBytes": 4_300_000, "lastUsedAt": 40, "tasks": ["t1", "t2"],
                }],
                "usedBytes": 5 << 20, "budgetBytes": 50u64 << 30,
            }),
            100,
        );
        assert!(
            text.contains("library/busybox:latest\\u{1b}  sha256:aaaaaaaaaaaa"),
            "{text}"
        );
        assert!(text.contains("4.1 MiB") && text.contains("1m 0s ago"), "{text}");
        assert!(text.ends_with("5.0 MiB of 50.0 GiB used on disk\n"), "{text}");
    }
}
