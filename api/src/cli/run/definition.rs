//! The task definition behind `berth run`: made from the command line, registered, and found again when the same
//! command is run once more.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::client::{Client, ClientError, Service};
use crate::ecs::values::RUN_TAG;

/// Longest family name is 255; this leaves room for the prefix.
const MAX_NAME: usize = 200;
/// ECS wants a role of a definition with secrets. Nobody is asked for it here: the daemon looks them up itself.
const EXECUTION_ROLE: &str = "arn:aws:iam::000000000000:role/berth-run";

/// What the definition calls the task's volume.
const VOLUME: &str = "volume";

#[derive(Args)]
pub(super) struct DefinitionArgs {
    /// CPU units (1024 are one vCPU), or vCPUs: 256, 512, 1024 …, or "1 vCPU"
    #[arg(long, value_name = "UNITS", default_value = "256")]
    cpu: String,
    /// Memory in MiB, or in GB: 512, 1024 …, or 2GB
    #[arg(long, value_name = "MIB", default_value = "512")]
    memory: String,
    /// An environment variable; a bare name takes its value from here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A file of NAME=VALUE lines; -e goes before it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// An environment variable whose value is a parameter or a secret, named or by its ARN, as in `valueFrom` of ECS
    #[arg(long = "secret", value_name = "NAME=FROM")]
    secrets: Vec<String>,
    /// A volume, named or by its id, and where it is mounted; what is there stays when the task has gone
    #[arg(long, value_name = "VOLUME:PATH[:ro]")]
    volume: Option<String>,
    /// The task definition's family; made from the image's name if not given
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The image: a reference such as busybox or registry.example/app:1.2
    image: String,
    /// The command and its arguments; the image's own if not given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DefinitionError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read the environment file {path}: {source}")]
    EnvFile { path: PathBuf, source: std::io::Error },
    #[error("line {line} of {path} is not of the form NAME=VALUE")]
    EnvFileLine { path: PathBuf, line: usize },
    #[error("the environment variable {0:?} has no name; write -e NAME=VALUE")]
    NoName(String),
    #[error(
        "the secret {0:?} is not of the form NAME=FROM; write for example --secret DB_PASSWORD=/web/db-password"
    )]
    Secret(String),
    #[error(
        "the volume {0:?} is not of the form VOLUME:PATH or VOLUME:PATH:ro; write for example --volume db:/data"
    )]
    Volume(String),
    #[error("the environment variable {0} is not set here; write -e {0}=VALUE")]
    NotSet(String),
    #[error("RegisterTaskDefinition answered without an ARN; is the daemon of another version?")]
    NoArn,
}

impl DefinitionArgs {
    /// Registers the definition and returns its ARN. An identical one is used again, unless it is to be `ours_alone`.
    pub(super) async fn register(
        &self,
        client: &Client,
        ours_alone: bool,
    ) -> Result<String, DefinitionError> {
        let family = self.name.clone().unwrap_or_else(|| family_of(&self.image));
        let mut input = self.definition(&family)?;
        let digest = hex::encode(Sha256::digest(input.to_string()));
        if !ours_alone && let Some(arn) = registered(client, &family, &digest).await? {
            return Ok(arn);
        }
        if !ours_alone {
            input["tags"] = json!([{"key": RUN_TAG, "value": digest}]);
        }
        let answer = client
            .call(Service::Ecs, "RegisterTaskDefinition", &input)
            .await?;
        let arn = answer
            .pointer("/taskDefinition/taskDefinitionArn")
            .and_then(Value::as_str);
        arn.map(str::to_owned).ok_or(DefinitionError::NoArn)
    }

