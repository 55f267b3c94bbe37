//! Values of `berth serve`'s options, checked before anything is done with them.

/// Longest prefix that leaves room for the rest of an interface's or a namespace's name.
const MAX_PREFIX: usize = 8;

pub(super) fn account_id(text: &str) -> Result<String, &'static str> {
    let good = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    if good {
        Ok(text.to_owned())
    } else {
        Err("an account id is 12 digits")
    }
}

pub(super) fn region(text: &str) -> Result<String, &'static str> {
    let good = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if good {
        Ok(text.to_owned())
    } else {
        Err("a region is lower-case letters, digits and dashes, such as us-east-1")
    }
}

pub(super) fn registry(text: &str) -> Result<String, &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let good_host = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    if good_host && good_port {
        Ok(text.to_owned())
    } else {
        Err("a registry is HOST or HOST:PORT, without http://")
    }
}

pub(super) fn host_prefix(text: &str) -> Result<String, &'static str> {
    let good = (1..=MAX_PREFIX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if good {
        Ok(text.to_owned())
    } else {
        Err("a prefix is 1 to 8 lower-case letters and digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_values_pass() {
        assert!(account_id("123456789012").is_ok());
        assert!(region("eu-central-1").is_ok());
        assert!(
            ["localhost", "127.0.0.1:5000", "reg.example"]
                .into_iter()
                .all(|text| registry(text).is_ok())
        );
        assert!(host_prefix("berth2").is_ok());
    }

    #[test]
    fn bad_values_are_refused() {
        assert!(
            ["", "12345678901", "12345678901x", "1234567890123"]
                .into_iter()
                .all(|text| account_id(text).is_err())
        );
        assert!(
            ["", "US", "1a", "a b", "a/b"]
                .into_iter()
                .all(|text| region(text).is_err())
        );
        assert!(
            ["", "http://x", "x:0", "x:99999", "x/y", ":5000"]
                .into_iter()
                .all(|text| registry(text).is_err())
        );
        assert!(
            ["", "B", "-x", "a/b", "a-b", "abcdefghi"]
                .into_iter()
                .all(|text| host_prefix(text).is_err())
        );
    }
}
