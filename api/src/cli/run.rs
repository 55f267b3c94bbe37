//! `berth run`: one image as one task, from the definition to the exit code.

mod definition;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use self::definition::DefinitionArgs;
use super::client::{Client, Connection, Service};
use super::follow::Follower;
use super::progress::{Progress, PullStatus};
use super::stop::stop_task;
use super::task::{Task, TaskError};
use super::{output, table, task};

/// The task never ran, or it cannot be said how it ended (as docker has it).
const EXIT_NOT_RUN: u8 = 125;
/// A starting task is looked at this often at least.
const STATUS_SECONDS: u64 = 1;
const INTERRUPTED: &str = "interrupted by the user of berth run";

#[derive(Args)]
#[command(after_help = "\
The exit code is the container's own; 125 means that the task never ran, with the reason on stderr.
Ctrl-C stops the task; a second Ctrl-C leaves without waiting for its end.

Examples:
  berth run busybox echo hello
  berth run -e GREETING=hi --cpu 1024 --memory 2048 busybox sh -c 'echo $GREETING'
  berth run --secret DB_PASSWORD=/web/db-password myapp    # see berth secrets --help
  berth run --volume db:/data myapp          # see berth volume --help
  berth run -d --name web nginx              # prints the task id
  berth run --rm busybox sh -c 'exit 7'; echo $?")]
pub(super) struct RunArgs {
    #[command(flatten)]
    definition: DefinitionArgs,
    /// Do not wait: print the task's id and return
    #[arg(short, long)]
    detach: bool,
    /// With -d: print the task as JSON
    #[arg(long, requires = "detach")]
    json: bool,
    /// Deregister the task definition after the end
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    #[arg(long, value_name = "NAME", default_value = "default")]
    cluster: String,
    /// The subnet's id; the default one if not given
    #[arg(long, value_name = "ID")]
    subnet: Option<String>,
    /// A security group's id, up to five; the VPC's default group if none is given
    #[arg(long = "security-group", value_name = "ID")]
    security_groups: Vec<String>,
    /// Do not let the task reach the internet (assignPublicIp DISABLED)
    #[arg(long)]
    no_internet: bool,
    #[command(flatten)]
    connection: Connection,
}

/// The exit code; what goes wrong is said here, since every code of 124 and below may be the container's.
pub(super) async fn run(args: RunArgs) -> u8 {
    let outcome = async {
        let client = Client::new(&args.connection)?;
        start(&client, &args).await
    };
    outcome.await.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("berth: {}", table::printable(&format!("{error:#}")));
        EXIT_NOT_RUN
    })
}

async fn start(client: &Client, args: &RunArgs) -> anyhow::Result<u8> {
    let definition = args.definition.register(client, args.rm).await?;
    let ran = run_definition(client, args, &definition).await;
    if args.rm {
        let input = json!({"taskDefinition": definition});
        client
            .call(Service::Ecs, "DeregisterTaskDefinition", &input)
            .await?;
    }
    ran
}

async fn run_definition(client: &Client, args: &RunArgs, definition: &str) -> anyhow::Result<u8> {
    let network = network(client, args).await?;
    let input = json!({
        "cluster": args.cluster,
        "taskDefinition": definition,
        "launchType": "FARGATE",
        "startedBy": "berth-run",
        "networkConfiguration": {"awsvpcConfiguration": network},
        "volumeConfigurations": args.definition.volume_configurations()?,
    });
    let answer = client.call(Service::Ecs, "RunTask", &input).await?;
    let Some(started) = answer.pointer("/tasks/0") else {
        let said = |what| answer.pointer(what).and_then(Value::as_str);
        let reason = said("/failures/0/reason").unwrap_or("no reason given");
        let detail = said("/failures/0/detail").map(|detail| format!(" ({detail})"));
        anyhow::bail!(
            "the task was not placed: {reason}{}; stop other tasks (`berth ps`), ask for less, or have the daemon promise \
             more of the host (`berth serve --help`, --overcommit-…)",
            detail.unwrap_or_default()
        );
    };
    let task = Task::from_json(started)?;
    if args.detach {
        let text = if args.json {
            format!("{started:#}\n")
        } else {
            format!("{}\n", task.id())
        };
        output::print(&text)?;
        return Ok(0);
    }
    attached(client, &task, args.quiet).await
}

