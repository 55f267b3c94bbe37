//! Every member of RegisterTaskDefinition's input, by itself and with others: it is shown again or refused, and never forgotten.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::ecs::members::{Member, get, members, names, set};

const LIST: &str = include_str!("members.txt");
/// Taken, and not part of what is described here: tags are listed beside it, the family is the name, and consistency is what
/// there is anyway.
const NOT_SHOWN: [&str; 4] = [
    "family",
    "tags[].key",
    "tags[].value",
    "containerDefinitions[].versionConsistency",
];

/// What the caller is told, or the definition.
fn outcome(input: &Value) -> Result<TaskDefinition, String> {
    let shape = crate::decode::shape(input.to_string().as_bytes()).map_err(|error| error.to_string())?;
    let spec = decode::spec(&shape, REGION).map_err(|error| error.to_string())?;
    Ok(TaskDefinition {
        spec,
        ..registered(&minimal())
    })
}

#[test]
fn no_member_is_forgotten() {
    for member in members(LIST) {
        for value in member.plain_values() {
            let mut input = minimal();
            set(&mut input, member.path, value.clone());
            let Ok(definition) = outcome(&input) else { continue };
            let shown = encode::definition(&owner(), &definition);
            let is_shown = get(&shown, member.path) == &value
                || get(&shown, member.path).is_number() && value.is_number()
                || get(&shown, member.path).as_str().map(str::len) == value.as_str().map(str::len);
            assert!(
                is_shown || NOT_SHOWN.contains(&member.path),
                "{} with {value} was taken and is not shown: {shown}",
                member.path
            );
        }
    }
}

fn one_member() -> impl Strategy<Value = (Member, Value)> {
    select(members(LIST)).prop_flat_map(|member| (Just(member.clone()), member.any_value()))
}

fn some_base() -> impl Strategy<Value = Value> {
    select(vec![minimal(), full(), related()])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_refusal_names_the_member_that_is_wrong(base in some_base(), (member, value) in one_member()) {
        let mut input = base;
        set(&mut input, member.path, value.clone());
        if let Err(message) = outcome(&input) {
            let first = message.lines().next().unwrap_or_default();
            prop_assert!(names(first, &member, &members(LIST)), "{} with {value}: {message}", member.path);
        }
    }

    #[test]
    fn whatever_is_sent_is_refused_with_words_or_kept_as_it_is(
        base in some_base(),
        changes in proptest::collection::vec(one_member(), 1..8),
    ) {
        let mut input = base;
        for (member, value) in changes {
            set(&mut input, member.path, value);
        }
        match outcome(&input) {
            Err(message) => prop_assert!(!message.is_empty() && message.len() < 100_000),
            Ok(definition) => {
                let stored = serde_json::to_string(&definition).unwrap();
                prop_assert_eq!(&serde_json::from_str::<TaskDefinition>(&stored).unwrap(), &definition);
                let shown = encode::definition(&owner(), &definition);
                prop_assert_eq!(outcome(&shown).map(|again| again.spec), Ok(definition.spec));
            }
        }
    }
}
