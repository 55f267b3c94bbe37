//! `berth secrets`: what parameters and secrets there are, a SecureString from standard input, and new keys. No value is
//! ever shown, and none is an argument, which anybody on the host could read.

use std::io::Read;

use anyhow::Context;
use berth_runtime::secrets::SecretText;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, Connection, Service};
use super::{output, table};

/// Largest value of a parameter.
const MAX_VALUE_BYTES: u64 = 8192;

#[derive(Args)]
#[command(after_help = "\
Parameters (SSM) and secrets (Secrets Manager) are sealed in the daemon's store, with keys that are in DIR/secrets.keys:
keep a copy of that file, and not where you keep copies of the rest. Everything else is done with the AWS clients.

Examples:
  berth secrets put /web/db-password < password.txt       # a SecureString; its value is read from standard input
  berth secrets ls
  berth secrets rotate                                    # new key, every value sealed anew, old keys dropped
  aws ssm get-parameter --name /web/db-password --with-decryption
  aws secretsmanager create-secret --name web/db --secret-string file://db.json

A container gets them as environment, by its definition:
  \"secrets\": [{\"name\": \"DB_PASSWORD\", \"valueFrom\": \"/web/db-password\"},
              {\"name\": \"DB_USER\", \"valueFrom\": \"arn:aws:secretsmanager:…:secret:web/db-AbCdEf:username::\"}]")]
pub(super) struct SecretsArgs {
    #[command(subcommand)]
    command: SecretsCommand,
}

#[derive(Subcommand)]
enum SecretsCommand {
    /// List parameters and secrets, without their values
    Ls(LsArgs),
    /// Put a SecureString parameter, new or over an old one; its value is read from standard input
    Put(PutArgs),
    /// Make a new key, seal every value anew with it, and drop the old keys
    Rotate(RotateArgs),
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
struct PutArgs {
    /// The parameter's name, such as /web/db-password
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
#[command(after_help = "\
Can be broken off and repeated: until the end all keys are kept, and the daemon ends by itself what was broken off. Copies
of the data directory that were made before cannot be read with the new key file: keep the old one with them, or nowhere.")]
struct RotateArgs {
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn secrets(args: SecretsArgs) -> anyhow::Result<()> {
    match args.command {
        SecretsCommand::Ls(args) => list(args).await,
        SecretsCommand::Put(args) => put(args).await,
        SecretsCommand::Rotate(args) => rotate(args).await,
    }
}

async fn list(args: LsArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let parameters = all(
        &client,
        Service::Ssm,
        "DescribeParameters",
        "Parameters",
        json!({}),
    )
    .await?;
    let with_deleted = json!({ "IncludePlannedDeletion": true, "SortBy": "name" });
    let secrets = all(
        &client,
        Service::SecretsManager,
        "ListSecrets",
        "SecretList",
        with_deleted,
    )
    .await?;
    let text = match args.json {
        true => format!("{:#}\n", json!({ "parameters": parameters, "secrets": secrets })),
        false => page(&parameters, &secrets),
    };
    Ok(output::print(&text)?)
}

/// All pages of a list.
async fn all(
    client: &Client,
    service: Service,
    operation: &str,
    member: &str,
    mut input: Value,
) -> anyhow::Result<Vec<Value>> {
    let mut items = Vec::new();
    loop {
        let mut answer = client.call(service, operation, &input).await?;
        if let Some(page) = answer[member].as_array_mut() {
            items.append(page);
        }
        match answer["NextToken"].as_str() {
            Some(token) => input["NextToken"] = json!(token),
            None => return Ok(items),
        }
    }
}

fn page(parameters: &[Value], secrets: &[Value]) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for parameter in parameters {
        rows.push(vec![
            text(&parameter["Name"]),
            text(&parameter["Type"]),
            format!("version {}", parameter["Version"]),
        ]);
    }
    for secret in secrets {
        let versions = secret["SecretVersionsToStages"]
            .as_object()
            .map_or(0, |it| it.len());
        let state = match secret["DeletedDate"].is_null() {
            true => format!("{versions} version{}", if versions == 1 { "" } else { "s" }),
            false => "marked for deletion".to_owned(),
        };
        rows.push(vec![text(&secret["Name"]), "Secret".to_owned(), state]);
    }
    table::columns(&["NAME", "KIND", "STATE"], &rows, &[])
}

async fn put(args: PutArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let mut value = String::with_capacity(MAX_VALUE_BYTES as usize + 2);
    std::io::stdin()
        .lock()
        .take(MAX_VALUE_BYTES + 2)
        .read_to_string(&mut value)
        .context("cannot read the value from standard input")?;
    // What an editor or `echo` puts at the end.
    if value.ends_with('\n') {
        value.pop();
    }
    let value = SecretText::new(value);
    anyhow::ensure!(
        !value.expose().is_empty() && value.expose().len() as u64 <= MAX_VALUE_BYTES,
        "a value has 1 to {MAX_VALUE_BYTES} bytes; give it on standard input: `berth secrets put {} < FILE`",
        args.name
    );
    let input = json!({
        "Name": args.name,
        "Value": value.expose(),
        "Type": "SecureString",
        "Tier": "Intelligent-Tiering",
        "Overwrite": true,
    });
    let answer = client.call(Service::Ssm, "PutParameter", &input).await?;
    Ok(output::print(&format!(
        "{} version {}\n",
        args.name, answer["Version"]
    ))?)
}

async fn rotate(args: RotateArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let answer = client
        .call(Service::Berth, "RotateSecretKeys", &json!({}))
        .await?;
    let text = format!(
        "{} values are sealed anew with key {}\n",
        answer["values"],
        answer["key"].as_str().unwrap_or_default()
    );
    Ok(output::print(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_secrets_are_listed_without_values() {
        let parameters = [json!({ "Name": "/a", "Type": "SecureString", "Version": 3, "Value": "hunter2" })];
        let secrets = [
            json!({ "Name": "s", "SecretVersionsToStages": { "v": ["AWSCURRENT"] } }),
            json!({ "Name": "t", "DeletedDate": 1.0 }),
        ];
        let text = page(&parameters, &secrets);
        assert!(text.contains("/a    SecureString  version 3"), "{text}");
        assert!(
            text.contains("s     Secret        1 version\n") && text.contains("marked for deletion"),
            "{text}"
        );
        assert!(!text.contains("hunter2"));
    }
}
