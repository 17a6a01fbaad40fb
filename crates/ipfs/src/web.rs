//! The dial filter for those who connect over HTTP: to storage providers whose addresses the chain names.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::dial::policy::{Asker, Policy};
use crate::dial::resolve::Resolve;
use crate::dial::target::Family;
use crate::limits::{self, MAX_ADDRESSES_PER_NAME};

/// Says which addresses of a host may be connected to. Cheap to clone.
#[derive(Clone)]
pub struct WebFilter {
    policy: Arc<Policy>,
    resolver: Arc<dyn Resolve>,
}

impl WebFilter {
    pub(crate) fn new(policy: Arc<Policy>, resolver: Arc<dyn Resolve>) -> Self {
        Self { policy, resolver }
    }

    /// The addresses of `host`, a name or an IP address, that may be connected to: by the operator's word all that name a
    /// host, by a stranger's those that a peer's could be dialled at. A name is looked up once; connect to what comes
    /// out, and do not ask again.
    ///
    /// # Errors
    /// Why there is none, in words for people: no address in it (threat T45).
    pub async fn addresses(
        &self,
        host: &str,
        port: u16,
        is_operators: bool,
    ) -> Result<Vec<SocketAddr>, String> {
        let asker = if is_operators { Asker::Operator } else { Asker::Stranger };
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) => {
                let found = self.resolver.addresses(host.to_ascii_lowercase(), Family::Any).await;
                found.map_err(|_| "its name does not resolve".to_owned())?
            }
        };
        let mut refusal = None;
        let mut permitted = Vec::new();
        for ip in found {
            match self.policy.check(asker, ip, port) {
                Ok(()) => permitted.push(SocketAddr::new(ip, port)),
                Err(why) => refusal = Some(why.to_string()),
            }
        }
        if permitted.len() > MAX_ADDRESSES_PER_NAME {
            limits::hit("dial_addresses");
            permitted.truncate(MAX_ADDRESSES_PER_NAME);
        }
        if permitted.is_empty() {
            return Err(refusal.unwrap_or_else(|| "its name has no address".to_owned()));
        }
        Ok(permitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Names;
    use floe_core::{ManualClock, Timestamp};

    #[tokio::test]
    async fn t11_what_the_chain_says_is_judged_and_what_the_operator_says_is_not() {
        let names = Names::default();
        names.answer("inside.test", &["10.0.0.1", "127.0.0.1", "::1"]);
        names.answer("mixed.test", &["169.254.169.254", "8.8.8.8"]);
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
        let filter = WebFilter::new(Arc::new(Policy::new(false, clock)), Arc::new(names));
        let allowed = |host: &'static str, port, operators| {
            let filter = filter.clone();
            async move { filter.addresses(host, port, operators).await.map(|all| all.len()) }
        };
        for (host, port, stranger, operator) in [
            ("127.0.0.1", 80, None, Some(1)),
            ("::ffff:10.0.0.1", 80, None, Some(1)),
            ("8.8.8.8", 443, Some(1), Some(1)),
            ("8.8.8.8", 22, None, Some(1)),
            ("inside.test", 443, None, Some(3)),
            ("MIXED.test", 443, Some(1), Some(2)),
            ("nowhere.test", 443, None, None),
            ("0.0.0.0", 443, None, None),
        ] {
            assert_eq!(allowed(host, port, false).await.ok(), stranger, "{host}:{port} by a stranger");
            assert_eq!(allowed(host, port, true).await.ok(), operator, "{host}:{port} by the operator");
        }
        let refused = filter.addresses("127.0.0.1", 80, false).await.unwrap_err();
        assert!(!refused.contains("127"), "{refused}");
    }
}
