//! The API as a whole: who may come in, which service a request is for, and what that answers.

use std::sync::Arc;
use std::time::Instant;

use berth_runtime::Runtime;
use berth_runtime::clock::SystemClock;
use berth_runtime::model::task::TaskId;
use bytes::Bytes;
use hyper::Method;
use hyper::http::HeaderValue;
use hyper::http::request::Parts;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::arn::Owner;
use crate::auth::temporary::{self, Temporary};
use crate::auth::{Claim, Gate, Principal};
use crate::credentials::Credentials;
use crate::error::ApiError;
use crate::reply::Reply;
use crate::server::{Answer, Handler, Limits};
use crate::session::{Offers, websocket};
use crate::{berth, ecs, eventstream, logs, other, role, s3, secretsmanager, session, ssm};

/// What every operation has at hand.
pub struct App {
    pub(crate) runtime: Runtime,
    pub(crate) owner: Owner,
    /// Places for live tails.
    pub(crate) live_tails: Arc<Semaphore>,
    /// Sessions of ExecuteCommand.
    pub(crate) sessions: Offers,
    gate: Gate,
}

impl App {
    pub fn new(runtime: Runtime, account_id: String, region: String, credentials: Credentials) -> App {
        let gate = Gate {
            credentials,
            region: region.clone(),
            clock: Arc::new(SystemClock),
        };
        App {
            runtime,
            owner: Owner { region, account_id },
            live_tails: Arc::new(Semaphore::new(logs::MAX_LIVE_TAILS)),
            sessions: Offers::default(),
            gate,
        }
    }

    /// What a container of this task is given to sign with.
    pub(crate) fn temporary_credentials(&self, task: &TaskId) -> Temporary {
        temporary::issue(&self.gate.credentials, task, self.gate.clock.now())
    }

    fn admit_data_channel(&self, session: &str, head: &Parts) -> Result<Admission, ApiError> {
        let accept = websocket::accept(head)?;
        let waiting = self.sessions.wait(session, Instant::now());
        let waiting = waiting
            .ok_or_else(|| ApiError::ResourceNotFound("No such session waits for its client.".to_owned()))?;
        Ok(Admission::DataChannel {
            session: session.to_owned(),
            accept,
            waiting,
        })
    }

    async fn answer(&self, operation: &Operation, body: &[u8]) -> Reply {
        let answer = self.call(operation, body).await;
        tracing::debug!(
            service = operation.service.signing_name(),
            operation = operation.name,
            error = answer.as_ref().err().map(ApiError::code),
            "answered"
        );
        match answer {
            Ok(value) => Reply::json(200, &value),
            Err(error) => error.to_reply(),
        }
    }

    async fn call(&self, operation: &Operation, body: &[u8]) -> Result<Value, ApiError> {
        match operation.service {
            Service::Ecs => ecs::call(self, &operation.name, body).await,
            Service::Logs => logs::call(self, &operation.name, body).await,
            Service::Ssm => ssm::call(self.runtime.secrets(), &self.owner, &operation.name, body).await,
            Service::SecretsManager => {
                secretsmanager::call(self.runtime.secrets(), &self.owner, &operation.name, body).await
            }
            Service::Berth => berth::call(self, &operation.name, body).await,
        }
    }
}

/// The services that `X-Amz-Target` can name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Ecs,
    Logs,
    Ssm,
    SecretsManager,
    Berth,
}

impl Service {
    /// By the target's prefix.
    fn of_target(prefix: &str) -> Option<Service> {
        match prefix {
            "AmazonEC2ContainerServiceV20141113" => Some(Service::Ecs),
            "Logs_20140328" => Some(Service::Logs),
            "AmazonSSM" => Some(Service::Ssm),
            "secretsmanager" => Some(Service::SecretsManager),
            "Berth_20261101" => Some(Service::Berth),
            _ => None,
        }
    }

    pub(crate) fn signing_name(self) -> &'static str {
        match self {
            Service::Ecs => "ecs",
            Service::Logs => "logs",
            Service::Ssm => "ssm",
            Service::SecretsManager => "secretsmanager",
            Service::Berth => "berth",
        }
    }
}

/// `X-Amz-Target`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) service: Service,
    pub(crate) name: String,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Operation(Operation),
    /// Of S3, by method and path.
    S3,
    /// It has a target, but not of a service that is here.
    UnknownTarget(String),
    /// It has no target: another protocol, told by the credential scope.
    NoTarget,
}

impl Operation {
    #[cfg(test)]
    pub(crate) fn new(service: Service, name: &str) -> Operation {
        let name = name.to_owned();
        Operation { service, name }
    }
}

impl Route {
    pub(crate) fn of(head: &Parts) -> Route {
        let Some(target) = head.headers.get("x-amz-target") else {
            return match other::unverified_service(&head.headers) {
                s3::SIGNING_NAME => Route::S3,
                _ => Route::NoTarget,
            };
        };
        let target = target.to_str().unwrap_or_default();
        let operation = target.split_once('.').and_then(|(prefix, name)| {
            Some(Operation {
                service: Service::of_target(prefix)?,
                name: name.to_owned(),
            })
        });
        let at_the_root = head.method == Method::POST && head.uri.path() == "/";
        match operation {
            Some(operation) if at_the_root => Route::Operation(operation),
            _ => Route::UnknownTarget(target.chars().take(200).collect()),
        }
    }

