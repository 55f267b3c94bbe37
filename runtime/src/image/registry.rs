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
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::Credentials;
use super::auth::{self, Challenge};
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{
    self, DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST, shown,
};
use super::reference::RegistryReference;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a manifest, a configuration or a token as a whole.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
const MAX_ERROR_BYTES: u64 = 64 * 1024;
/// Docker Hub's name, and the host that serves it.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// One client for all registries.
pub(super) fn client() -> Result<Client, ImageError> {
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
    client: Client,
    reference: RegistryReference,
    credentials: Option<Credentials>,
    insecure: bool,
    /// The `Authorization` header that the registry has accepted or is about to.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Repository {
    pub(super) fn new(
        client: Client,
        reference: RegistryReference,
        credentials: Option<Credentials>,
        insecure_registries: &BTreeSet<String>,
    ) -> Self {
        let insecure = insecure_registries.contains(&reference.registry);
        Self {
            client,
            reference,
            credentials,
            insecure,
            authorization: Mutex::new(None),
        }
    }

    /// A manifest or index by tag or digest, with its media type.
    pub(super) async fn manifest(&self, selector: &str) -> Result<(Vec<u8>, Option<String>), ImageError> {
        let timely = async {
            let response = self.get(&format!("manifests/{selector}")).await?;
            let header = |name: &str| {
                response
                    .headers()
                    .get(name)
                    .and_then(|it| it.to_str().ok())
                    .map(str::to_owned)
            };
            let media_type = header(CONTENT_TYPE.as_str());
            let promised = header("docker-content-digest").and_then(|it| it.parse::<Digest>().ok());
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

    /// The content of a blob, as the registry sends it.
    pub(super) async fn blob(
        &self,
        digest: Digest,
    ) -> Result<BoxStream<'_, Result<Bytes, ImageError>>, ImageError> {
        let response = self.get(&format!("blobs/{digest}")).await?;
        Ok(Box::pin(
            response.bytes_stream().map_err(|error| self.unreachable(error)),
        ))
    }

    /// One answer with status 200. A 401 is answered once.
    async fn get(&self, path: &str) -> Result<Response, ImageError> {
        let registry = &self.reference.registry;
        let host = if registry == DOCKER_HUB.0 {
            DOCKER_HUB.1
        } else {
            registry
        };
        let scheme = if self.insecure { "http" } else { "https" };
        let url = format!("{scheme}://{host}/v2/{}/{path}", self.reference.name);
        let url = Url::parse(&url).map_err(|error| self.failed(format!("{url}: {error}")))?;
        let mut response = self.send(&url).await?;
        // Only the registry itself may ask for credentials, not a place it redirects to.
        if response.status() == StatusCode::UNAUTHORIZED && response.url().host_str() == url.host_str() {
            let Some(challenge) = auth::challenge(response.headers()) else {
                return Err(self.denied(response).await);
            };
            let authorization = match challenge {
                Challenge::Basic => match &self.credentials {
                    Some(credentials) => auth::basic(credentials),
                    None => return Err(self.denied(response).await),
                },
                Challenge::Bearer { realm, service } => Some(self.token(realm, service).await?),
            };
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = authorization;
            response = self.send(&url).await?;
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied(response).await),
            StatusCode::NOT_FOUND if path.starts_with("manifests/") => {
                Err(ImageError::NotFound { image: self.image() })
            }
            status => {
                let said = self.said(response).await;
                Err(self.failed(format!("{path}: it answered {status}{said}")))
            }
        }
    }

    async fn send(&self, url: &Url) -> Result<Response, ImageError> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let mut request = self.client.get(url.clone()).header(ACCEPT, accept);
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
        let url = auth::token_url(realm, service.as_deref(), &self.reference.name);
        let mut request = self.client.get(url);
        if let Some(authorization) = self.credentials.as_ref().and_then(auth::basic) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let timely = async {
            let response = request.send().await.map_err(|error| self.unreachable(error))?;
            if response.status() != StatusCode::OK {
                return Err(self.denied(response).await);
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
            source: Box::new(error),
        }
    }
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
