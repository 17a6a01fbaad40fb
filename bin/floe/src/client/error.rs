//! Why a command that talks to the API did not do what it was asked to.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use thiserror::Error;

use crate::exit::Code;
use crate::output::printable;

/// Why a command did not do what it was asked to.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// No node runs on the data directory.
    #[error("no Floe runs on {}: start it with `floe serve`, or give --data-dir or --api-url", dir.display())]
    NotRunning {
        /// The data directory.
        dir: PathBuf,
    },
    /// Whether a node runs, and where, cannot be read.
    #[error("cannot read {} to find the node: run this as the user that Floe runs as, or give --api-url", path.display())]
    Endpoints {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The API does not answer.
    #[error("{url} does not answer: is `floe serve` running?")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// A pin is waited for, and the API has been gone for too long.
    #[error(
        "{url} has not answered for {} seconds: the pin goes on once the service runs again, and \
         `floe pin status {id}` shows how far it is",
        silent.as_secs()
    )]
    Lost {
        /// Where it was.
        url: String,
        /// For how long.
        silent: Duration,
        /// The pin's request id.
        id: String,
    },
    /// 401 or 403.
    #[error(
        "refused ({status} {reason}{}): check --token, FLOE_TOKEN, or the scopes of the token; where the node does not \
         know its own admin.token any more, delete that file and restart: the start makes another",
        after(details)
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The API's word.
        reason: String,
        /// The API's sentence.
        details: String,
    },
    /// 404.
    #[error("not found{}", after(details))]
    NotFound {
        /// The API's sentence.
        details: String,
    },
    /// Any other answer that is no success.
    #[error("the API answered {status} {reason}{}", after(details))]
    Answer {
        /// The HTTP status.
        status: u16,
        /// The API's word.
        reason: String,
        /// The API's sentence.
        details: String,
    },
    /// What was waited for has failed.
    #[error("the pin {id} failed: {reason}")]
    PinFailed {
        /// Its request id.
        id: String,
        /// Why.
        reason: String,
    },
    /// What was waited for was removed by somebody.
    #[error("the pin {id} was removed while it was waited for")]
    Removed {
        /// Its request id.
        id: String,
    },
    /// The answer is not what the API promises.
    #[error("{url} is not the API of a Floe: {what}")]
    NotFloe {
        /// Where it came from.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// There is no token to show.
    #[error("no token: give --token or FLOE_TOKEN ({} cannot be read)", path.display())]
    NoToken {
        /// The file that would hold it.
        path: PathBuf,
        /// Why it does not.
        source: std::io::Error,
    },
    /// `--api-url` is none.
    #[error("--api-url: {0}")]
    BadUrl(String),
}

fn after(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(": {details}") }
}

impl ClientError {
    /// The error that an answer is, by its `{"error": {reason, details}}` where it has one.
    pub(super) fn of_answer(status: StatusCode, body: &[u8]) -> Self {
        let said: Value = serde_json::from_slice(body).unwrap_or_default();
        let word = |name: &str| said["error"][name].as_str().map(printable).unwrap_or_default();
        let (status, reason, details) = (status.as_u16(), word("reason"), word("details"));
        match status {
            401 | 403 => Self::Refused { status, reason, details },
            404 => Self::NotFound { details },
            _ => Self::Answer { status, reason, details },
        }
    }

    /// The exit code it ends the process with.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NotRunning { .. } | Self::Unreachable { .. } | Self::Lost { .. } => Code::Unreachable,
            Self::Refused { .. } => Code::Refused,
            Self::NotFound { .. } | Self::Removed { .. } => Code::NotFound,
            Self::PinFailed { .. } => Code::PinFailed,
            Self::Answer { .. } | Self::NotFloe { .. } | Self::Endpoints { .. } => Code::Failure,
            Self::NoToken { .. } | Self::BadUrl(_) => Code::Usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_errors_by_their_status() {
        let body = br#"{"error":{"reason":"INSUFFICIENT_FUNDS","details":"quota"}}"#;
        let code = |status: u16| ClientError::of_answer(StatusCode::from_u16(status).unwrap(), body).code();
        assert_eq!([code(401), code(403), code(404)], [Code::Refused, Code::Refused, Code::NotFound]);
        assert_eq!([code(409), code(500), code(507)], [Code::Failure; 3]);
        let said = ClientError::of_answer(StatusCode::CONFLICT, body).to_string();
        assert!(said.contains("409 INSUFFICIENT_FUNDS: quota"), "{said}");
        let said = ClientError::of_answer(StatusCode::BAD_GATEWAY, b"<html>").to_string();
        assert!(said.contains("502"), "{said}");
    }
}
