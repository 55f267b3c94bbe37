//! Amazon Resource Names of what this server owns: writing them, and reading what a caller names a resource by, which
//! may be an ARN or a short name.

use berth_runtime::model::definition::DefinitionId;
use berth_runtime::model::task::TaskId;
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::reply::uuid_text;

/// Longest name of a cluster or a family.
pub(crate) const MAX_NAME_CHARS: usize = 255;

/// The region and account that own everything here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub region: String,
    pub account_id: String,
}

/// What names a task: its id and, where it was an ARN, its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskName {
    pub cluster: Option<String>,
    /// None when the id has the length of one but is none that was ever given.
    pub id: Option<TaskId>,
}

/// What names a task definition: a family and, where said, a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionName {
    pub family: String,
    pub revision: Option<u32>,
}

impl Owner {
    fn ecs(&self, resource: &str) -> String {
        format!("arn:aws:ecs:{}:{}:{resource}", self.region, self.account_id)
    }

    pub fn cluster(&self, name: &str) -> String {
        self.ecs(&format!("cluster/{name}"))
    }

    pub fn task(&self, cluster: &str, id: &TaskId) -> String {
        self.ecs(&format!("task/{cluster}/{id}"))
    }

    pub fn definition(&self, id: &DefinitionId) -> String {
        self.ecs(&format!("task-definition/{id}"))
    }

    /// The last part is a UUID derived from the task and the container's name, so it needs no storage.
    pub fn container(&self, cluster: &str, task: &TaskId, name: &str) -> String {
        let digest = Sha256::new()
            .chain_update(task.as_str())
            .chain_update("/")
            .chain_update(name)
            .finalize();
        let bits = digest
            .iter()
            .take(16)
            .fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
        self.ecs(&format!("container/{cluster}/{task}/{}", uuid_text(bits)))
    }

    /// The account's root user, who does everything here.
    pub fn root(&self) -> String {
        format!("arn:aws:iam::{}:root", self.account_id)
    }

    /// Who acts with the temporary credentials of a role: the session is the task's id.
    pub fn assumed_role(&self, role: &str, session: &TaskId) -> String {
        let name = role.rsplit('/').next().unwrap_or(role);
        format!("arn:aws:sts::{}:assumed-role/{name}/{session}", self.account_id)
    }

    pub fn log_group(&self, name: &str) -> String {
        format!(
            "arn:aws:logs:{}:{}:log-group:{name}",
            self.region, self.account_id
        )
    }

    pub fn log_stream(&self, group: &str, stream: &str) -> String {
        format!("{}:log-stream:{stream}", self.log_group(group))
    }

    pub fn parameter(&self, name: &str) -> String {
        // A path has its slash already.
        let name = name.strip_prefix('/').unwrap_or(name);
        format!("arn:aws:ssm:{}:{}:parameter/{name}", self.region, self.account_id)
    }

    /// `resource` is a name and its suffix.
    pub fn secret(&self, resource: &str) -> String {
        format!(
            "arn:aws:secretsmanager:{}:{}:secret:{resource}",
            self.region, self.account_id
        )
    }

    /// The name of a cluster from its name or ARN.
    pub fn parse_cluster(&self, text: &str) -> Result<String, ApiError> {
        let name = match self.resource(text, "ecs")? {
            Some(resource) => resource
                .strip_prefix("cluster/")
                .ok_or_else(|| invalid_identifier(text))?,
            None => text,
        };
        if is_name(name) {
            Ok(name.to_owned())
        } else {
            Err(invalid_identifier(text))
        }
    }

    /// A task from its id or ARN.
    pub fn parse_task(&self, text: &str) -> Result<TaskName, ApiError> {
        let (cluster, id) = match self.resource(text, "ecs")? {
            Some(resource) => {
                let name = resource
                    .strip_prefix("task/")
                    .ok_or_else(|| invalid_identifier(text))?;
                match name.split_once('/') {
                    Some((cluster, id)) => (Some(cluster), id),
                    // The short form of old ARNs.
                    None => (None, name),
                }
            }
            None => (None, text),
        };
        if cluster.is_some_and(|cluster| !is_name(cluster)) {
            return Err(invalid_identifier(text));
        }
        if !matches!(id.len(), 32 | 36) {
            return Err(ApiError::InvalidParameter(
                "taskId length should be one of [32,36]".to_owned(),
            ));
        }
        Ok(TaskName {
            cluster: cluster.map(str::to_owned),
            id: TaskId::parse(id),
        })
    }

    /// A task definition from `family`, `family:revision` or its ARN.
    pub fn parse_definition(&self, text: &str) -> Result<DefinitionName, ApiError> {
        let name = match self.resource(text, "ecs")? {
            Some(resource) => resource
                .strip_prefix("task-definition/")
                .ok_or_else(|| invalid_identifier(text))?,
            None => text,
        };
        let (family, revision) = match name.split_once(':') {
            Some((_, "")) => return Err(ApiError::Client("Revision is missing.".to_owned())),
            Some((family, revision)) => {
                let number = revision
                    .parse()
                    .ok()
                    .filter(|number| *number > 0 && revision.bytes().all(|byte| byte.is_ascii_digit()));
                let invalid = || {
                    let revision: String = revision.chars().take(MAX_NAME_CHARS).collect();
                    ApiError::Client(format!("Invalid revision number. Number: {revision}"))
                };
                (family, Some(number.ok_or_else(invalid)?))
            }
            None => (name, None),
        };
        if is_name(family) {
            Ok(DefinitionName {
                family: family.to_owned(),
                revision,
            })
        } else {
            Err(ApiError::Client("Unable to describe task definition.".to_owned()))
        }
    }

