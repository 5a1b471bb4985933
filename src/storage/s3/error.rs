//! What an error of the SDK means: its cause, whether another attempt may help, and whether this one may have had its effect.
//!
//! Invariant: a failure has `Effect::None` only when the server said that it did nothing, or was never reached.

use std::error::Error;
use std::fmt::{self, Display};
use std::io;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::storage::retry::Attempt;

/// Characters of a message from elsewhere.
const MESSAGE_MAX: usize = 400;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    NoSuchKey,
    /// 404 without the word of a store, as from a proxy that does not find the server just now.
    NotFound,
    NoSuchBucket,
    NoSuchUpload,
    /// 412.
    PreconditionFailed,
    /// 409: somebody else was just changing the object.
    Conflict,
    RangeNotSatisfiable,
    /// 501, or the header of a condition refused.
    NotImplemented,
    /// 401, 403.
    Denied,
    /// Any other answer that means no.
    Rejected,
    /// The server was too busy to begin.
    Throttled,
    /// 5xx.
    Server,
    Timeout,
    /// No connection was made.
    Unreachable,
    /// The connection broke, or the answer made no sense.
    Broken,
    /// The request could not even be built.
    NotBuilt,
}

/// Whether a failed request may have done what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Possible,
}

impl Effect {
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, Self::None) => Self::None,
            (Self::Possible, _) | (_, Self::Possible) => Self::Possible,
        }
    }
}

/// One failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) effect: Effect,
    pub(super) message: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// Of requests that may be repeated.
    pub(super) fn into_attempt(self) -> Attempt<Self> {
        match self.cause {
            Cause::Conflict
            | Cause::Throttled
            | Cause::NotFound
            | Cause::Server
            | Cause::Timeout
            | Cause::Unreachable
            | Cause::Broken => Attempt::Transient(self),
            Cause::NoSuchKey
            | Cause::NoSuchBucket
            | Cause::NoSuchUpload
            | Cause::PreconditionFailed
            | Cause::RangeNotSatisfiable
            | Cause::NotImplemented
            | Cause::Denied
            | Cause::Rejected
            | Cause::NotBuilt => Attempt::Final(self),
        }
    }

    pub(super) fn silent(limit: Duration) -> Self {
        Self {
            cause: Cause::Timeout,
            effect: Effect::Possible,
            message: format!("no answer within {:.1} s", limit.as_secs_f64()),
        }
    }

    pub(super) fn broken(message: String) -> Self {
        Self {
            cause: Cause::Broken,
            effect: Effect::Possible,
            message,
        }
    }

    fn of_answer(status: u16, code: Option<&str>, message: Option<&str>) -> Self {
        let cause = cause_of(status, code);
        let effect = match cause {
            // A gateway says 500, 502 or 504 for what the server behind it may have done.
            Cause::Server | Cause::Timeout | Cause::NotFound => Effect::Possible,
            _ => Effect::None,
        };
        let mut text = format!("{status} {}", code.unwrap_or("without a code"));
        if let Some(message) = message {
            text.push_str(" (");
            text.extend(message.chars().take(MESSAGE_MAX));
            text.push(')');
        }
        if let Some(advice) = advice_for(cause, code) {
            text.push_str(": ");
            text.push_str(advice);
        }
        Self {
            cause,
            effect,
            message: text,
        }
    }
}

fn cause_of(status: u16, code: Option<&str>) -> Cause {
    match (status, code.unwrap_or_default()) {
        (_, "NoSuchBucket") => Cause::NoSuchBucket,
        (_, "NoSuchUpload") => Cause::NoSuchUpload,
        (_, "RequestTimeout") | (408, _) => Cause::Timeout,
        (
            _,
            "SlowDown" | "SlowDownWrite" | "SlowDownRead" | "Throttling" | "ThrottlingException",
        )
        | (429, _) => Cause::Throttled,
        (_, "NotImplemented") | (501, _) => Cause::NotImplemented,
        (401 | 403, _) => Cause::Denied,
        (404, "NoSuchKey") => Cause::NoSuchKey,
        (404, _) => Cause::NotFound,
        (409, "ConditionalRequestConflict" | "OperationAborted") => Cause::Conflict,
        (412, _) => Cause::PreconditionFailed,
        (416, _) => Cause::RangeNotSatisfiable,
        // A long request may begin its answer with 200 before it fails.
        (..=299 | 500.., _) => Cause::Server,
        (_, _) => Cause::Rejected,
    }
}

