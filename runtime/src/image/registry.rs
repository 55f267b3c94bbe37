//! Reads manifests and blobs from a registry (the pull half of the OCI distribution specification). Bodies are bounded
//! here; digests of blobs are verified by whoever stores them.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::io;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::auth::{self, Challenge, Login};
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{
    self, DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST, shown,
};
use super::reference::RegistryReference;
use super::retry::Backoff;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a manifest, a configuration or a token as a whole.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
const MAX_ERROR_BYTES: u64 = 64 * 1024;
const FORM: &str = "application/x-www-form-urlencoded";
/// In which a registry says what a tag stands for.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// Docker Hub's name, and the host that serves it.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// The clients for all registries.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    content: Client,
    /// Follows no redirect: what is sent to a token server is for nobody else.
    token: Client,
}

pub(super) fn clients() -> Result<Clients, ImageError> {
    static PROVIDER: Once = Once::new();
    // An error means that the process has chosen a provider already, which is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let redirects = redirect::Policy::custom(|attempt| {
        let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if was_secure && attempt.url().scheme() != "https" {
            attempt.error("redirected from https to plain http")
        } else {
            attempt.follow()
        }
    });
    Ok(Clients {
        content: client(redirects)?,
        token: client(redirect::Policy::none())?,
    })
}

fn client(redirects: redirect::Policy) -> Result<Client, ImageError> {
    Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(redirects)
        .referer(false)
        .build()
        .map_err(|source| ImageError::HttpClient {
            cause: innermost(&source),
            source: Box::new(source),
        })
}

/// One image's repository in a registry.
pub(super) struct Repository {
    clients: Clients,
    reference: RegistryReference,
    login: Option<Login>,
    insecure: bool,
    /// The `Authorization` header that the registry has accepted or is about to.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Repository {
    pub(super) fn new(
        clients: Clients,
        reference: RegistryReference,
        login: Option<Login>,
        insecure_registries: &BTreeSet<String>,
    ) -> Self {
        let insecure = insecure_registries.contains(&reference.registry);
        Self {
            clients,
            reference,
            login,
            insecure,
            authorization: Mutex::new(None),
        }
    }

    /// What a tag stands for now. None if the registry does not say it in short: [`Self::manifest`] then gives it, or
    /// the reason why not.
    pub(super) async fn look_up(&self, selector: &str) -> Result<Option<Digest>, ImageError> {
        let path = format!("manifests/{selector}");
        let answered = self.answer(Method::HEAD, &path, None).await?;
        if is_passing(answered.status()) {
            return Err(self.refused(&path, answered).await);
        }
        let header = answered.headers().get(CONTENT_DIGEST);
        let digest = header.and_then(|digest| digest.to_str().ok()?.parse().ok());
        Ok(digest.filter(|_| answered.status() == StatusCode::OK))
    }

    /// A manifest or index by tag or digest, with its media type.
    pub(super) async fn manifest(&self, selector: &str) -> Result<(Vec<u8>, Option<String>), ImageError> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.manifest_once(selector).await {
                Err(error) => error,
                manifest => return manifest,
            };
            let Some(pause) = backoff.after(&error) else {
                return Err(error);
            };
            tracing::debug!(image = self.image(), %error, ?pause, "a registry is asked again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn manifest_once(&self, selector: &str) -> Result<(Vec<u8>, Option<String>), ImageError> {
        let timely = async {
            let response = self.get(&format!("manifests/{selector}"), None).await?;
            let header = |name: &str| {
                response
                    .headers()
                    .get(name)
                    .and_then(|it| it.to_str().ok())
                    .map(str::to_owned)
            };
            let media_type = header(CONTENT_TYPE.as_str());
            let promised = header(CONTENT_DIGEST).and_then(|it| it.parse::<Digest>().ok());
            let bytes = self.bounded(response, MAX_MANIFEST_BYTES).await?.ok_or_else(|| {
                let reason = format!("manifest of more than {MAX_MANIFEST_BYTES} bytes");
                ImageError::manifest(&self.image(), reason)
            })?;
            let expected = selector.parse::<Digest>().ok().or(promised);
            let actual = Digest::of(&bytes);
            match expected {
                Some(expected) if expected != actual => Err(ImageError::Digest {
                    what: format!("manifest of {}", self.image()),
                    expected,
                    actual,
                }),
                _ => Ok((bytes, media_type)),
            }
        };
        self.within(DOCUMENT_TIMEOUT, timely).await
    }

