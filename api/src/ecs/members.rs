//! Inputs made from a list of an operation's members, one `path: type` a line: good, bad and senseless. For tests alone.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// A member of an input, such as `containerDefinitions[].cpu`.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) path: &'static str,
    /// `string`, `integer`, `boolean`, `map`, or `one of` and the values.
    kind: &'static str,
}

pub(crate) fn members(list: &'static str) -> Vec<Member> {
    let line = |line: &'static str| {
        let (path, kind) = line.split_once(": ")?;
        Some(Member { path, kind })
    };
    list.lines().filter_map(line).collect()
}

impl Member {
    /// Values of its own type, none of which says nothing.
    pub(crate) fn plain_values(&self) -> Vec<Value> {
        match self.kind {
            "string" => vec![json!("x1"), json!("net.x"), json!("/x")],
            "integer" => vec![json!(7), json!(100)],
            "boolean" => vec![json!(true)],
            "map" => vec![json!({ "k": "v" })],
            other => other.split(' ').skip(2).map(|value| json!(value)).collect(),
        }
    }

    /// Any value: now and then of its own type.
    pub(crate) fn any_value(&self) -> impl Strategy<Value = Value> + use<> {
        prop_oneof![3 => select(self.plain_values()), 1 => anything()]
    }

    /// The last name of its path.
    pub(crate) fn name(&self) -> &'static str {
        let name = self.path.rsplit('.').next().unwrap_or_default();
        name.trim_end_matches("[]")
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        " ",
        "x",
        "a\0b",
        "é",
        "\n",
        "/",
        "/..",
        "../..",
        "256",
        "-1",
        "1 vCPU",
        "ALL",
        "arn:aws:s3:::b/k",
        "app",
        "%n",
        "'",
    ];
    let texts = select(texts.to_vec()).prop_map(Value::from);
    let leaf = prop_oneof![
        texts,
        any::<i32>().prop_map(Value::from),
        select(vec![0i64, 1, -1, 1 << 31, i64::MAX, i64::MIN]).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!(1.5)),
        Just(json!(1e300)),
        Just(json!("x".repeat(300))),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-zA-Z]{0,8}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Sets a member, in the first item of each list on its way; what is not there is made.
pub(crate) fn set(input: &mut Value, path: &str, value: Value) {
    let Some((name, rest)) = path.split_once('.').map_or(Some((path, "")), Some) else {
        return;
    };
    let (name, is_list) = match name.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (name, false),
    };
    if !input.is_object() {
        *input = json!({});
    }
    let mut place = &mut input[name];
    if is_list {
        if place.as_array().is_none_or(Vec::is_empty) {
            *place = json!([null]);
        }
        place = &mut place[0];
    }
    if rest.is_empty() {
        *place = value;
    } else {
        set(place, rest, value);
    }
}

/// What is at a path, in the first item of each list on the way.
pub(crate) fn get<'a>(from: &'a Value, path: &str) -> &'a Value {
    let pointer = format!("/{}", path.replace("[]", "/0").replace('.', "/"));
    from.pointer(&pointer).unwrap_or(&Value::Null)
}

/// Whether a refusal speaks of a member, by its name, one of those on its path or of its siblings, which it may need, or in
/// the words of AWS.
pub(crate) fn names(message: &str, member: &Member, all: &[Member]) -> bool {
    let bare = |text: &str| text.to_lowercase().replace(|it: char| !it.is_alphanumeric(), "");
    let in_other_words = [
        ("capabilities", "is not allowed on Fargate"),
        ("dependsOn", "Cannot depend on"),
        ("name", "Cannot depend on"),
        ("name", "is no other container of the task"),
        ("name", "Unknown volume"),
        ("dependsOn", "dependencies must not form a circle"),
        ("containerDefinitions", "Container list cannot be empty"),
        ("sourceVolume", "Unknown volume"),
        ("tags", "tag"),
        ("containerOverrides", "Override for container named"),
        ("subnets", "subnet"),
        ("securityGroups", "security group"),
        ("placementStrategy", "Placement strategies"),
        ("launchType", "No Container Instances"),
        ("platformVersion", "platform"),
        ("taskDefinition", "evision"),
    ];
    let siblings = all.iter().filter(|other| {
        let parent = other.path.rsplit_once('.').map(|(parent, _)| parent);
        parent.is_some_and(|parent| member.path.starts_with(parent))
    });
    let text = bare(message);
    member
        .path
        .split('.')
        .chain(siblings.map(Member::name))
        .any(|name| {
            let name = name.trim_end_matches("[]");
            let mut own = in_other_words.iter().filter(|(of, _)| *of == name);
            text.contains(&bare(name)) || own.any(|(_, words)| message.contains(words))
        })
}
