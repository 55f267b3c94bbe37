//! Pages of a list, and the opaque tokens that lead from one to the next. A token holds the key of the last item given
//! and a digest of the question, so that it goes on rightly when items came and went, and fits no other question.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Bytes of the digest of the question at the front of a token.
const QUESTION_BYTES: usize = 8;
/// Longest token that was ever given out, with room to spare.
const MAX_TOKEN_CHARS: usize = 4096;

/// The token is not one that this question's answers gave.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid token")]
pub(crate) struct InvalidToken;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Descending,
}

/// One page, in the order of `key`, and the token of the next page. `question` tells one list from another: the
/// operation and everything that filters or orders it.
pub(crate) fn page<T>(
    mut items: Vec<T>,
    key: impl Fn(&T) -> String,
    order: Order,
    question: &str,
    token: Option<&str>,
    limit: usize,
) -> Result<(Vec<T>, Option<String>), InvalidToken> {
    items.sort_by_cached_key(&key);
    if let Some(token) = token {
        let last = read(question, token)?;
        items.retain(|item| match order {
            Order::Ascending => key(item) > last,
            Order::Descending => key(item) < last,
        });
    }
    if order == Order::Descending {
        items.reverse();
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items
        .last()
        .filter(|_| more)
        .map(|last| write(question, &key(last)));
    Ok((items, next))
}

pub(crate) fn write(question: &str, key: &str) -> String {
    let mut bytes = digest(question).to_vec();
    bytes.extend_from_slice(key.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn read(question: &str, token: &str) -> Result<String, InvalidToken> {
    if token.len() > MAX_TOKEN_CHARS {
        return Err(InvalidToken);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidToken)?;
    match bytes.split_at_checked(QUESTION_BYTES) {
        Some((said, key)) if said == digest(question) => {
            String::from_utf8(key.to_vec()).map_err(|_| InvalidToken)
        }
        _ => Err(InvalidToken),
    }
}

fn digest(question: &str) -> [u8; QUESTION_BYTES] {
    let mut short = [0; QUESTION_BYTES];
    short.copy_from_slice(&Sha256::digest(question.as_bytes())[..QUESTION_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_pages(items: &[String], order: Order, limit: usize) -> Vec<String> {
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let (items, next) =
                page(items.to_vec(), String::clone, order, "q", token.as_deref(), limit).unwrap();
            assert!(items.len() <= limit);
            all.extend(items);
            match next {
                Some(next) => token = Some(next),
                None => return all,
            }
        }
    }

    proptest! {
        #[test]
        fn the_pages_together_are_the_list(set in proptest::collection::btree_set("[a-z]{0,6}", 0..40), limit in 1usize..10) {
            let sorted: Vec<String> = set.iter().cloned().collect();
            let reversed: Vec<String> = set.into_iter().rev().collect();
            prop_assert_eq!(all_pages(&reversed, Order::Ascending, limit), sorted.clone());
            prop_assert_eq!(all_pages(&sorted, Order::Descending, limit), reversed);
        }

        #[test]
        fn a_token_is_good_for_its_own_question_only(key: String, question: String, other: String) {
            let token = write(&question, &key);
            prop_assert_eq!(read(&question, &token), Ok(key));
            if question != other {
                prop_assert_eq!(read(&other, &token), Err(InvalidToken));
            }
        }

        #[test]
        fn no_made_up_token_is_taken(token in "[A-Za-z0-9_=-]{0,40}") {
            prop_assert_eq!(read("q", &token), Err(InvalidToken));
        }
    }

    #[test]
    fn a_page_goes_on_after_an_item_that_is_gone() {
        let items = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (_, token) = page(
            items(&["a", "b", "c"]),
            String::clone,
            Order::Ascending,
            "q",
            None,
            2,
        )
        .unwrap();
        let (rest, _) = page(
            items(&["a", "c"]),
            String::clone,
            Order::Ascending,
            "q",
            token.as_deref(),
            2,
        )
        .unwrap();
        assert_eq!(rest, ["c"]);
    }
}
