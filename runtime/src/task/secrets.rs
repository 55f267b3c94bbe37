//! The secrets of a task, and the variables of its environment files: looked up when it starts, kept in memory until the guest
//! has them, and nowhere else. They are no part of the task's spec, which is stored, compared and shown.

use std::collections::BTreeMap;

use berth_protocol::MAX_FRAME_BYTES;
use berth_protocol::frame::{FrameError, encode_message};
use berth_protocol::message::{SEED_BYTES, TaskSpec, ToGuest};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::{Zeroize, Zeroizing};

use super::environment;
use super::host::HostError;
use super::supervisor::Context;
use crate::image::Credentials;
use crate::model::definition::{RepositoryCredentials, TaskDefinition};
use crate::model::secret::{SecretReference, SecretSource};
use crate::model::task::Task;
use crate::secrets::{SecretError, SecretStore, SecretText, VersionSelector};
use crate::state::keys;

/// Of all that is looked up for a task together, as JSON; the guest is told them in one message, with all else.
const MAX_BYTES: usize = MAX_FRAME_BYTES / 2;
/// Longest JSON key and name that an error repeats.
const MAX_SHOWN_CHARS: usize = 512;

/// Environment variables, by container; of one name the last counts.
#[derive(Clone, Debug, Default)]
pub struct TaskSecrets(BTreeMap<String, Vec<(String, SecretText)>>);

impl Context {
    /// What the task's containers get. The error is fit for `stoppedReason`.
    pub(super) async fn secrets_of(&self, task: &Task) -> Result<TaskSecrets, HostError> {
        let definition = self
            .records
            .get::<TaskDefinition>(&keys::definition(&task.definition))
            .await
            .map_err(|error| HostError(error.to_string()))?;
        let mut found = TaskSecrets::default();
        let mut bytes = 0usize;
        for container in definition
            .iter()
            .flat_map(|definition| &definition.value.spec.containers)
        {
            let mut chosen = task.overrides.containers.iter();
            let chosen = chosen.find(|chosen| chosen.name == container.name);
            let mut variables = environment::variables(&self.secrets, container, chosen)
                .await
                .map_err(no_file)?;
            for reference in &container.secrets {
                let value = look_up(&self.secrets, reference).await.map_err(unable)?;
                variables.push((reference.name.clone(), value));
            }
            let length = |(name, value): &(String, SecretText)| json_bytes(name) + json_bytes(value.expose());
            bytes = bytes.saturating_add(variables.iter().map(length).sum());
            if bytes > MAX_BYTES {
                return Err(unable(format!(
                    "the secrets and environment files of a task cannot have more than {MAX_BYTES} bytes together"
                )));
            }
            found.0.insert(container.name.clone(), variables);
        }
        Ok(found)
    }
}

impl Context {
    /// The user names and passwords with which the task's images are pulled, by container. The error is fit for
    /// `stoppedReason`.
    pub(super) async fn registry_credentials(
        &self,
        task: &Task,
    ) -> Result<BTreeMap<String, Credentials>, HostError> {
        let definition = self
            .records
            .get::<TaskDefinition>(&keys::definition(&task.definition))
            .await
            .map_err(|error| HostError(error.to_string()))?;
        let mut found = BTreeMap::new();
        for container in definition
            .iter()
            .flat_map(|definition| &definition.value.spec.containers)
        {
            if let Some(RepositoryCredentials { parameter, resource }) = &container.repository_credentials {
                let current = VersionSelector {
                    id: None,
                    stage: None,
                };
                let value = secret(&self.secrets, parameter, resource, &current).await;
                let value = value.map_err(unable)?;
                let credentials = credentials(&value).ok_or_else(|| {
                    unable(format!(
                        "the secret {} is not {{\"username\": \"…\", \"password\": \"…\"}}",
                        shown(parameter)
                    ))
                })?;
                found.insert(container.name.clone(), credentials);
            }
        }
        Ok(found)
    }
}

fn credentials(value: &SecretText) -> Option<Credentials> {
    #[derive(Deserialize)]
    struct Pair {
        username: String,
        password: SecretText,
    }
    let pair: Pair = serde_json::from_str(value.expose()).ok()?;
    Some(Credentials {
        username: pair.username,
        password: pair.password.expose().to_owned(),
    })
}

