//! The daemon as its clients see it: signed requests over HTTP, and what went wrong in words. Says nothing about what
//! any operation means.

use std::path::PathBuf;
use std::time::Duration;

use berth_runtime::clock::{Clock, SystemClock};
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::http::HeaderValue;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::auth::sign::{Scope, Unsigned, sign};
use crate::credentials::Credentials;

/// Where the daemon keeps its data unless told otherwise.
pub(super) const DEFAULT_DATA_DIR: &str = "/var/lib/berth";
/// Where the daemon listens unless told otherwise.
pub(super) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7070";
/// The region of requests unless told otherwise.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// Longest time for one answer; above the longest wait that an operation offers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a command that follows a task waits for a daemon that went away to come back.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
const RECONNECT_EVERY: Duration = Duration::from_millis(500);

/// How to reach the daemon.
#[derive(Args, Clone, Debug)]
pub(super) struct Connection {
    /// Where the daemon listens
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL", default_value = DEFAULT_ENDPOINT, hide_env_values = true)]
    endpoint_url: String,
    /// The daemon's data directory, for its keys; used when `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` are not set
    #[arg(long, env = "BERTH_DATA_DIR", value_name = "DIR", default_value = DEFAULT_DATA_DIR, hide_env_values = true)]
    data_dir: PathBuf,
}

/// The services of the daemon that the command line uses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Service {
    Ecs,
    Ssm,
    SecretsManager,
    Berth,
}

impl Service {
    fn target_prefix(self) -> &'static str {
        match self {
            Service::Ecs => "AmazonEC2ContainerServiceV20141113",
            Service::Ssm => "AmazonSSM",
            Service::SecretsManager => "secretsmanager",
            Service::Berth => "Berth_20261101",
        }
    }

    /// As it appears in the credential scope.
    fn signing_name(self) -> &'static str {
        match self {
            Service::Ecs => "ecs",
            Service::Ssm => "ssm",
            Service::SecretsManager => "secretsmanager",
            Service::Berth => "berth",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "the endpoint {0:?} is not of the form http://HOST:PORT; correct --endpoint-url or AWS_ENDPOINT_URL"
    )]
    Endpoint(String),
    #[error(
        "no keys: {0}; paste the exports that `berth serve` printed, or name its data directory with --data-dir"
    )]
    NoKeys(String),
    #[error(
        "cannot reach the daemon at {endpoint}: {cause}; start `berth serve`, or say where it listens with --endpoint-url"
    )]
    Unreachable { endpoint: String, cause: String },
    #[error("the daemon at {endpoint} did not answer {operation} within {} s; see its log", ANSWER_TIMEOUT.as_secs())]
    Timeout { endpoint: String, operation: String },
    #[error("{operation} failed: {code}: {message}{}", advice(.code))]
    Refused {
        operation: String,
        code: String,
        message: String,
    },
    #[error("what answered {operation} at {endpoint} is no Berth daemon ({cause}); check --endpoint-url")]
    Malformed {
        endpoint: String,
        operation: String,
        cause: String,
    },
    /// A key or a region with characters that no header can carry.
    #[error("cannot make a request of {operation}: {cause}; check the keys and the region")]
    Request { operation: String, cause: String },
}

impl ClientError {
    /// The daemon is not there just now; it may be restarting.
    fn is_absence(&self) -> bool {
        matches!(
            self,
            ClientError::Unreachable { .. } | ClientError::Timeout { .. }
        )
    }
}

/// What to do about an error of authentication.
fn advice(code: &str) -> &'static str {
    match code {
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "MissingAuthenticationTokenException" => {
            "; the keys are not this daemon's, or the clock is off: paste the exports that `berth serve` printed"
        }
        _ => "",
    }
}

/// Sends operations to one daemon.
pub(super) struct Client {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    endpoint: String,
    credentials: Credentials,
    region: String,
}

