//! Environment files of a task's containers: objects with a variable a line. They may hold what nobody is to see, so they are
//! looked up when the task starts, as its secrets are, and go the same way.

use std::collections::BTreeSet;

use crate::model::definition::ContainerDefinition;
use crate::model::object::EnvironmentFile;
use crate::model::task::ContainerOverride;
use crate::secrets::{SecretError, SecretStore, SecretText};

/// Marks the bytes of a text as UTF-8, as some editors do.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The variables that the files of a container add to its environment. An override names other files in the place of the
/// definition's; what either says as `environment` counts before any file, and of two files the first.
pub(super) async fn variables(
    store: &SecretStore,
    container: &ContainerDefinition,
    chosen: Option<&ContainerOverride>,
) -> Result<Vec<(String, SecretText)>, String> {
    let overriding = chosen.map(|chosen| chosen.environment_files.as_slice());
    let files = overriding
        .filter(|files| !files.is_empty())
        .unwrap_or(&container.environment_files);
    let said = container.environment.iter();
    let said = said.chain(chosen.iter().flat_map(|chosen| &chosen.environment));
    let mut known: BTreeSet<String> = said.map(|variable| variable.name.clone()).collect();
    let mut found = Vec::new();
    for file in files {
        let text = content(store, file).await;
        let text = text.map_err(|cause| format!("{}: {cause}", file.value))?;
        let lines = lines(text.expose()).map_err(|cause| format!("{}: {cause}", file.value))?;
        for (name, value) in lines {
            if known.insert(name.to_owned()) {
                found.push((name.to_owned(), SecretText::new(value.to_owned())));
            }
        }
    }
    Ok(found)
}

async fn content(store: &SecretStore, file: &EnvironmentFile) -> Result<SecretText, String> {
    match store.object(&file.bucket, &file.key).await {
        Ok((_, content)) => content.to_text().ok_or_else(|| "it is no UTF-8 text".to_owned()),
        Err(SecretError::BucketNotFound(_)) => {
            Err("NoSuchBucket: The specified bucket does not exist".to_owned())
        }
        Err(SecretError::ObjectNotFound { .. }) => {
            Err("NoSuchKey: The specified key does not exist.".to_owned())
        }
        Err(error) => {
            tracing::error!(%error, "an environment file cannot be read");
            Err("internal error".to_owned())
        }
    }
}

/// Names and values, as ECS reads them: a line that starts with `#` is a comment, and one without a name, an equals sign or a
/// value says nothing. Quotation marks and spaces belong to the value. Of one name the last line counts.
fn lines(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.contains('\0') {
            return Err(format!(
                "line {} has a null character, which no environment variable can have",
                index + 1
            ));
        }
        let variable = line.split_once('=').filter(|_| !line.starts_with('#'));
        if let Some((name, value)) = variable.filter(|(name, value)| !name.is_empty() && !value.is_empty()) {
            found.retain(|(other, _)| *other != name);
            found.push((name, value));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_ecs_reads_it() {
        let text = "\u{feff}A=1\r\n# B=2\n\n C = a b \nno sign\nEMPTY=\n=nameless\nURL=http://x/?a=b#c\nQ=\"q\"\nA=2";
        let expected = [
            (" C ", " a b "),
            ("URL", "http://x/?a=b#c"),
            ("Q", "\"q\""),
            ("A", "2"),
        ];
        assert_eq!(lines(text).unwrap(), expected);
        assert_eq!(lines("").unwrap(), []);
        assert!(lines("A=1\nB=\0").unwrap_err().starts_with("line 2 "));
    }
}
