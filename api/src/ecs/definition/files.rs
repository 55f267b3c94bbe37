//! `environmentFiles` of a container, in its definition and in what RunTask says over it. Pure.

use berth_runtime::model::object::EnvironmentFile;

use super::container::Task;
use super::limits::shown;
use crate::ecs::shapes::{ContainerShape, EnvironmentFileShape};
use crate::s3;

/// Of a whole definition, and of what RunTask says of one container.
const MAX_FILES: usize = 10;
pub(crate) const NEED_A_ROLE: &str = "When you are specifying container environment files, you must also specify a value for 'executionRoleArn'";
const SUFFIX: &str = ".env";

pub(super) fn errors(container: &ContainerShape, task: &Task<'_>, errors: &mut Vec<String>) {
    let files = container.environment_files.as_deref().unwrap_or_default();
    let role = task.input.execution_role_arn.as_deref().unwrap_or_default();
    if !files.is_empty() && role.is_empty() {
        errors.push(NEED_A_ROLE.to_owned());
    }
    file_errors(files, errors);
}

/// What is wrong with each of these files by itself.
pub(crate) fn file_errors(files: &[EnvironmentFileShape], errors: &mut Vec<String>) {
    for file in files {
        if let Err(error) = reference(file) {
            errors.push(error);
        }
    }
    count(files.len(), errors);
}

pub(super) fn together(containers: &[ContainerShape], errors: &mut Vec<String>) {
    let files = containers
        .iter()
        .map(|container| container.environment_files.iter().flatten().count());
    // One container that has too many has said so.
    if files.clone().all(|of_one| of_one <= MAX_FILES) {
        count(files.sum(), errors);
    }
}

fn count(files: usize, errors: &mut Vec<String>) {
    if files > MAX_FILES {
        errors.push(format!(
            "There can be at most {MAX_FILES} environmentFiles, not {files}."
        ));
    }
}

/// Of files that `errors` finds nothing wrong with.
pub(crate) fn references(files: Option<&[EnvironmentFileShape]>) -> Vec<EnvironmentFile> {
    let files = files.unwrap_or_default().iter();
    files.filter_map(|file| reference(file).ok()).collect()
}

fn reference(file: &EnvironmentFileShape) -> Result<EnvironmentFile, String> {
    match file.kind.as_deref() {
        Some("s3") => {}
        None | Some("") => return Err("EnvironmentFile.type should not be null or empty.".to_owned()),
        Some(other) => {
            return Err(format!(
                "Invalid environmentFiles type '{}': must be s3.",
                shown(other)
            ));
        }
    }
    let value = file.value.clone().unwrap_or_default();
    if value.is_empty() {
        return Err("EnvironmentFile.value should not be null or empty.".to_owned());
    }
    let Some((bucket, key)) = s3::names::of_arn(&value).filter(|(_, key)| key.ends_with(SUFFIX)) else {
        return Err(format!(
            "Invalid environmentFiles value '{}': it must be the ARN of an object whose key ends with {SUFFIX}, such as \
             arn:aws:s3:::config/web{SUFFIX}.",
            shown(&value)
        ));
    };
    Ok(EnvironmentFile {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        value,
    })
}

/// None where there are none.
pub(crate) fn encode(files: &[EnvironmentFile]) -> Option<serde_json::Value> {
    let shape = |file: &EnvironmentFile| serde_json::json!({ "value": file.value, "type": "s3" });
    (!files.is_empty()).then(|| files.iter().map(shape).collect())
}
