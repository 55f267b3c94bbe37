//! What the guest is told of a container's limits.

use super::*;
use crate::model::definition::Ulimit;

fn container(ulimits: Vec<Ulimit>) -> ContainerDefinition {
    let mut container = crate::runtime::test_definition().containers.remove(0);
    container.ulimits = ulimits;
    container
}

fn ulimit(name: &str, soft: i64, hard: i64) -> Ulimit {
    Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    }
}

#[test]
fn open_files_have_a_limit_in_any_case() {
    let told = limits(&container(vec![]));
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].name.as_str(), told[0].soft, told[0].hard),
        ("nofile", Some(65_535), Some(65_535))
    );
    let told = limits(&container(vec![ulimit("nofile", 1, 2)]));
    assert_eq!((told.len(), told[0].soft, told[0].hard), (1, Some(1), Some(2)));
}

#[test]
fn minus_one_is_no_limit() {
    let told = limits(&container(vec![ulimit("memlock", 5, -1)]));
    assert_eq!((told[0].soft, told[0].hard), (Some(5), None));
}