    fn definition(&self, family: &str) -> Result<Value, DefinitionError> {
        let mut container = json!({
            "name": "main",
            "image": self.image,
            "essential": true,
            "environment": self.environment()?,
        });
        if !self.command.is_empty() {
            container["command"] = json!(self.command);
        }
        let secrets = self.secrets()?;
        if !secrets.is_empty() {
            container["secrets"] = json!(secrets);
        }
        if let Some((_, path, read_only)) = self.mount()? {
            container["mountPoints"] =
                json!([{"sourceVolume": VOLUME, "containerPath": path, "readOnly": read_only}]);
        }
        let mut definition = json!({
            "family": family,
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": self.cpu,
            "memory": self.memory,
            "containerDefinitions": [container],
        });
        // Which volume that is, each task says.
        if self.volume.is_some() {
            definition["volumes"] = json!([{"name": VOLUME, "configuredAtLaunch": true}]);
        }
        if !self.secrets.is_empty() {
            definition["executionRoleArn"] = json!(EXECUTION_ROLE);
        }
        Ok(definition)
    }

    /// `volumeConfigurations` of the task; null without a volume.
    pub(super) fn volume_configurations(&self) -> Result<Value, DefinitionError> {
        let configuration = self.mount()?.map(|(volume, ..)| {
            json!([{"name": VOLUME, "managedEBSVolume": {"snapshotId": volume, "roleArn": EXECUTION_ROLE}}])
        });
        Ok(configuration.unwrap_or(Value::Null))
    }

    /// The volume, where it is mounted, and whether it is read-only there.
    fn mount(&self) -> Result<Option<(&str, &str, bool)>, DefinitionError> {
        let Some(given) = &self.volume else {
            return Ok(None);
        };
        let (volume, path) = given.split_once(':').unwrap_or_default();
        let (path, read_only) = match path.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (path, false),
        };
        if volume.is_empty() || !path.starts_with('/') || path.contains(':') {
            return Err(DefinitionError::Volume(given.clone()));
        }
        Ok(Some((volume, path, read_only)))
    }

    fn secrets(&self) -> Result<Vec<Value>, DefinitionError> {
        let secret = |given: &String| match given.split_once('=') {
            Some((name, from)) if !name.is_empty() && !from.is_empty() => {
                Ok(json!({"name": name, "valueFrom": from}))
            }
            _ => Err(DefinitionError::Secret(given.clone())),
        };
        self.secrets.iter().map(secret).collect()
    }

    /// `-e` before the files, and of one name the first.
    fn environment(&self) -> Result<Vec<Value>, DefinitionError> {
        let mut variables: Vec<(String, String)> = Vec::new();
        for given in &self.env {
            let (name, value) = match given.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (
                    given.as_str(),
                    std::env::var(given).map_err(|_| DefinitionError::NotSet(given.clone()))?,
                ),
            };
            if name.is_empty() {
                return Err(DefinitionError::NoName(given.clone()));
            }
            variables.push((name.to_owned(), value));
        }
        for path in &self.env_file {
            let text = std::fs::read_to_string(path).map_err(|source| DefinitionError::EnvFile {
                path: path.clone(),
                source,
            })?;
            variables.extend(env_file(&text).map_err(|line| DefinitionError::EnvFileLine {
                path: path.clone(),
                line,
            })?);
        }
        let mut seen = std::collections::BTreeSet::new();
        variables.retain(|(name, _)| seen.insert(name.clone()));
        Ok(variables
            .into_iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect())
    }
}

/// NAME=VALUE lines; empty ones and those that begin with `#` are skipped. An error is the number of the bad line.
fn env_file(text: &str) -> Result<Vec<(String, String)>, usize> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim_start()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| match line.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(number),
        })
        .collect()
}

/// `berth-run-` and the last part of the image's name, in the letters a family may have.
fn family_of(image: &str) -> String {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    let name = last.split(':').next().unwrap_or(last);
    let letter = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '-'
        }
    };
    format!(
        "berth-run-{}",
        name.chars().take(MAX_NAME).map(letter).collect::<String>()
    )
}

