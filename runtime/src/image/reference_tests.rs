//! Tests of image references.

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn canonical(text: &str) -> String {
    text.parse::<Reference>()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .to_string()
}

#[test]
fn docker_defaults_are_filled_in() {
    for (text, expected) in [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        (
            "index.docker.io/library/busybox",
            "docker.io/library/busybox:latest",
        ),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (
            "public.ecr.aws/docker/library/nginx:1",
            "public.ecr.aws/docker/library/nginx:1",
        ),
    ] {
        assert_eq!(canonical(text), expected);
    }
}

#[test]
fn a_digest_needs_no_tag_and_keeps_one() {
    assert_eq!(canonical(&format!("a.io/x@{DIGEST}")), format!("a.io/x@{DIGEST}"));
    let both: Reference = format!("a.io/x:v1@{DIGEST}").parse().unwrap();
    assert_eq!(both.to_string(), format!("a.io/x:v1@{DIGEST}"));
    let Reference::Registry(both) = both else {
        panic!("not in a registry")
    };
    assert_eq!(both.selector(), DIGEST);
}

#[test]
fn layouts_and_archives_have_absolute_paths() {
    let layout = Reference::Layout {
        path: "/srv/img".into(),
        tag: Some("v1".into()),
    };
    assert_eq!("oci:/srv/img:v1".parse(), Ok(layout));
    let archive = Reference::Archive {
        path: "/srv/img.tar".into(),
        tag: None,
    };
    assert_eq!("oci-archive:/srv/img.tar".parse(), Ok(archive));
    assert_eq!(
        "oci:/srv/a:b/c".parse(),
        Ok(Reference::Layout {
            path: "/srv/a:b/c".into(),
            tag: None
        })
    );
    assert!(matches!(
        "oci:/srv/../etc".parse::<Reference>(),
        Err(ReferenceError::Path(_))
    ));
    assert!(matches!(
        "oci:/".parse::<Reference>(),
        Err(ReferenceError::Path(_))
    ));
    assert!(matches!(
        "oci:relative/dir".parse::<Reference>(),
        Err(ReferenceError::Registry(_))
    ));
}

#[test]
fn malformed_references_are_refused_by_part() {
    assert_eq!("".parse::<Reference>(), Err(ReferenceError::Empty));
    assert_eq!(
        "a".repeat(2000).parse::<Reference>(),
        Err(ReferenceError::TooLong)
    );
    for text in [
        "UPPER",
        "a//b",
        "a/../b",
        "a/.hidden",
        "a___b",
        "-a",
        "a-",
        "a.io/",
    ] {
        assert!(
            matches!(text.parse::<Reference>(), Err(ReferenceError::Name(_))),
            "{text}"
        );
    }
    for text in ["a:", "a:b c", "a:-x", "a.io/x:é"] {
        assert!(
            matches!(text.parse::<Reference>(), Err(ReferenceError::Tag(_))),
            "{text}"
        );
    }
    for text in [
        "a_b.io/x",
        "a.io:0/x",
        "a.io:99999/x",
        "-a.io/x",
        "a..io/x",
        "user@a.io/x",
        "a.io:+1/x",
    ] {
        assert!(text.parse::<Reference>().is_err(), "{text}");
    }
    assert!(matches!(
        "a@sha512:00".parse::<Reference>(),
        Err(ReferenceError::Digest(_))
    ));
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_and_the_canonical_form_is_stable(text in "\\PC{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let printed = reference.to_string();
            prop_assert_eq!(printed.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn what_goes_into_a_url_has_no_url_syntax(text in "[a-z0-9.:/@_%?#-]{1,40}") {
        if let Ok(Reference::Registry(reference)) = text.parse::<Reference>() {
            for part in [&reference.registry, &reference.name, &reference.selector()] {
                prop_assert!(!part.contains(['%', '?', '#', '@', '\\']) && part.split('/').all(|it| it != ".."));
            }
        }
    }
}
