//! Text for people: columns that line up, amounts of money, ages, and strings that cannot drive the terminal.

/// Nano-units of money as exact decimal text: nine digits after the point, never rounded.
pub(super) fn money(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

/// `text` on one line, with control characters shown as escapes: it comes from images, registries and callers, and a
/// terminal would obey it.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        // Beside the control characters: the marks that turn the direction of writing.
        if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Columns as wide as their widest cell, two spaces apart; the last one is not padded. Columns of `right` (by index)
/// are set flush right.
pub(super) fn columns(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let shown: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let width_of = |column: usize| {
        let cells = shown
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(header.get(column).map(|title| title.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width_of).collect();
    let mut text = String::new();
    let titles = header.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(&shown) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            if right.contains(&column) {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A span of time in its two largest units: `45s`, `3m 12s`, `2h 5m`, `4d 1h`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// With one decimal, in the largest unit of which there is one.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (1..UNITS.len())
        .rev()
        .find(|unit| bytes >> (10 * unit) > 0)
        .unwrap_or(0);
    match unit {
        0 => format!("{bytes} B"),
        unit => format!(
            "{:.1} {}",
            bytes as f64 / (1u64 << (10 * unit)) as f64,
            UNITS[unit]
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        let shown: Vec<String> = [0, 1023, 1024, 1536, 5 << 30, u64::MAX]
            .iter()
            .map(|it| bytes(*it))
            .collect();
        assert_eq!(
            shown,
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "16777216.0 TiB"]
        );
    }

    proptest! {
        #[test]
        fn money_is_exact(nanos: u64) {
            let text = money(nanos);
            let (whole, fraction) = text.split_once('.').unwrap();
            prop_assert_eq!(fraction.len(), 9);
            let back = whole.parse::<u128>().unwrap() * 1_000_000_000 + fraction.parse::<u128>().unwrap();
            prop_assert_eq!(back, u128::from(nanos));
        }

        #[test]
        fn printable_text_has_no_control_characters(text: String) {
            prop_assert!(!printable(&text).chars().any(char::is_control));
        }

        #[test]
        fn cells_of_a_column_start_at_the_same_place(cells in proptest::collection::vec("[a-z]{0,12}", 1..6)) {
            let rows: Vec<Vec<String>> = cells.iter().map(|cell| vec![cell.clone(), "|".to_owned()]).collect();
            let text = columns(&["A", "B"], &rows, &[]);
            let places: Vec<_> = text.lines().skip(1).map(|line| line.find('|')).collect();
            prop_assert!(places.iter().all(|place| place.is_some() && *place == places[0]));
        }
    }

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(printable("a\u{1b}[31mred\nb\n"), "a\\u{1b}[31mred\\nb");
    }

    #[test]
    fn numbers_are_set_flush_right() {
        let text = columns(
            &["N", "X"],
            &[vec!["7".into(), "a".into()], vec!["123".into(), "b".into()]],
            &[0],
        );
        assert_eq!(text, "  N  X\n  7  a\n123  b\n");
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        let shown: Vec<String> = [0, 59, 60, 3599, 3600, 90_061].iter().map(|s| span(*s)).collect();
        assert_eq!(shown, ["0s", "59s", "1m 0s", "59m 59s", "1h 0m", "1d 1h"]);
    }
}
