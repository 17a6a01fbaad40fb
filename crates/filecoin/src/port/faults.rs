//! Errors of this crate as the engine has them: a class, and what was said.

use floe_core::FailureCode;
use floe_core::cold::Fault;

use crate::chain::ChainError;
use crate::messages::{JournalError, MessageError};
use crate::rpc::{Fault as Refusal, RpcError};
use crate::signer::SignError;

fn of_rpc(error: &RpcError) -> FailureCode {
    match error {
        RpcError::Unauthorized { .. } | RpcError::Forbidden { .. } => FailureCode::Auth,
        RpcError::Refused { fault, .. } => of_refusal(*fault),
        _ => FailureCode::ChainUnreachable,
    }
}

fn of_refusal(fault: Refusal) -> FailureCode {
    match fault {
        Refusal::KeyNotFound | Refusal::BadSignature => FailureCode::Auth,
        Refusal::NonceTooLow | Refusal::NonceUsed | Refusal::NonceExists | Refusal::TooManyPending => {
            FailureCode::Nonce
        }
        Refusal::PremiumTooLow | Refusal::FeeCapTooLow => FailureCode::Gas,
        Refusal::NotEnoughFunds => FailureCode::FundsWallet,
        _ => FailureCode::ChainUnreachable,
    }
}

fn of_signing(error: &SignError) -> FailureCode {
    match error {
        SignError::Wallet { source, .. } => of_rpc(source),
        SignError::NotOurs(_) | SignError::Key(_) => FailureCode::Auth,
    }
}

impl From<RpcError> for Fault {
    fn from(error: RpcError) -> Self {
        Self::new(of_rpc(&error), error.to_string())
    }
}

impl From<SignError> for Fault {
    fn from(error: SignError) -> Self {
        Self::new(of_signing(&error), error.to_string())
    }
}

impl From<ChainError> for Fault {
    fn from(error: ChainError) -> Self {
        let code = match &error {
            ChainError::Rpc(error) => of_rpc(error),
            _ => FailureCode::ChainUnreachable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<MessageError> for Fault {
    fn from(error: MessageError) -> Self {
        let code = match &error {
            MessageError::Rpc(error) => of_rpc(error),
            MessageError::Sign(error) => of_signing(error),
            MessageError::Journal(JournalError::Store(_)) => FailureCode::ChainUnreachable,
            MessageError::FeeOverCap { .. } | MessageError::BadEstimate(_) => FailureCode::Gas,
            MessageError::Journal(_) | MessageError::NonceAhead { .. } | MessageError::Unknown(_) => {
                FailureCode::Nonce
            }
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::METHODS;

    fn said(code: i32, text: &str) -> FailureCode {
        let method = METHODS.iter().find(|method| method.name.ends_with("MpoolPush")).unwrap();
        Fault::from(RpcError::of_object(method, code, text)).code
    }

    /// Texts of a recorded node and of Lotus' sources.
    #[test]
    fn what_a_node_says_has_its_class_and_its_words() {
        for (code, text, class) in [
            (1, "message nonce too low", FailureCode::Nonce),
            (1, "too many pending messages for actor", FailureCode::Nonce),
            (1, "gas fee cap too low", FailureCode::Gas),
            (1, "mpool push: not enough funds to execute transaction", FailureCode::FundsWallet),
            (1, "missing permission to invoke 'MpoolPush' (need 'write')", FailureCode::Auth),
            (-32601, "method 'Filecoin.X' not found", FailureCode::ChainUnreachable),
            (1, "something that nobody has seen", FailureCode::ChainUnreachable),
        ] {
            assert_eq!(said(code, text), class, "{text}");
        }
        let kept = Fault::from(RpcError::of_object(&METHODS[0], 1, "its own words"));
        assert!(kept.text.contains("its own words"), "{kept}");
    }
}
