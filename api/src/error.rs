//! What the API answers when it refuses: AWS's names of errors, their HTTP status, and the JSON that carries them.
//! The mapping from the runtime's errors is beside each service, because the same miss has another name in each.

use berth_runtime::RuntimeError;
use serde_json::json;

use crate::reply::Reply;

/// One refusal. The text of a variant is the `message` the caller sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("{0}")]
    Client(String),
    #[error("{0}")]
    InvalidParameter(String),
    #[error("Cluster not found.")]
    ClusterNotFound,
    #[error("The Cluster cannot be deleted while Tasks are active.")]
    ClusterContainsTasks,
    #[error("The client token was used before for another request.")]
    Conflict { resource_ids: Vec<String> },
    #[error("{0}")]
    UnsupportedFeature(String),
    #[error("{0}")]
    PlatformUnknown(String),
    #[error("{0}")]
    ResourceNotFound(String),
    #[error("{0}")]
    InvalidOperation(String),
    #[error("{0}")]
    Validation(String),
    /// An error that one service alone has.
    #[error("{message}")]
    Service { code: &'static str, message: String },
    #[error("{0}")]
    UnknownOperation(String),
    #[error("{0}")]
    Serialization(String),
    #[error("Missing Authentication Token")]
    MissingAuthenticationToken,
    #[error("{0}")]
    IncompleteSignature(String),
    #[error("{0}")]
    InvalidSignature(String),
    #[error("The security token included in the request is invalid.")]
    UnrecognizedClient,
    #[error("The security token included in the request is expired")]
    ExpiredToken,
    #[error("{0}")]
    AccessDenied(String),
    #[error("The request is larger than {limit} bytes.")]
    RequestTooLarge { limit: usize },
    #[error("The request body did not arrive within {seconds} seconds.")]
    RequestTimeout { seconds: u64 },
    /// The details are for the log, not for the caller.
    #[error("Service Unavailable. Please try again later.")]
    Server,
}

impl ApiError {
    /// Logs what went wrong inside and gives the caller the error without its details.
    pub fn server(cause: &dyn std::fmt::Display) -> ApiError {
        tracing::error!("a request failed: {cause}");
        ApiError::Server
    }

    /// An error that one service alone has.
    pub(crate) fn of_service(code: &'static str, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError::Service { code, message }
    }

    /// `__type` of the answer.
    pub fn code(&self) -> &'static str {
        match self {
            ApiError::Client(_) => "ClientException",
            ApiError::InvalidParameter(_) => "InvalidParameterException",
            ApiError::ClusterNotFound => "ClusterNotFoundException",
            ApiError::ClusterContainsTasks => "ClusterContainsTasksException",
            ApiError::Conflict { .. } => "ConflictException",
            ApiError::UnsupportedFeature(_) => "UnsupportedFeatureException",
            ApiError::PlatformUnknown(_) => "PlatformUnknownException",
            ApiError::ResourceNotFound(_) => "ResourceNotFoundException",
            ApiError::InvalidOperation(_) => "InvalidOperationException",
            ApiError::Validation(_) => "ValidationException",
            ApiError::Service { code, .. } => code,
            ApiError::UnknownOperation(_) => "UnknownOperationException",
            ApiError::Serialization(_) => "SerializationException",
            ApiError::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            ApiError::IncompleteSignature(_) => "IncompleteSignatureException",
            ApiError::InvalidSignature(_) => "InvalidSignatureException",
            ApiError::UnrecognizedClient => "UnrecognizedClientException",
            ApiError::ExpiredToken => "ExpiredTokenException",
            ApiError::AccessDenied(_) => "AccessDeniedException",
            ApiError::RequestTooLarge { .. } => "RequestEntityTooLargeException",
            ApiError::RequestTimeout { .. } => "RequestTimeoutException",
            ApiError::Server => "ServerException",
        }
    }

    pub fn status(&self) -> u16 {
        match self {
            ApiError::RequestTooLarge { .. } => 413,
            ApiError::RequestTimeout { .. } => 408,
            ApiError::Server => 500,
            _ => 400,
        }
    }

    pub fn to_reply(&self) -> Reply {
        let mut body = json!({ "__type": self.code(), "message": self.to_string() });
        if let ApiError::Conflict { resource_ids } = self {
            body["resourceIds"] = json!(resource_ids);
        }
        Reply::json(self.status(), &body)
    }
}

/// What the runtime says that no caller can have caused.
pub(crate) fn unexpected(error: &RuntimeError) -> ApiError {
    ApiError::server(error)
}