fn advice_for(cause: Cause, code: Option<&str>) -> Option<&'static str> {
    Some(match (cause, code.unwrap_or_default()) {
        (Cause::NoSuchBucket, _) => "create the bucket or correct the URI",
        (Cause::NotFound, _) => "check s3.endpoint, and what is between here and there",
        (_, "InvalidAccessKeyId") => "check s3.access-key",
        (_, "SignatureDoesNotMatch") => "check s3.secret-key",
        (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            "the credentials have expired: renew s3.access-key and s3.secret-key"
        }
        (_, "RequestTimeTooSkewed") => "set this machine's clock",
        (Cause::Denied, _) => "check s3.access-key, s3.secret-key and the bucket's policy",
        (_, "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed") => {
            "the bucket lies in another region: check s3.region and s3.endpoint"
        }
        (_, _) => return None,
    })
}

impl<E: ProvideErrorMetadata + Error + 'static> From<SdkError<E, HttpResponse>> for Failure {
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let text = shortened(&error);
        let (cause, effect, what) = match &error {
            SdkError::ServiceError(answer) => {
                let metadata = answer.err().meta();
                let status = answer.raw().status().as_u16();
                return Self::of_answer(status, metadata.code(), metadata.message());
            }
            SdkError::ConstructionFailure(_) => {
                (Cause::NotBuilt, Effect::None, "the request cannot be built")
            }
            SdkError::TimeoutError(_) => (Cause::Timeout, Effect::Possible, "timeout"),
            SdkError::DispatchFailure(failure) if failure.is_user() => {
                (Cause::NotBuilt, Effect::None, "the request cannot be sent")
            }
            SdkError::DispatchFailure(_) if was_never_connected(&error) => (
                Cause::Unreachable,
                Effect::None,
                "cannot connect, check s3.endpoint",
            ),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                (Cause::Timeout, Effect::Possible, "timeout")
            }
            SdkError::DispatchFailure(_) => (Cause::Broken, Effect::Possible, "connection broken"),
            _ => (
                Cause::Broken,
                Effect::Possible,
                "the answer cannot be understood",
            ),
        };
        Self {
            cause,
            effect,
            message: format!("{what}: {text}"),
        }
    }
}

/// Whether the operating system refused to connect. What this does not recognise counts as sent, which is safe.
fn was_never_connected(error: &(dyn Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::AddrNotAvailable
            )
        {
            return true;
        }
        source = error.source();
    }
    false
}

fn shortened(error: &impl Error) -> String {
    DisplayErrorContext(error)
        .to_string()
        .chars()
        .take(MESSAGE_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_retried_and_doubted_by_what_they_mean() {
        // status, code, is another attempt worth it, may it have had an effect
        for (status, code, is_transient, effect) in [
            (503, "SlowDown", true, Effect::None),
            (429, "TooManyRequests", true, Effect::None),
            (409, "ConditionalRequestConflict", true, Effect::None),
            (503, "ServiceUnavailable", true, Effect::Possible),
            (500, "InternalError", true, Effect::Possible),
            (504, "", true, Effect::Possible),
            (400, "RequestTimeout", true, Effect::Possible),
            (501, "NotImplemented", false, Effect::None),
            (412, "PreconditionFailed", false, Effect::None),
            (404, "NoSuchKey", false, Effect::None),
            (404, "NotFound", true, Effect::Possible),
            (404, "", true, Effect::Possible),
            (200, "InternalError", true, Effect::Possible),
            (404, "NoSuchBucket", false, Effect::None),
            (403, "AccessDenied", false, Effect::None),
            (400, "InvalidArgument", false, Effect::None),
            (301, "PermanentRedirect", false, Effect::None),
        ] {
            let failure = Failure::of_answer(status, Some(code), None);
            assert_eq!(failure.effect, effect, "{failure}");
            let is_retried = matches!(failure.into_attempt(), Attempt::Transient(_));
            assert_eq!(is_retried, is_transient, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_says_which_key_to_look_at() {
        for (status, code, hint) in [
            (403, "InvalidAccessKeyId", "s3.access-key"),
            (403, "SignatureDoesNotMatch", "s3.secret-key"),
            (403, "AccessDenied", "s3.access-key"),
            (404, "NoSuchBucket", "create the bucket"),
            (301, "PermanentRedirect", "s3.region"),
            (403, "RequestTimeTooSkewed", "clock"),
        ] {
            let failure = Failure::of_answer(status, Some(code), Some("words of the server"));
            assert!(failure.message.contains(hint), "{failure}");
            assert!(failure.message.contains("words of the server"));
        }
    }
}