/// The family's latest active revision, if it was made from the same command line.
async fn registered(client: &Client, family: &str, digest: &str) -> Result<Option<String>, ClientError> {
    let input = json!({"taskDefinition": family, "include": ["TAGS"]});
    let answer = match client.call(Service::Ecs, "DescribeTaskDefinition", &input).await {
        // There is none yet.
        Err(ClientError::Refused { code, .. }) if code == "ClientException" => return Ok(None),
        outcome => outcome?,
    };
    let tags = answer.get("tags").and_then(Value::as_array);
    let same = tags.is_some_and(|tags| tags.contains(&json!({"key": RUN_TAG, "value": digest})));
    let arn = answer
        .pointer("/taskDefinition/taskDefinitionArn")
        .and_then(Value::as_str);
    Ok(arn.filter(|_| same).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        definition: DefinitionArgs,
    }

    fn parse(words: &[&str]) -> DefinitionArgs {
        Line::parse_from(std::iter::once(&"run").chain(words)).definition
    }

    #[test]
    fn families_come_from_the_image_name() {
        for (image, family) in [
            ("busybox", "berth-run-busybox"),
            ("127.0.0.1:5000/a/web.server:1.2", "berth-run-web-server"),
            ("x/app@sha256:00", "berth-run-app"),
        ] {
            assert_eq!(family_of(image), family);
        }
    }

    #[test]
    fn options_after_the_image_belong_to_the_command() {
        let args = parse(&["-e", "A=1", "busybox", "ls", "-l", "--cpu", "7"]);
        assert_eq!(args.command, ["ls", "-l", "--cpu", "7"]);
        assert_eq!(args.cpu, "256");
        assert_eq!(args.environment().unwrap(), [json!({"name": "A", "value": "1"})]);
    }

    #[test]
    fn the_command_line_goes_before_the_environment_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\n\nA=file\nB=x=y\n").unwrap();
        let args = parse(&["-e", "A=line", "--env-file", file.path().to_str().unwrap(), "i"]);
        let expected = [
            json!({"name": "A", "value": "line"}),
            json!({"name": "B", "value": "x=y"}),
        ];
        assert_eq!(args.environment().unwrap(), expected);
    }

    #[test]
    fn secrets_are_named_and_not_looked_up_here() {
        let args = parse(&["--secret", "A=/a/b", "--secret", "B=arn:aws:x=y", "i"]);
        let definition = args.definition("f").unwrap();
        assert_eq!(
            definition["containerDefinitions"][0]["secrets"],
            json!([{"name": "A", "valueFrom": "/a/b"}, {"name": "B", "valueFrom": "arn:aws:x=y"}])
        );
        assert!(definition["executionRoleArn"].is_string());
        assert!(parse(&["i"]).definition("f").unwrap()["executionRoleArn"].is_null());
        for bad in ["A", "=x", "A="] {
            let refused = parse(&["--secret", bad, "i"]).definition("f");
            assert!(matches!(refused, Err(DefinitionError::Secret(_))), "{bad}");
        }
    }

    #[test]
    fn a_volume_is_mounted_by_the_definition_and_named_by_the_task() {
        let args = parse(&["--volume", "db:/data:ro", "i"]);
        let definition = args.definition("f").unwrap();
        assert_eq!(
            definition["volumes"],
            json!([{"name": "volume", "configuredAtLaunch": true}])
        );
        assert_eq!(
            definition["containerDefinitions"][0]["mountPoints"],
            json!([{"sourceVolume": "volume", "containerPath": "/data", "readOnly": true}])
        );
        let other = parse(&["--volume", "other:/data:ro", "i"]);
        assert_eq!(other.definition("f").unwrap(), definition);
        let configurations = other.volume_configurations().unwrap();
        assert_eq!(configurations[0]["managedEBSVolume"]["snapshotId"], "other");
        assert!(parse(&["i"]).volume_configurations().unwrap().is_null());
        for bad in ["db", "db:", ":/x", "db:x", "db:/a:rw", "db:/a:b:ro"] {
            let refused = parse(&["--volume", bad, "i"]).definition("f");
            assert!(matches!(refused, Err(DefinitionError::Volume(_))), "{bad}");
        }
    }

    #[test]
    fn bad_variables_are_named() {
        assert_eq!(env_file("A=1\nnonsense\n"), Err(2));
        assert!(matches!(
            parse(&["-e", "=x", "i"]).environment(),
            Err(DefinitionError::NoName(_))
        ));
        assert!(matches!(
            parse(&["-e", "BERTH_SURELY_UNSET", "i"]).environment(),
            Err(DefinitionError::NotSet(_))
        ));
    }
}
