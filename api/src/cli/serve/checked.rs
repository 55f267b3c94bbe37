//! Values of `berth serve`'s options, checked before anything is done with them.

use std::num::NonZeroU64;

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

/// A whole number of bytes, or of `KiB`, `MiB`, `GiB` or `TiB`.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
        .unwrap_or((text, 0));
    let whole = digits.bytes().all(|b| b.is_ascii_digit());
    let count = digits.parse::<u64>().ok().filter(|_| whole);
    count
        .and_then(|count| count.checked_mul(1 << shift))
        .ok_or("a size is a whole number of bytes, KiB, MiB, GiB or TiB, such as 50GiB")
}

/// Slower than this, and a registry would give up on the reader.
const MIN_RATE: u64 = 64 << 10;

pub(super) fn rate(text: &str) -> Result<NonZeroU64, &'static str> {
    let rate = NonZeroU64::new(size(text)?).filter(|rate| rate.get() >= MIN_RATE);
    rate.ok_or("a rate is at least 64KiB a second")
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
        assert_eq!(size("50GiB"), Ok(50 << 30));
        assert_eq!(size("0"), Ok(0));
        assert_eq!(rate("64KiB").map(NonZeroU64::get), Ok(65536));
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
            ["", "GiB", "-1", "+1", "1.5GiB", "50GB", "99999999TiB", "5 GiB"]
                .into_iter()
                .all(|text| size(text).is_err())
        );
        assert!(["0", "63KiB", "x"].into_iter().all(|text| rate(text).is_err()));
        assert!(
            ["", "B", "-x", "a/b", "a-b", "abcdefghi"]
                .into_iter()
                .all(|text| host_prefix(text).is_err())
        );
    }
}
