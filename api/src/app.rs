//! The API as a whole: who may come in, which service a request is for, and what that answers.

use std::sync::Arc;

use berth_runtime::Runtime;
use berth_runtime::clock::SystemClock;
use bytes::Bytes;
use hyper::Method;
use hyper::http::request::Parts;
use serde_json::Value;

use crate::arn::Owner;
use crate::auth::{Claim, Gate};
use crate::credentials::Credentials;
use crate::error::ApiError;
use crate::reply::Reply;
use crate::server::{Answer, Handler};
use crate::{berth, ecs, logs, other, secretsmanager, ssm};

/// What every operation has at hand.
pub struct App {
    pub(crate) runtime: Runtime,
    pub(crate) owner: Owner,
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
            gate,
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

    fn signing_name(self) -> &'static str {
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
    service: Service,
    name: String,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Operation(Operation),
    /// It has a target, but not of a service that is here.
    UnknownTarget(String),
    /// It has no target: another protocol, told by the credential scope.
    NoTarget,
}

impl Route {
    pub(crate) fn of(head: &Parts) -> Route {
        let Some(target) = head.headers.get("x-amz-target") else {
            return Route::NoTarget;
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

    fn signing_name(&self) -> Option<&'static str> {
        match self {
            Route::Operation(operation) => Some(operation.service.signing_name()),
            _ => None,
        }
    }
}

/// What was found out before the body came.
pub struct Admission {
    route: Route,
    claim: Claim,
}

impl Handler for App {
    type Admission = Admission;

    fn admit(&self, head: &Parts) -> Result<Admission, Reply> {
        let route = Route::of(head);
        match self.gate.admit(head, route.signing_name()) {
            Ok(claim) => Ok(Admission { route, claim }),
            Err(error) if route == Route::NoTarget => {
                Err(other::refusal(other::unverified_service(&head.headers), &error))
            }
            Err(error) => Err(error.to_reply()),
        }
    }

    async fn handle(self: Arc<Self>, admission: Admission, head: Parts, body: Bytes) -> Answer {
        let Admission { route, claim } = admission;
        if let Err(error) = self.gate.verify(&claim, &head, &body) {
            return Answer::Reply(match route {
                Route::NoTarget => other::refusal(&claim.service, &error),
                _ => error.to_reply(),
            });
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
        Answer::Reply(match route {
            Route::Operation(operation) => {
                let answer = self.call(&operation, &body).await;
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
            Route::UnknownTarget(target) => {
                ApiError::UnknownOperation(format!("There is no operation '{target}' here.")).to_reply()
            }
            Route::NoTarget => other::call(&self.owner, &claim.service, &body),
        })
    }
}