    /// The content of a blob, as the registry sends it: from this byte on if it can, else from the first. Also says
    /// which of the two.
    pub(super) async fn blob(
        &self,
        digest: Digest,
        from: u64,
        size: u64,
    ) -> Result<(u64, BoxStream<'_, Result<Bytes, ImageError>>), ImageError> {
        let path = format!("blobs/{digest}");
        let mut response = self.get(&path, Some(from).filter(|&from| from > 0)).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            response = self.get(&path, None).await?;
        }
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let range = range.and_then(|range| range.to_str().ok()).unwrap_or_default();
                if !is_rest(range, from, size) {
                    let range = shown(range);
                    return Err(self.failed(format!(
                        "{path}: it was asked for bytes {from} to {size}, and answered with {range:?}"
                    )));
                }
                from
            }
            _ => 0,
        };
        let stream = response.bytes_stream().map_err(|error| self.unreachable(error));
        Ok((begins, Box::pin(stream)))
    }

    /// One answer that has what was asked for: status 200, or for a part of it 206, or 416 if there is no such part.
    async fn get(&self, path: &str, from: Option<u64>) -> Result<Response, ImageError> {
        let response = self.answer(Method::GET, path, from).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from.is_some() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied(response).await),
            StatusCode::NOT_FOUND if path.starts_with("manifests/") => {
                Err(ImageError::NotFound { image: self.image() })
            }
            _ => Err(self.refused(path, response).await),
        }
    }

    /// One answer, whatever it is. A 401 is answered once.
    async fn answer(&self, method: Method, path: &str, from: Option<u64>) -> Result<Response, ImageError> {
        let registry = &self.reference.registry;
        let host = if registry == DOCKER_HUB.0 {
            DOCKER_HUB.1
        } else {
            registry
        };
        let scheme = if self.insecure { "http" } else { "https" };
        let url = format!("{scheme}://{host}/v2/{}/{path}", self.reference.name);
        let url = Url::parse(&url).map_err(|error| self.failed(format!("{url}: {error}")))?;
        let response = self.send(&method, &url, from).await?;
        // Only the registry itself may ask for credentials, not a place it redirects to.
        if response.status() != StatusCode::UNAUTHORIZED || response.url().host_str() != url.host_str() {
            return Ok(response);
        }
        let authorization = match (auth::challenge(response.headers()), &self.login) {
            (Some(Challenge::Basic), Some(Login::Password(credentials))) => auth::basic(credentials),
            (Some(Challenge::Bearer { realm, service }), _) => Some(self.token(realm, service).await?),
            (Some(Challenge::Basic), _) | (None, _) => return Ok(response),
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = authorization;
        self.send(&method, &url, from).await
    }

    async fn send(&self, method: &Method, url: &Url, from: Option<u64>) -> Result<Response, ImageError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let mut request = self
            .clients
            .content
            .request(method.clone(), url.clone())
            .header(ACCEPT, accept);
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let authorization = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let sent = async { request.send().await.map_err(|error| self.unreachable(error)) };
        self.within(DOCUMENT_TIMEOUT, sent).await
    }

    async fn token(&self, realm: Url, service: Option<String>) -> Result<HeaderValue, ImageError> {
        if realm.scheme() != "https" && !(self.insecure && realm.scheme() == "http") {
            return Err(self.failed(format!("its token server {} is not https", shown(realm.as_str()))));
        }
        let (service, name) = (service.as_deref(), &self.reference.name);
        let request = match &self.login {
            Some(Login::IdentityToken(token)) => {
                let form = auth::token_form(&realm, token, service, name);
                let request = self.clients.token.post(realm).header(CONTENT_TYPE, FORM);
                request.body(form.as_bytes().to_vec())
            }
            Some(Login::Password(credentials)) => {
                let request = self.clients.token.get(auth::token_url(realm, service, name));
                match auth::basic(credentials) {
                    Some(authorization) => request.header(AUTHORIZATION, authorization),
                    None => request,
                }
            }
            None => self.clients.token.get(auth::token_url(realm, service, name)),
        };
        let timely = async {
            let response = request.send().await.map_err(|error| self.unreachable(error))?;
            match response.status() {
                StatusCode::OK => {}
                status if is_passing(status) => return Err(self.refused("its token server", response).await),
                _ => return Err(self.denied(response).await),
            }
            let answer = self.bounded(response, auth::MAX_TOKEN_BYTES).await?;
            let token = answer.as_deref().and_then(auth::bearer);
            token.ok_or_else(|| self.failed("its token server gave no usable token".to_owned()))
        };
        self.within(DOCUMENT_TIMEOUT, timely).await
    }

    /// A whole body; none if it is longer than the limit.
    async fn bounded(&self, mut response: Response, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, ImageError>>,
    ) -> Result<T, ImageError> {
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(self.failed(format!("no whole answer within {} s", limit.as_secs()))))
    }

    /// An answer that is no success, and is not about who asks.
    async fn refused(&self, what: &str, response: Response) -> ImageError {
        let status = response.status();
        let header = response.headers().get(RETRY_AFTER);
        let seconds = header.and_then(|it| it.to_str().ok()?.trim().parse().ok());
        let detail = format!("{what}: it answered {status}{}", self.said(response).await);
        match is_passing(status) {
            true => ImageError::Busy {
                registry: self.reference.registry.clone(),
                detail,
                retry_after: seconds.map(Duration::from_secs),
            },
            false => self.failed(detail),
        }
    }

    async fn denied(&self, response: Response) -> ImageError {
        let status = response.status();
        let said = self.said(response).await;
        ImageError::Denied {
            image: self.image(),
            detail: format!("it answered {status}{said}"),
        }
    }

    /// The message in the body of a failed answer, if there is one.
    async fn said(&self, response: Response) -> String {
        #[derive(Deserialize)]
        struct Envelope {
            errors: Vec<Fault>,
        }
        #[derive(Deserialize)]
        struct Fault {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let read = self
            .within(CONNECT_TIMEOUT, self.bounded(response, MAX_ERROR_BYTES))
            .await;
        let body = read.ok().flatten().unwrap_or_default();
        let envelope = serde_json::from_slice::<Envelope>(&body).ok();
        match envelope.and_then(|envelope| envelope.errors.into_iter().next()) {
            Some(Fault { code, message }) => format!(" ({}: {})", shown(&code), shown(&message)),
            None => String::new(),
        }
    }

    fn image(&self) -> String {
        self.reference.to_string()
    }

    fn failed(&self, detail: String) -> ImageError {
        ImageError::Registry {
            registry: self.reference.registry.clone(),
            detail,
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> ImageError {
        let registry = self.reference.registry.clone();
        if !self.insecure && answered_in_plain(&error) {
            return ImageError::PlainHttp { registry };
        }
        let cause = if error.is_timeout() {
            "timed out".to_owned()
        } else {
            innermost(&error)
        };
        ImageError::Unreachable {
            registry,
            cause,
            transient: !causes(&error).any(|cause| cause.is::<rustls::Error>()) && !error.is_redirect(),
            source: Box::new(error),
        }
    }
}

/// Whether an answer says that the next one may be another.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether a `Content-Range` is that of a blob of this size from this byte on, to its end.
fn is_rest(range: &str, from: u64, size: u64) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let read = || {
        let (bytes, whole) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = bytes.split_once('-')?;
        let whole = if whole == "*" { size } else { number(whole)? };
        Some((number(first)?, number(last)?.checked_add(1)?, whole))
    };
    read() == Some((from, size, size))
}

/// The causes of an error, outermost first. An I/O error hides the one it wraps from `source`.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped
            .map(|inner| inner as &(dyn StdError + 'static))
            .or_else(|| error.source())
    })
}

/// Whether the other side of a TLS handshake did not speak TLS.
fn answered_in_plain(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(rustls::Error::InvalidMessage(
                rustls::InvalidMessage::InvalidContentType
            ))
        )
    })
}

/// The first cause, in short: "connection refused" rather than the tower of errors over it.
fn innermost(error: &reqwest::Error) -> String {
    let system = causes(error).find_map(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .filter(|error| error.raw_os_error().is_some())
            .map(|error| error.kind())
    });
    match system {
        Some(kind) => kind.to_string(),
        None => causes(error)
            .last()
            .map(|cause| manifest::shown(&cause.to_string()))
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_that_was_asked_for_is_taken() {
        assert!(is_rest("bytes 10-99/100", 10, 100) && is_rest("bytes 10-99/*", 10, 100));
        for other in [
            "",
            "bytes 0-99/100",
            "bytes 10-98/100",
            "bytes 10-99/101",
            "bytes 10-18446744073709551615/*",
            "10-99/100",
        ] {
            assert!(!is_rest(other, 10, 100), "{other}");
        }
    }
}