/// `awsvpcConfiguration` of the task.
async fn network(client: &Client, args: &RunArgs) -> anyhow::Result<Value> {
    let subnet = match &args.subnet {
        Some(subnet) => subnet.clone(),
        None => {
            let networks = client
                .call(Service::Berth, "DescribeNetworks", &json!({}))
                .await?;
            default_subnet(&networks)
                .ok_or_else(|| anyhow::anyhow!("there is no default subnet; name one with --subnet"))?
        }
    };
    Ok(json!({
        "subnets": [subnet],
        "securityGroups": args.security_groups,
        "assignPublicIp": if args.no_internet { "DISABLED" } else { "ENABLED" },
    }))
}

fn default_subnet(networks: &Value) -> Option<String> {
    let subnets = networks.get("subnets")?.as_array()?;
    let default = subnets
        .iter()
        .find(|subnet| subnet.get("isDefault") == Some(&Value::Bool(true)))?;
    default.get("subnetId").and_then(Value::as_str).map(str::to_owned)
}

/// Follows the task to its end. A first interrupt stops the task, a second one leaves.
async fn attached(client: &Client, task: &Task, quiet: bool) -> anyhow::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let follow = follow(client, task.id(), quiet);
    tokio::pin!(follow);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = &mut follow => return Ok(exit_code(&ended?)),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stopping {
            eprintln!("berth: left; task {} stops by itself", task.id());
            return Ok(super::EXIT_INTERRUPTED);
        }
        stopping = true;
        stop_task(client, task.cluster(), task.id(), Some(INTERRUPTED)).await?;
        eprintln!(
            "berth: stopping task {}; interrupt again to leave without waiting",
            task.id()
        );
    }
}

/// Shows the start and the output of a task, and returns it once it is STOPPED.
async fn follow(client: &Client, id: &str, quiet: bool) -> anyhow::Result<Task> {
    let mut progress = Progress::new(quiet);
    let (mut task, mut version) = task::wait(client, id, 0, 0).await?;
    while task.is_starting() {
        progress.status(&task.last_status);
        if task.last_status == "PENDING"
            && let Some(pull) = pull_status(client, id).await?
        {
            progress.pull(&pull);
        }
        (task, version) = task::wait(client, id, version, STATUS_SECONDS).await?;
    }
    progress.finish();
    if task.is_stopped() && task.started_at.is_none() {
        return Ok(task);
    }
    let mut follower = Follower::new(client, id, None);
    // A machine that dies takes its container's last words with it: its end is then seen in the task alone.
    while !follower.next().await? {
        (task, _) = task::wait(client, id, 0, 0).await?;
        if task.is_stopped() {
            follower.drain().await?;
            return Ok(task);
        }
    }
    Ok(task::wait_stopped(client, id).await?)
}

async fn pull_status(client: &Client, id: &str) -> Result<Option<PullStatus>, TaskError> {
    let answer = client
        .call_patiently(Service::Berth, "GetPullStatus", &json!({"task": id}))
        .await?;
    match answer.get("pull") {
        None | Some(Value::Null) => Ok(None),
        Some(pull) => serde_json::from_value(pull.clone())
            .map(Some)
            .map_err(|error| TaskError::Malformed(error.to_string())),
    }
}

/// What the shell gets to see, and on stderr why, if that is not plain from the code.
fn exit_code(task: &Task) -> u8 {
    let container = task.containers.first();
    let code = container
        .and_then(|container| container.exit_code)
        .and_then(|code| u8::try_from(code).ok());
    if let Some(reason) = container.and_then(|container| container.reason.as_deref()) {
        eprintln!("berth: {}", table::printable(reason));
    }
    match code {
        Some(code) => code,
        None => {
            let reason = task
                .stopped_reason
                .as_deref()
                .unwrap_or("the task stopped without a reason");
            eprintln!("berth: {}", table::printable(reason));
            EXIT_NOT_RUN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(container: Value) -> Task {
        Task::from_json(&json!({"lastStatus": "STOPPED", "stoppedReason": "why", "containers": [container]}))
            .unwrap()
    }

    #[test]
    fn the_containers_code_is_ours() {
        assert_eq!(exit_code(&ended(json!({"exitCode": 7}))), 7);
        assert_eq!(
            exit_code(&ended(json!({"exitCode": 137, "reason": "OutOfMemoryError"}))),
            137
        );
    }

    #[test]
    fn a_task_that_never_ran_is_125() {
        assert_eq!(exit_code(&ended(json!({}))), 125);
    }

    #[test]
    fn the_default_subnet_is_found_among_others() {
        let networks = json!({"subnets": [
            {"subnetId": "subnet-1", "isDefault": false}, {"subnetId": "subnet-2", "isDefault": true},
        ]});
        assert_eq!(default_subnet(&networks).as_deref(), Some("subnet-2"));
        assert_eq!(default_subnet(&json!({})), None);
    }
}
