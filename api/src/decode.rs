//! From a JSON body to a shape. Unknown members are ignored and null ones are absent, as AWS does.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use crate::error::ApiError;

/// Longest explanation that goes back to the caller; it repeats pieces of what the caller sent.
const MAX_MESSAGE_CHARS: usize = 300;

/// Reads a shape; the error names the member that does not fit.
pub(crate) fn shape<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::Serialization(
            "The request body is not a JSON object.".to_owned(),
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let shape = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    json.end().map_err(|error| explain(".", &error))?;
    Ok(shape)
}

/// Like [`shape`], for requests that carry secrets: the error names the member and repeats nothing of what it holds.
pub(crate) fn secret_shape<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let no_object = || ApiError::Serialization("The request body is not a JSON object.".to_owned());
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(no_object());
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let shape = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        match error.inner().classify() {
            Category::Data => {
                let path: String = path.chars().take(MAX_MESSAGE_CHARS).collect();
                ApiError::Serialization(format!("{path}: this member is of another type"))
            }
            _ => no_object(),
        }
    })?;
    json.end().map_err(|_| no_object())?;
    Ok(shape)
}

/// Declares shapes whose members are written like `ThisOne`; every member is optional, because each service answers a
/// missing one with a text of its own.
macro_rules! pascal_shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$member_meta:meta])* $member:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub(crate) struct $name { $($(#[$member_meta])* pub(crate) $member: Option<$type>,)* }
    )*};
}
pub(crate) use pascal_shapes;

fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let text = match error.classify() {
        Category::Data => {
            let what = text.split(" at line ").next().unwrap_or_default();
            if path == "." {
                what.to_owned()
            } else {
                format!("{path}: {what}")
            }
        }
        _ => format!("The request body is not valid JSON: {text}"),
    };
    ApiError::Serialization(text.chars().take(MAX_MESSAGE_CHARS).collect())
}

/// Whether a member that is not understood was left out, or says nothing.
pub(crate) fn says_nothing(member: &Option<Value>) -> bool {
    match member {
        None | Some(Value::Null) | Some(Value::Bool(false)) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(members)) => members.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Outer {
        count: Option<i32>,
        list: Option<Vec<Inner>>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Inner {
        name: Option<String>,
    }

    fn message(body: &str) -> String {
        let error = shape::<Outer>(body.as_bytes()).unwrap_err();
        assert_eq!(error.code(), "SerializationException");
        error.to_string()
    }

    #[test]
    fn a_wrong_type_is_refused_by_the_name_of_its_member() {
        assert!(message(r#"{"count":"1"}"#).starts_with("count: invalid type: string"));
        assert!(message(r#"{"list":[{"name":1}]}"#).starts_with("list[0].name: invalid type: integer"));
        assert!(message(r#"{"count":2147483648}"#).starts_with("count: "));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for body in [
            "",
            "[]",
            "1",
            "{",
            r#"{"count":1"#,
            r#"{"count":1}}"#,
            "{\"a\":\"\u{1}\"}",
        ] {
            message(body);
        }
        message(&format!("{{\"a\":{}", "[".repeat(100_000)));
    }

    #[test]
    fn null_and_unknown_members_are_as_if_absent() {
        let outer: Outer = shape(br#" {"count":null,"other":{"a":[1]}} "#).unwrap();
        assert!(outer.count.is_none() && outer.list.is_none());
    }

    #[test]
    fn the_error_of_a_secret_shape_repeats_nothing() {
        for body in [
            r#"{"count":"hunter2"}"#,
            r#"{"list":["hunter2"]}"#,
            r#"{"list":{"hunter2":1}}"#,
            r#"["hunter2"]"#,
            r#"{"count":1}hunter2"#,
            r#"{"count":hunter2}"#,
            "hunter2",
        ] {
            let error = secret_shape::<Outer>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "SerializationException");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = secret_shape::<Outer>(br#"{"list":[{"name":1}]}"#).unwrap_err();
        assert_eq!(error.to_string(), "list[0].name: this member is of another type");
        assert_eq!(secret_shape::<Outer>(br#" {"count":1} "#).unwrap().count, Some(1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(body: Vec<u8>) {
            let _ = shape::<Outer>(&body);
        }

        #[test]
        fn a_cut_off_body_is_refused(cut in 0usize..40) {
            let body = br#"{"count":1,"list":[{"name":"some name"}]}"#;
            prop_assert!(shape::<Outer>(&body[..cut]).is_err());
        }
    }
}