    /// The name of a log group from its name or ARN (with or without the final `:*`).
    pub fn parse_log_group<'a>(&self, text: &'a str) -> Result<&'a str, ApiError> {
        match self.resource(text, "logs")? {
            Some(resource) => {
                let name = resource
                    .strip_prefix("log-group:")
                    .ok_or_else(|| invalid_identifier(text))?;
                Ok(name.strip_suffix(":*").unwrap_or(name))
            }
            None => Ok(text),
        }
    }

    /// The part of an ARN that names the resource; none if the text is no ARN. An ARN of another region, account or
    /// service is refused.
    pub(crate) fn resource<'a>(&self, text: &'a str, service: &str) -> Result<Option<&'a str>, ApiError> {
        if !text.starts_with("arn:") {
            return Ok(None);
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let &[_, "aws", of, region, account, resource] = parts.as_slice() else {
            return Err(invalid_identifier(text));
        };
        if of != service {
            return Err(invalid_identifier(text));
        }
        let elsewhere = |what: &str, theirs: &str, ours: &str| {
            let theirs: String = theirs.chars().take(MAX_NAME_CHARS).collect();
            ApiError::InvalidParameter(format!(
                "Invalid identifier: Identifier is for {what} {theirs}. Your {what} is {ours}"
            ))
        };
        if region != self.region {
            return Err(elsewhere("region", region, &self.region));
        }
        if account != self.account_id {
            return Err(elsewhere("accountId", account, &self.account_id));
        }
        Ok(Some(resource))
    }
}

/// What clusters, families and containers may be called.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_CHARS).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn invalid_identifier(text: &str) -> ApiError {
    let text: String = text.chars().take(MAX_NAME_CHARS).collect();
    ApiError::InvalidParameter(format!("Invalid identifier: '{text}'"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner() -> Owner {
        Owner {
            region: "us-east-1".to_owned(),
            account_id: "123456789012".to_owned(),
        }
    }

    proptest! {
        #[test]
        fn an_arn_reads_back_as_what_it_names(name in "[A-Za-z0-9_-]{1,255}", revision in 1..=u32::MAX, task: u128) {
            let owner = owner();
            prop_assert_eq!(owner.parse_cluster(&owner.cluster(&name)).unwrap(), name.clone());
            let id = TaskId::parse(&format!("{task:032x}")).unwrap();
            let parsed = owner.parse_task(&owner.task(&name, &id)).unwrap();
            prop_assert_eq!(parsed, TaskName { cluster: Some(name.clone()), id: Some(id) });
            let id = DefinitionId { family: name.clone(), revision };
            let parsed = owner.parse_definition(&owner.definition(&id)).unwrap();
            prop_assert_eq!(parsed, DefinitionName { family: name, revision: Some(revision) });
        }

        #[test]
        fn no_text_is_too_strange_to_be_read(text in "(arn:aws:(ecs|logs):us-east-1:123456789012:)?[a-z:/0-9*é]{0,60}") {
            let owner = owner();
            let _ = (owner.parse_cluster(&text), owner.parse_task(&text), owner.parse_definition(&text));
            let _ = owner.parse_log_group(&text);
        }
    }

    #[test]
    fn short_names_are_taken() {
        let owner = owner();
        assert_eq!(owner.parse_cluster("prod").unwrap(), "prod");
        let id = "0123456789abcdef0123456789abcdef";
        let short = owner
            .parse_task(&format!("arn:aws:ecs:us-east-1:123456789012:task/{id}"))
            .unwrap();
        assert_eq!(
            short,
            TaskName {
                cluster: None,
                id: TaskId::parse(id)
            }
        );
        let latest = owner.parse_definition("web").unwrap();
        assert_eq!(
            latest,
            DefinitionName {
                family: "web".to_owned(),
                revision: None
            }
        );
    }

    #[test]
    fn arns_of_others_are_refused() {
        let owner = owner();
        for arn in [
            "arn:aws:ecs:eu-west-1:123456789012:cluster/a",
            "arn:aws:ecs:us-east-1:999999999999:cluster/a",
            "arn:aws:ec2:us-east-1:123456789012:cluster/a",
            "arn:aws:ecs:us-east-1:123456789012:service/a",
            "arn:aws:ecs:us-east-1:123456789012:cluster/a b",
            "arn:aws:ecs",
        ] {
            assert!(owner.parse_cluster(arn).is_err(), "{arn} was taken");
        }
    }

    #[test]
    fn malformed_revisions_are_named() {
        let message = |text| owner().parse_definition(text).unwrap_err().to_string();
        assert_eq!(message("web:"), "Revision is missing.");
        assert_eq!(message("web:x"), "Invalid revision number. Number: x");
        assert_eq!(message("web:0"), "Invalid revision number. Number: 0");
        assert_eq!(message("web:+1"), "Invalid revision number. Number: +1");
        assert_eq!(
            message("web:4294967296"),
            "Invalid revision number. Number: 4294967296"
        );
    }

    #[test]
    fn task_ids_of_another_length_are_refused() {
        let error = owner().parse_task("abc").unwrap_err();
        assert_eq!(error.to_string(), "taskId length should be one of [32,36]");
    }

    #[test]
    fn a_container_arn_is_the_same_every_time_and_differs_by_name() {
        let owner = owner();
        let id = TaskId::parse("0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(owner.container("c", &id, "a"), owner.container("c", &id, "a"));
        assert_ne!(owner.container("c", &id, "a"), owner.container("c", &id, "b"));
    }
}
