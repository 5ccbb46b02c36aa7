//! What a handler may use, and the two ways an answer can turn out.

use std::sync::Arc;

use levee_protocol::api::advisory::ClientInfo;
use levee_protocol::api::{AccountLimits, ApiError, Request, ServerLimits};
use levee_protocol::ids::AccountName;
use levee_raft::ProposeError;

use crate::jetstream::JetStream;
use crate::stream::{Leader, Replica};

/// One call, at the node that answers it.
pub struct Context<'a> {
    /// The node's stream side.
    pub jetstream: &'a Arc<JetStream>,
    /// Who calls.
    pub account: &'a AccountName,
    /// The same as advisories describe it.
    pub client: &'a ClientInfo,
    /// What is called.
    pub request: Request<'a>,
    /// The body.
    pub body: &'a [u8],
}

/// The whole JSON document, or the error that goes into one.
pub type Answer = Result<Vec<u8>, ApiError>;

/// The stream of a call, on the node that leads it.
pub struct Led {
    /// The replica.
    pub replica: Arc<Replica>,
    /// Its leading half.
    pub leader: Arc<Leader>,
}

impl Context<'_> {
    /// What the account's streams may use.
    #[must_use]
    pub fn account_limits(&self) -> AccountLimits {
        self.jetstream.accounts().limits(self.account).unwrap_or_default()
    }

    /// The bounds that this node sets for the account's streams and consumers.
    #[must_use]
    pub fn limits(&self) -> ServerLimits {
        self.account_limits().within(&self.jetstream.identity().limits)
    }

    /// The stream the call names. The dispatcher has brought the call to its leader; leadership may have moved
    /// since, and then the caller tries again.
    pub fn led(&self) -> Result<Led, ApiError> {
        let group = self
            .jetstream
            .directory()
            .group(self.account, self.request.stream)
            .ok_or_else(ApiError::stream_not_found)?;
        let replica = self.jetstream.replica(group).ok_or_else(ApiError::not_available)?;
        let leader = replica.leader().ok_or_else(ApiError::not_available)?;
        Ok(Led { replica, leader })
    }
}

/// What a removal is answered with that came to nothing. One that may have happened is not tried again, as other calls
/// are: it would find nothing left to remove and say so.
#[must_use]
pub fn removal_failed(error: &ProposeError) -> ApiError {
    failed_once(error, "it may have been removed")
}

/// The same of a call that does something else. The words say what may have happened.
#[must_use]
pub fn failed_once(error: &ProposeError, outcome: &str) -> ApiError {
    if error.may_be_committed() { not_again(outcome) } else { ApiError::not_available() }
}

/// Tells of a call that has not been answered and is not to be tried again.
#[must_use]
pub fn not_again(outcome: &str) -> ApiError {
    let mut answer = ApiError::not_available();
    answer.description.push_str("; ");
    answer.description.push_str(outcome);
    answer
}