impl TaskSecrets {
    /// The message that gives a guest its task. Beside it nothing is left of the secrets.
    pub fn run_message(
        &self,
        task: &TaskSpec,
        unix_ms: u64,
        seed: [u8; SEED_BYTES],
    ) -> Result<Zeroizing<Vec<u8>>, FrameError> {
        let mut task = task.clone();
        for container in &mut task.containers {
            for (name, value) in self.0.get(&container.name).into_iter().flatten() {
                container.env.insert(name.clone(), value.expose().to_owned());
            }
        }
        let mut run = ToGuest::Run {
            task: Box::new(task),
            unix_ms,
            seed,
        };
        // Room for the longest there is: a buffer that grows leaves what it held behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FRAME_BYTES + 1024));
        let encoded = encode_message(&run, &mut bytes);
        if let ToGuest::Run { task, .. } = &mut run {
            for container in &mut task.containers {
                container.env.values_mut().for_each(Zeroize::zeroize);
            }
        }
        encoded.map(|()| bytes)
    }
}

async fn look_up(store: &SecretStore, reference: &SecretReference) -> Result<SecretText, String> {
    let value = match &reference.source {
        SecretSource::Parameter { names, version } => parameter(store, reference, names, *version).await?,
        SecretSource::Secret {
            resource,
            json_key,
            version_stage,
            version_id,
        } => {
            let selector = VersionSelector {
                id: version_id.clone(),
                stage: version_stage.clone(),
            };
            let whole = secret(store, &reference.value_from, resource, &selector).await?;
            match json_key {
                Some(json_key) => member(&whole, json_key).ok_or_else(|| {
                    format!(
                        "unable to retrieve secret from asm: retrieved secret from Secrets Manager did not contain json \
                         key {}",
                        shown(json_key)
                    )
                })?,
                None => whole,
            }
        }
    };
    match value.expose().contains('\0') {
        true => Err(format!(
            "the value of {} has a null character, which no environment variable can have",
            shown(&reference.value_from)
        )),
        false => Ok(value),
    }
}

async fn parameter(
    store: &SecretStore,
    reference: &SecretReference,
    names: &[String],
    version: Option<u64>,
) -> Result<SecretText, String> {
    for name in names {
        match store.parameter_value(name, version).await {
            Ok((_, value)) => return Ok(value),
            Err(SecretError::ParameterNotFound(_)) => {}
            Err(SecretError::ParameterVersionNotFound { .. }) => break,
            Err(error) => return Err(inside("ssm", &reference.value_from, &error)),
        }
    }
    Err(format!(
        "unable to retrieve secrets from ssm: invalid parameters: {}",
        shown(&reference.value_from)
    ))
}

async fn secret(
    store: &SecretStore,
    value_from: &str,
    resource: &str,
    selector: &VersionSelector,
) -> Result<SecretText, String> {
    let refused = |cause: &str| {
        format!(
            "unable to retrieve secret from asm: failed to fetch secret {} from secrets manager: {cause}",
            shown(value_from)
        )
    };
    match store.secret_value(resource, selector).await {
        Ok((_, value)) if value.binary => Err(refused(
            "it is a SecretBinary, and only a SecretString can be used",
        )),
        Ok((_, value)) => value.bytes.to_text().ok_or_else(|| refused("it is no text")),
        Err(SecretError::SecretNotFound(_)) => Err(refused(
            "ResourceNotFoundException: Secrets Manager can't find the specified secret.",
        )),
        Err(SecretError::SecretStageNotFound(..) | SecretError::SecretVersionNotFound(..)) => Err(refused(
            "ResourceNotFoundException: Secrets Manager can't find the specified secret value.",
        )),
        Err(SecretError::SecretStageElsewhere(..)) => Err(refused(
            "InvalidRequestException: You provided a VersionStage that is not associated to the provided VersionId.",
        )),
        Err(SecretError::SecretDeleted(_)) => Err(refused(
            "InvalidRequestException: You can't perform this operation on the secret because it was marked for deletion.",
        )),
        Err(error) => Err(inside("asm", value_from, &error)),
    }
}

/// A string member as it is, any other as JSON.
fn member(whole: &SecretText, key: &str) -> Option<SecretText> {
    // Borrowed from the whole, so that nothing has to be wiped.
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(whole.expose()).ok()?;
    let raw = members.get(key)?.get();
    let text = serde_json::from_str::<SecretText>(raw);
    Some(text.unwrap_or_else(|_| SecretText::new(raw.to_owned())))
}

/// Length as a JSON string.
fn json_bytes(text: &str) -> usize {
    let bytes = |c: char| match c {
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    };
    2 + text.chars().map(bytes).sum::<usize>()
}

/// What no author of a definition can have caused; the log has the rest.
fn inside(service: &str, value_from: &str, error: &SecretError) -> String {
    tracing::error!(%error, "a task's secret cannot be read");
    format!(
        "unable to retrieve {} from {service}: internal error",
        shown(value_from)
    )
}

fn unable(cause: String) -> HostError {
    HostError(format!(
        "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: {cause}"
    ))
}

fn no_file(cause: String) -> HostError {
    HostError(format!(
        "ResourceInitializationError: failed to download env files: {cause}"
    ))
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}
