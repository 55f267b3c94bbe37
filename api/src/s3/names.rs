//! Names of buckets and keys of objects, and the ARNs that name both. Pure.

/// Longest key, in bytes of UTF-8.
pub(crate) const MAX_KEY_BYTES: usize = 1024;

/// 3 to 63 small letters, digits, hyphens and dots, with a letter or a digit at each end and between two dots.
pub(crate) fn is_bucket(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let at_the_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| inner(*byte))
        && at_the_end(bytes.first())
        && at_the_end(bytes.last())
        && !name.contains("..")
}

/// Anything but control characters, which no list of keys could show.
pub(crate) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len()) && !key.contains(char::is_control)
}

/// Bucket and key of `arn:aws:s3:::BUCKET/KEY`.
pub(crate) fn of_arn(arn: &str) -> Option<(&str, &str)> {
    let (bucket, key) = arn.strip_prefix("arn:aws:s3:::")?.split_once('/')?;
    (is_bucket(bucket) && is_key(key)).then_some((bucket, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_s3_takes_is_a_bucket() {
        for good in ["abc", "my-bucket.v2", "0ab", &"a".repeat(63)] {
            assert!(is_bucket(good), "{good}");
        }
        for bad in [
            "",
            "ab",
            "Abc",
            "a_c",
            "-ab",
            "ab.",
            "a..b",
            "a b",
            "é12",
            &"a".repeat(64),
        ] {
            assert!(!is_bucket(bad), "{bad}");
        }
    }

    #[test]
    fn an_arn_names_an_object() {
        assert_eq!(
            of_arn("arn:aws:s3:::config/web/prod.env"),
            Some(("config", "web/prod.env"))
        );
        for bad in [
            "",
            "config/web.env",
            "arn:aws:s3:::config",
            "arn:aws:s3:::config/",
            "arn:aws:s3:::C/web.env",
            "arn:aws:s3:us-east-1::config/web.env",
            "arn:aws:s3:::config/a\nb",
        ] {
            assert_eq!(of_arn(bad), None, "{bad}");
        }
    }
}