    fn is(&self, service: Service, name: &str) -> bool {
        matches!(self, Route::Operation(operation) if operation.service == service && operation.name == name)
    }

    /// Whether errors are told in another form than AWS's JSON.
    fn is_of_another_protocol(&self) -> bool {
        matches!(self, Route::S3 | Route::NoTarget)
    }

    fn signing_name(&self) -> Option<&'static str> {
        match self {
            Route::Operation(operation) => Some(operation.service.signing_name()),
            Route::S3 => Some(s3::SIGNING_NAME),
            _ => None,
        }
    }
}

/// What was found out before the body came.
pub enum Admission {
    Signed(Signed),
    /// A websocket for a session that waits for it. Its first message says whether it may.
    DataChannel {
        session: String,
        accept: HeaderValue,
        waiting: OwnedSemaphorePermit,
    },
}

/// A request for an operation.
pub struct Signed {
    route: Route,
    claim: Claim,
}

impl Handler for App {
    type Admission = Admission;

    fn admit(&self, head: &Parts) -> Result<Admission, Reply> {
        if let Some(session) = websocket::session(head) {
            return self
                .admit_data_channel(session, head)
                .map_err(|error| error.to_reply());
        }
        let route = Route::of(head);
        match self.gate.admit(head, route.signing_name()) {
            Ok(claim) => Ok(Admission::Signed(Signed { route, claim })),
            Err(error) if route.is_of_another_protocol() => {
                Err(other::refusal(other::unverified_service(&head.headers), &error))
            }
            Err(error) => Err(error.to_reply()),
        }
    }

    fn body_bytes(&self, admission: &Admission, limits: &Limits) -> usize {
        let Admission::Signed(admission) = admission else {
            return 0;
        };
        // No task may put events with the credentials of its role.
        let of_task = matches!(admission.claim.principal, Principal::Task(_));
        if admission.route.is(Service::Logs, logs::PUT_LOG_EVENTS) && !of_task {
            logs::MAX_PUT_BODY_BYTES.max(limits.body_bytes)
        } else {
            limits.body_bytes
        }
    }

    async fn handle(self: Arc<Self>, admission: Admission, head: Parts, body: Bytes) -> Answer {
        let Signed { route, claim } = match admission {
            Admission::Signed(signed) => signed,
            Admission::DataChannel {
                session,
                accept,
                waiting,
            } => {
                return Answer::WebSocket {
                    accept,
                    serve: Box::new(|connection| {
                        Box::pin(session::serve(self, session, waiting, connection))
                    }),
                };
            }
        };
        if let Err(error) = self.gate.verify(&claim, &head, &body) {
            return Answer::Reply(match route {
                route if route.is_of_another_protocol() => other::refusal(&claim.service, &error),
                _ => error.to_reply(),
            });
        }
        if let Principal::Task(task) = &claim.principal {
            return Answer::Reply(
                match (
                    role::admit(&self, task, &route, &claim.service, &body).await,
                    &route,
                ) {
                    (Ok(()), Route::Operation(operation)) => self.answer(operation, &body).await,
                    (Ok(()), _) => role::identity(&self, task).await,
                    (Err(error), route) if route.is_of_another_protocol() => {
                        other::refusal(&claim.service, &error)
                    }
                    (Err(error), _) => error.to_reply(),
                },
            );
        }
        if route.is(Service::Berth, berth::EXECUTE_COMMAND) {
            return match berth::execute(&self, &head.headers, &body).await {
                Ok(stream) => Answer::Switch {
                    protocol: berth::PROTOCOL,
                    stream,
                },
                Err(error) => Answer::Reply(error.to_reply()),
            };
        }
        if route.is(Service::Ecs, ecs::EXECUTE_COMMAND) {
            return Answer::Reply(match ecs::execute(&self, &head.headers, &body).await {
                Ok(value) => Reply::json(200, &value),
                Err(error) => error.to_reply(),
            });
        }
        if route.is(Service::Logs, logs::START_LIVE_TAIL) {
            return match logs::start_live_tail(&self, &body).await {
                Ok(pieces) => Answer::Stream {
                    content_type: eventstream::CONTENT_TYPE,
                    pieces,
                },
                Err(error) => Answer::Reply(error.to_reply()),
            };
        }
        Answer::Reply(match route {
            Route::Operation(operation) => self.answer(&operation, &body).await,
            Route::UnknownTarget(target) => {
                ApiError::UnknownOperation(format!("There is no operation '{target}' here.")).to_reply()
            }
            Route::S3 => s3::answer(&self, &head, &body).await,
            Route::NoTarget => other::call(&self.owner, &claim.service, &body),
        })
    }
}
