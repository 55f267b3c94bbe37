//! Names of parameters: which are allowed, and how one is named in a request: by name or ARN, with or without a version.
//! Pure.

use super::validation;
use crate::arn::Owner;
use crate::error::ApiError;

const MAX_LEVELS: usize = 15;
/// Of a name, and of its ARN.
const MAX_CHARS: usize = 2048;
/// Longest version behind a name.
const MAX_SELECTOR_CHARS: usize = 128;

/// A parameter as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Names that it may have: the ARN of `a` and that of `/a` are the same.
    pub names: Vec<String>,
    /// `:3` in `name:3`.
    pub selector: Option<String>,
}

impl Named {
    /// From `name` or `name:version`.
    pub fn of_name(text: &str) -> Named {
        let (name, selector) = split(text);
        let names = vec![name];
        Named { names, selector }
    }

    /// From what follows `parameter/` in an ARN.
    pub fn of_arn(text: &str) -> Named {
        let (name, selector) = split(text);
        let with_slash = format!("/{name}");
        let names = match name.contains('/') {
            true => vec![with_slash],
            false => vec![name, with_slash],
        };
        Named { names, selector }
    }

    /// The version of the selector; none for one that is no number.
    pub fn version(&self) -> Option<u64> {
        self.selector.as_deref()?.parse().ok()
    }
}

/// A name for a new parameter.
pub(super) fn check_new(name: &str, owner: &Owner) -> Result<(), ApiError> {
    if name.is_empty() || name.len() > MAX_CHARS {
        return Err(length("name", 1, MAX_CHARS));
    }
    let path = name.strip_prefix('/').unwrap_or(name);
    if name.contains('/') && !name.starts_with('/') {
        return Err(validation("Parameter name must be a fully qualified name."));
    }
    let first = path.to_ascii_lowercase();
    if first.starts_with("aws") {
        return Err(ApiError::of_service(
            "AccessDeniedException",
            format!("No access to reserved parameter name: {}.", shown(name)),
        ));
    }
    let in_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let well_formed = path
        .split('/')
        .all(|level| !level.is_empty() && level.bytes().all(in_a_name));
    if first.starts_with("ssm") || !well_formed {
        return Err(validation(
            "Parameter name: can't be prefixed with \"aws\" or \"ssm\" (case-insensitive). If formed as a path, it can \
             consist of sub-paths divided by slash symbol; each sub-path can be formed as a mix of letters, numbers and \
             the following 3 symbols .-_",
        ));
    }
    if name.starts_with('/') && path.split('/').count() > MAX_LEVELS {
        return Err(ApiError::of_service(
            "HierarchyLevelLimitExceededException",
            format!(
                "A hierarchy can have a maximum of {MAX_LEVELS} levels: {}",
                shown(name)
            ),
        ));
    }
    if owner.parameter(name).len() > MAX_CHARS {
        return Err(length("name", 1, MAX_CHARS));
    }
    Ok(())
}

/// Reads `name`, `name:version` or an ARN of either.
pub(crate) fn parse(text: &str, owner: &Owner) -> Result<Named, ApiError> {
    if text.is_empty() || text.len() > MAX_CHARS + MAX_SELECTOR_CHARS {
        return Err(length("name", 1, MAX_CHARS));
    }
    let resource = owner
        .resource(text, "ssm")
        .map_err(|error| validation(error.to_string()))?;
    let named = match resource {
        Some(resource) => resource
            .strip_prefix("parameter/")
            .ok_or_else(|| validation(format!("Invalid parameter ARN: {}", shown(text))))?,
        None => text,
    };
    Ok(match resource {
        Some(_) => Named::of_arn(named),
        None => Named::of_name(named),
    })
}

/// A name and what may follow it after a colon.
fn split(text: &str) -> (String, Option<String>) {
    match text.split_once(':') {
        Some((name, selector)) => (name.to_owned(), Some(selector.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// A prefix of names that ends with a slash.
pub(super) fn parse_path(path: &str) -> Result<String, ApiError> {
    let in_a_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
    if !path.starts_with('/') || path.len() > MAX_CHARS || !path.bytes().all(in_a_path) || path.contains("//")
    {
        return Err(validation(
            "The parameter doesn't meet the parameter name requirements. The parameter name must begin with a forward \
             slash \"/\". It can't be prefixed with \"aws\" or \"ssm\" (case-insensitive). It must use only letters, \
             numbers, or the following symbols: . (period), - (hyphen), _ (underscore). Special characters are not \
             allowed. All sub-paths, if specified, must use the forward slash symbol \"/\". Valid example: \
             /get/parameters2-/by1./path0_.",
        ));
    }
    Ok(match path.ends_with('/') {
        true => path.to_owned(),
        false => format!("{path}/"),
    })
}

/// Whether a name is below a path, at once or anywhere.
pub(super) fn is_below(name: &str, path: &str, recursive: bool) -> bool {
    name.strip_prefix(path)
        .is_some_and(|rest| !rest.is_empty() && (recursive || !rest.contains('/')))
}

pub(super) fn length(member: &str, least: usize, most: usize) -> ApiError {
    validation(format!(
        "1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must have length less \
         than or equal to {most}, Member must have length greater than or equal to {least}"
    ))
}

/// A caller's own words, bounded.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(255).collect()
}
