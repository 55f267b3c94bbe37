//! Requests of AWS's query and REST services that reach this port because an SDK was pointed here for everything. Of
//! them only `sts:GetCallerIdentity` is answered; the rest is refused in a form that its client can read.

use hyper::HeaderMap;

use crate::arn::Owner;
use crate::error::ApiError;
use crate::reply::Reply;
use crate::s3;

const STS_NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
/// Signing names of services that speak the query protocol.
const QUERY_SERVICES: &[&str] = &[
    "autoscaling",
    "cloudformation",
    "elasticache",
    "elasticloadbalancing",
    "iam",
    "monitoring",
    "rds",
    "sns",
    "sts",
];

/// How a service writes its errors.
enum Form {
    Ec2,
    Query,
    S3,
    Json,
}

impl Form {
    fn of(service: &str) -> Form {
        match service {
            "ec2" => Form::Ec2,
            s3::SIGNING_NAME => Form::S3,
            service if QUERY_SERVICES.contains(&service) => Form::Query,
            _ => Form::Json,
        }
    }
}

/// Answers a request whose signature is good, and which has no `X-Amz-Target`.
pub(crate) fn call(owner: &Owner, service: &str, body: &[u8]) -> Reply {
    if asks_who_calls(service, body) {
        return caller_identity(&owner.account_id, &owner.root(), &owner.account_id);
    }
    let action = action(body);
    let what = action.map_or_else(|| service.to_owned(), |action| format!("{service}:{action}"));
    let what: String = what.chars().take(100).collect();
    let error = ApiError::UnknownOperation(format!("Berth does not support '{what}'."));
    refusal(service, &error)
}

/// An error in the form of this service.
pub(crate) fn refusal(service: &str, error: &ApiError) -> Reply {
    // The XML services say it without the suffix, and have a name of their own for what they do not do.
    let code = match error {
        ApiError::UnknownOperation(_) => "UnsupportedOperation",
        error => error.code().trim_end_matches("Exception"),
    };
    let message = escape(&error.to_string());
    let status = error.status();
    match Form::of(service) {
        Form::Ec2 => Reply::xml(status, |id| {
            format!(
                "{XML}<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
                 <RequestID>{id}</RequestID></Response>"
            )
        }),
        Form::Query => Reply::xml(status, |id| {
            format!(
                "{XML}<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message>\
                 </Error><RequestId>{id}</RequestId></ErrorResponse>"
            )
        }),
        Form::S3 => Reply::xml(status, |id| {
            format!(
                "{XML}<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{id}</RequestId></Error>"
            )
        }),
        Form::Json => error.to_reply(),
    }
}

pub(crate) const XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// The service that a request says it is signed for; for the form of a refusal and nothing else.
pub(crate) fn unverified_service(headers: &HeaderMap) -> &str {
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok());
    let credential = authorization
        .and_then(|text| text.split_once("Credential="))
        .map(|(_, rest)| rest);
    credential
        .and_then(|credential| credential.split(['/', ',']).nth(3))
        .unwrap_or_default()
}

/// The `Action` of a request that has no `X-Amz-Target`, if this is one that is answered.
pub(crate) fn asks_who_calls(service: &str, body: &[u8]) -> bool {
    service == "sts" && action(body).as_deref() == Some("GetCallerIdentity")
}

/// Answers GetCallerIdentity.
pub(crate) fn caller_identity(account: &str, arn: &str, user: &str) -> Reply {
    let [account, arn, user] = [account, arn, user].map(escape);
    Reply::xml(200, |id| {
        format!(
            "<GetCallerIdentityResponse xmlns=\"{STS_NAMESPACE}\"><GetCallerIdentityResult><Arn>{arn}</Arn>\
             <UserId>{user}</UserId><Account>{account}</Account></GetCallerIdentityResult>\
             <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
        )
    })
}

/// The `Action` of a form.
fn action(body: &[u8]) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let action = body
        .split('&')
        .find_map(|parameter| parameter.strip_prefix("Action="))?;
    action
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then(|| action.to_owned())
}

pub(crate) fn escape(text: &str) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    text.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            region: "us-east-1".to_owned(),
            account_id: "123456789012".to_owned(),
        }
    }

    fn text(reply: &Reply) -> String {
        String::from_utf8(reply.body.clone()).unwrap()
    }

    #[test]
    fn the_caller_is_told_who_they_are() {
        let reply = call(&owner(), "sts", b"Action=GetCallerIdentity&Version=2011-06-15");
        assert_eq!(reply.status, 200);
        assert!(text(&reply).contains("<Account>123456789012</Account>"));
        assert!(text(&reply).contains(&reply.request_id));
    }

    #[test]
    fn another_service_is_refused_in_its_own_form() {
        let reply = call(&owner(), "ec2", b"Action=DescribeVpcs&Version=2016-11-15");
        assert_eq!(reply.status, 400);
        assert!(text(&reply).contains("<Response><Errors><Error><Code>UnsupportedOperation</Code>"));
        assert!(text(&reply).contains("ec2:DescribeVpcs"));
        assert!(text(&call(&owner(), "iam", b"Action=ListUsers")).contains("<ErrorResponse><Error>"));
        assert!(text(&call(&owner(), "s3", b"")).contains("<Error><Code>"));
        assert!(text(&call(&owner(), "lambda", b"")).contains("UnknownOperationException"));
    }

    #[test]
    fn what_the_caller_sent_cannot_add_markup() {
        assert!(!text(&call(&owner(), "ec2", b"Action=<b>")).contains("<b>"));
        let error = ApiError::InvalidSignature("<a & \u{1}b>".to_owned());
        assert!(text(&refusal("ec2", &error)).contains("<Message>&lt;a &amp; b&gt;</Message>"));
    }

    #[test]
    fn the_service_is_read_from_the_credential_scope() {
        let mut headers = HeaderMap::new();
        let value =
            "AWS4-HMAC-SHA256 Credential=AKID/20261101/us-east-1/ec2/aws4_request, SignedHeaders=host";
        headers.insert("authorization", value.parse().unwrap());
        assert_eq!(unverified_service(&headers), "ec2");
        assert_eq!(unverified_service(&HeaderMap::new()), "");
    }
}