impl Client {
    pub(super) fn new(connection: &Connection) -> Result<Client, ClientError> {
        let endpoint = connection.endpoint_url.trim_end_matches('/').to_owned();
        let well_formed = endpoint
            .parse::<Uri>()
            .is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some() && uri.path() == "/");
        if !well_formed {
            return Err(ClientError::Endpoint(endpoint));
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let credentials = match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => Credentials::new(id, secret),
            _ => {
                Credentials::load(&connection.data_dir).map_err(|error| ClientError::NoKeys(chain(&error)))?
            }
        };
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        Ok(Client {
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http(),
            endpoint,
            credentials,
            region: region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        })
    }

    /// One operation: its input in, its output back.
    pub(super) async fn call(
        &self,
        service: Service,
        operation: &str,
        input: &Value,
    ) -> Result<Value, ClientError> {
        let request = self.request(service, operation, input.to_string().into_bytes())?;
        let exchange = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| ClientError::Unreachable {
                    endpoint: self.endpoint.clone(),
                    cause: innermost(&error),
                })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| ClientError::Unreachable {
                endpoint: self.endpoint.clone(),
                cause: innermost(error.as_ref()),
            })?;
            let answer: Value = serde_json::from_slice(&body.to_bytes())
                .map_err(|error| self.malformed(operation, &format!("status {status}, {error}")))?;
            if status.is_success() {
                Ok(answer)
            } else {
                Err(self.refusal(operation, &answer))
            }
        };
        self.in_time(operation, exchange).await
    }

    async fn in_time<T>(
        &self,
        operation: &str,
        exchange: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let timeout = || ClientError::Timeout {
            endpoint: self.endpoint.clone(),
            operation: operation.to_owned(),
        };
        tokio::time::timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| timeout())?
    }

    /// As [`Client::call`], but a daemon that is away is given time to come back. Only for operations that change
    /// nothing.
    pub(super) async fn call_patiently(
        &self,
        service: Service,
        operation: &str,
        input: &Value,
    ) -> Result<Value, ClientError> {
        let give_up = tokio::time::Instant::now() + RECONNECT_FOR;
        loop {
            match self.call(service, operation, input).await {
                Err(error) if error.is_absence() && tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(RECONNECT_EVERY).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// One operation after which the connection speaks another protocol: its input in, the connection back.
    pub(super) async fn switch(
        &self,
        service: Service,
        operation: &str,
        input: &Value,
        protocol: &'static str,
    ) -> Result<Upgraded, ClientError> {
        let mut request = self.request(service, operation, input.to_string().into_bytes())?;
        let headers = request.headers_mut();
        headers.insert("connection", HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", HeaderValue::from_static(protocol));
        // An origin server is asked for a path, not for a whole URI.
        *request.uri_mut() = Uri::from_static("/");
        let unreachable = |error: &(dyn std::error::Error + 'static)| ClientError::Unreachable {
            endpoint: self.endpoint.clone(),
            cause: innermost(error),
        };
        let uri: Uri = self
            .endpoint
            .parse()
            .map_err(|_| ClientError::Endpoint(self.endpoint.clone()))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let exchange = async {
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80)))
                .await
                .map_err(|error| unreachable(&error))?;
            let _ = stream.set_nodelay(true);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| unreachable(&error))?;
            tokio::spawn(connection.with_upgrades());
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| unreachable(&error))?;
            let status = response.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return hyper::upgrade::on(response)
                    .await
                    .map_err(|error| unreachable(&error));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| unreachable(error.as_ref()))?;
            let answer = serde_json::from_slice(&body.to_bytes())
                .map_err(|error| self.malformed(operation, &format!("status {status}, {error}")))?;
            Err(self.refusal(operation, &answer))
        };
        self.in_time(operation, exchange).await
    }

    fn request(
        &self,
        service: Service,
        operation: &str,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let endpoint = || ClientError::Endpoint(self.endpoint.clone());
        let uri: Uri = format!("{}/", self.endpoint).parse().map_err(|_| endpoint())?;
        let host = uri
            .authority()
            .map(|authority| authority.as_str().to_owned())
            .ok_or_else(endpoint)?;
        let target = format!("{}.{operation}", service.target_prefix());
        let headers = [
            ("host", host.as_str()),
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", &target),
        ];
        let unsigned = Unsigned {
            method: "POST",
            path: "/",
            query: "",
            headers: &headers,
            body: &body,
        };
        let scope = Scope {
            region: &self.region,
            service: service.signing_name(),
        };
        let signature = sign(&unsigned, &self.credentials, scope, SystemClock.now());
        let mut request = Request::builder().method(Method::POST).uri(uri);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        for (name, value) in signature {
            request = request.header(name, value);
        }
        request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Request {
                operation: operation.to_owned(),
                cause: error.to_string(),
            })
    }

    fn malformed(&self, operation: &str, cause: &str) -> ClientError {
        ClientError::Malformed {
            endpoint: self.endpoint.clone(),
            operation: operation.to_owned(),
            cause: cause.to_owned(),
        }
    }

    fn refusal(&self, operation: &str, answer: &Value) -> ClientError {
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        match text("__type") {
            // The name may be qualified: `com.example#Name`.
            Some(code) => ClientError::Refused {
                operation: operation.to_owned(),
                code: code.rsplit('#').next().unwrap_or(code).to_owned(),
                message: text("message")
                    .or_else(|| text("Message"))
                    .unwrap_or("no reason given")
                    .to_owned(),
            },
            None => self.malformed(operation, "an error without a type"),
        }
    }
}

/// An error and all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}

/// The first cause of an error: "Connection refused (os error 111)" rather than "client error (Connect)".
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Result<Client, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        Credentials::load_or_create(dir.path()).unwrap();
        Client::new(&Connection {
            endpoint_url: endpoint.to_owned(),
            data_dir: dir.path().to_owned(),
        })
    }

    #[test]
    fn endpoints_that_cannot_be_spoken_to_are_refused() {
        for endpoint in [
            "",
            "127.0.0.1:7070",
            "https://127.0.0.1",
            "http://127.0.0.1:7070/x",
            "file:///x",
        ] {
            assert!(
                matches!(client(endpoint), Err(ClientError::Endpoint(_))),
                "{endpoint}"
            );
        }
        assert!(client("http://127.0.0.1:7070/").is_ok());
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_named_with_the_next_step() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let client = client(&format!("http://{free}")).unwrap();
        let error = client
            .call(Service::Ecs, "ListTasks", &serde_json::json!({}))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&free.to_string()) && error.contains("Connection refused"),
            "{error}"
        );
        assert!(error.contains("berth serve"), "{error}");
    }

    #[tokio::test]
    async fn refusals_carry_the_name_and_the_message() {
        let client = client("http://127.0.0.1:1").unwrap();
        let answer = serde_json::json!({"__type": "x.y#ClientException", "message": "no"});
        assert_eq!(
            client.refusal("RunTask", &answer).to_string(),
            "RunTask failed: ClientException: no"
        );
    }
}
