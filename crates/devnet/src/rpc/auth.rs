//! Tokens: JWTs with HMAC-SHA256 whose payload is `{"Allow":[..]}`, as Lotus makes them.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What a call needs. Each includes those before it only where the token says so: Lotus lists them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Permission {
    Read,
    Write,
    Sign,
    Admin,
}

impl Permission {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sign => "sign",
            Self::Admin => "admin",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Sign, Self::Admin].into_iter().find(|p| p.name() == name)
    }
}

#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(rename = "Allow")]
    allow: Vec<Permission>,
}

/// Makes and checks tokens.
pub(crate) struct Tokens {
    secret: [u8; 32],
}

impl Tokens {
    pub(crate) fn new(seed: u64) -> Self {
        Self { secret: Sha256::digest(format!("tokens of {seed}")).into() }
    }

    /// A token that allows these.
    pub(crate) fn make(&self, allow: &[Permission]) -> String {
        let names: Vec<String> = allow.iter().map(|p| format!("\"{}\"", p.name())).collect();
        let payload = format!("{{\"Allow\":[{}]}}", names.join(","));
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(payload.as_bytes()));
        let mac = BASE64URL_NOPAD.encode(&hmac(&self.secret, signed.as_bytes()));
        format!("{signed}.{mac}")
    }

    /// A token that allows everything.
    pub(crate) fn admin(&self) -> String {
        self.make(&[Permission::Read, Permission::Write, Permission::Sign, Permission::Admin])
    }

    /// What a token allows; the error is Lotus' text.
    pub(crate) fn check(&self, token: &str) -> Result<Vec<Permission>, &'static str> {
        let mut parts = token.rsplitn(2, '.');
        let (Some(mac), Some(signed)) = (parts.next(), parts.next()) else {
            return Err("jwt: malformed token");
        };
        let Some((_, payload)) = signed.split_once('.') else { return Err("jwt: malformed token") };
        let mac = BASE64URL_NOPAD.decode(mac.as_bytes()).map_err(|_| "jwt: malformed token")?;
        if !bool::from(mac.ct_eq(&hmac(&self.secret, signed.as_bytes()))) {
            return Err("jwt: HMAC verification failed");
        }
        let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| "jwt: malformed token")?;
        let payload: Payload = serde_json::from_slice(&payload).map_err(|_| "jwt: malformed token")?;
        Ok(payload.allow)
    }
}

/// The permissions of `AuthNew`.
pub(crate) fn permissions(names: &[String]) -> Option<Vec<Permission>> {
    names.iter().map(|name| Permission::parse(name)).collect()
}

/// HMAC-SHA256 (RFC 2104) with a key of at most a block.
fn hmac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked() {
        let tokens = Tokens::new(1);
        let token = tokens.make(&[Permission::Read, Permission::Write]);
        assert_eq!(tokens.check(&token).unwrap(), [Permission::Read, Permission::Write]);
        assert_eq!(tokens.check("garbage"), Err("jwt: malformed token"));
        assert_eq!(Tokens::new(2).check(&token), Err("jwt: HMAC verification failed"));
        // RFC 4231, test case 2, with its key filled up to 32 bytes by zeros, as HMAC itself fills it up.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mac = hmac(&key, b"what do ya want for nothing?");
        let text = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(data_encoding::HEXLOWER.encode(&mac), text);
    }
}
