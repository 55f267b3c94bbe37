//! What a registry asks for when it answers 401, and how that is given: basic, or a bearer token from its token server
//! (distribution specification, "Token Authentication"). The requests are `registry`'s.

use http_auth::parser::ChallengeParser;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Credentials;

/// Most bytes of a token server's answer.
pub(super) const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// With what a registry is asked.
pub(super) enum Login {
    Password(Credentials),
    /// What a token server gave for a password at a login; it gives tokens for it (OAuth 2 refresh token).
    IdentityToken(Zeroizing<String>),
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// Reads the challenges of an answer; a bearer challenge goes before a basic one.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(value) = value.to_str() else { continue };
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name: &str| {
                    let found = challenge
                        .params
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if let Some(realm) = parameter("realm").and_then(|realm| Url::parse(&realm).ok()) {
                    return Some(Challenge::Bearer {
                        realm,
                        service: parameter("service"),
                    });
                }
            }
        }
    }
    basic
}

/// The address of a token for pulling from one repository.
pub(super) fn token_url(mut realm: Url, service: Option<&str>, repository: &str) -> Url {
    {
        let mut query = realm.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &format!("repository:{repository}:pull"));
    }
    realm
}

/// The form that a token server takes an identity token in (distribution specification, "OAuth2 token authentication").
pub(super) fn token_form(
    realm: &Url,
    token: &str,
    service: Option<&str>,
    repository: &str,
) -> Zeroizing<String> {
    // A form is written as a query is.
    let mut form = realm.clone();
    form.set_query(None);
    form.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "berth")
        .append_pair("service", service.unwrap_or_default())
        .append_pair("scope", &format!("repository:{repository}:pull"))
        .append_pair("refresh_token", token);
    Zeroizing::new(form.query().unwrap_or_default().to_owned())
}

/// The `Authorization` header for the token in a token server's answer.
pub(super) fn bearer(answer: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())?;
    secret(&format!("Bearer {token}"))
}

pub(super) fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    use base64::Engine as _;
    let pair = Zeroizing::new(format!("{}:{}", credentials.username, credentials.password));
    let encoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pair.as_bytes()));
    secret(&Zeroizing::new(format!("Basic {}", encoded.as_str())))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenge(&headers)
    }

    #[test]
    fn bearer_challenges_name_realm_and_service() {
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".parse().unwrap(),
            service: Some("registry.example".into()),
        };
        let text = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="x""#;
        assert_eq!(asked(&[text]), Some(expected));
        assert_eq!(asked(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert!(matches!(
            asked(&["Basic realm=\"x\"", text]),
            Some(Challenge::Bearer { .. })
        ));
        assert_eq!(asked(&["Bearer realm=\"not a url\""]), None);
        assert_eq!(asked(&["Negotiate"]), None);
    }

    #[test]
    fn token_urls_keep_the_query_of_the_realm() {
        let url = token_url("https://a.example/t?x=1".parse().unwrap(), Some("s t"), "lib/app");
        assert_eq!(
            url.as_str(),
            "https://a.example/t?x=1&service=s+t&scope=repository%3Alib%2Fapp%3Apull"
        );
    }

    #[test]
    fn tokens_are_taken_from_either_field_and_never_split_a_header() {
        assert_eq!(
            bearer(br#"{"token":"abc"}"#).unwrap().to_str().unwrap(),
            "Bearer abc"
        );
        assert_eq!(
            bearer(br#"{"access_token":"abc"}"#).unwrap().to_str().unwrap(),
            "Bearer abc"
        );
        assert_eq!(bearer(br#"{"token":"a\r\nX: y"}"#), None);
        assert_eq!(bearer(br#"{}"#), None);
    }
}
