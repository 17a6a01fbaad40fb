//! What a pin asks of Filecoin: the policy that it goes under, and how many replicas it gets.
//!
//! ```text
//!   the token's policy  <  /p/<policy>/pins  <  meta.policy        else "default", else hot alone
//!                                               meta.replicas       within the bounds of account and policy
//! ```
//!
//! A pin that takes the place of another inherits from it what neither path nor meta says anew. What is chosen is
//! stored with the pin: whatever becomes of the policy, this pin keeps its replicas.

use std::collections::BTreeMap;

use axum::extract::FromRequestParts;
use floe_core::policy::DEFAULT_POLICY;
use floe_core::{Policy, PolicyChoice};
use floe_engine::Principal;
use http::request::Parts;

use super::query::shown;
use crate::limits;
use crate::path::PathPolicy;

/// The policy that the path names.
pub(crate) struct OfPath(pub(crate) Option<PathPolicy>);

impl<S: Sync> FromRequestParts<S> for OfPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}

/// All that a choice is made from, but the pin's own meta.
pub(crate) struct Choosing<'a> {
    policies: &'a BTreeMap<String, Policy>,
    path: Option<&'a str>,
    token: Option<&'a str>,
    /// The most replicas of a pin of the account.
    most: Option<u8>,
    /// What the pin had that is replaced.
    inherited: Option<PolicyChoice>,
}

impl<'a> Choosing<'a> {
    pub(crate) fn new(policies: &'a BTreeMap<String, Policy>, who: &'a Principal, path: &'a OfPath) -> Self {
        Self {
            policies,
            path: path.0.as_ref().map(|policy| &*policy.0),
            token: who.policy.as_deref(),
            most: who.account.max_replicas,
            inherited: None,
        }
    }

    /// For a pin that takes the place of one with this choice.
    pub(crate) fn replacing(self, inherited: Option<PolicyChoice>) -> Self {
        Self { inherited, ..self }
    }

    /// What a pin with this meta gets, or what is wrong with what it asks for.
    pub(super) fn choose(&self, meta: &BTreeMap<String, String>) -> Result<PolicyChoice, String> {
        let asked = meta.get("replicas").map(|text| replicas(text)).transpose()?;
        let named = meta.get("policy").map(String::as_str);
        if let (None, None, Some(inherited)) = (named, self.path, &self.inherited) {
            return self.inherit(inherited, asked);
        }
        let said = named.or(self.path).or(self.token).unwrap_or(DEFAULT_POLICY);
        match self.policies.get(said) {
            Some(policy) => self.under(policy, policy.replicas, asked),
            None if said == DEFAULT_POLICY => hot_alone(asked),
            None => {
                Err(self.unknown(if named.is_some() { "meta.policy" } else { "the token's policy" }, said))
            }
        }
    }

    fn inherit(&self, inherited: &PolicyChoice, asked: Option<u8>) -> Result<PolicyChoice, String> {
        match (self.policies.get(&inherited.name), asked) {
            (Some(policy), _) => self.under(policy, inherited.replicas, asked),
            (None, None) => Ok(inherited.clone()),
            (None, _) if inherited.name.is_empty() => hot_alone(asked),
            (None, _) => Err(self.unknown("the policy of the pin that is replaced", &inherited.name)),
        }
    }

    /// As many as are asked for, or refused; what nobody asked for is cut to the bound.
    fn under(&self, policy: &Policy, usual: u8, asked: Option<u8>) -> Result<PolicyChoice, String> {
        let most = policy.most_replicas(self.most);
        let replicas = match asked {
            None => usual.min(most),
            Some(asked) if asked <= most => asked,
            Some(asked) => {
                limits::hit("replicas");
                return Err(format!(
                    "meta.replicas: {asked} are asked for; the most is {most} for this account under the policy {:?}",
                    policy.name
                ));
            }
        };
        Ok(PolicyChoice { name: policy.name.clone(), replicas })
    }

    /// One that does not exist is a mistake, and a pin that was kept otherwise than asked for would be a worse one.
    fn unknown(&self, what: &str, name: &str) -> String {
        format!("{what}: there is no policy {}; there is {}", shown(name), known(self.policies))
    }
}

/// The names of policies, for an error.
pub(crate) fn known(policies: &BTreeMap<String, Policy>) -> String {
    let others = policies.keys().map(String::as_str).filter(|name| *name != DEFAULT_POLICY);
    let names = std::iter::once(DEFAULT_POLICY).chain(others);
    let shown: Vec<String> = names.take(limits::POLICIES_NAMED).map(|name| format!("{name:?}")).collect();
    let more = if policies.len() > limits::POLICIES_NAMED { ", …" } else { "" };
    shown.join(", ") + more
}

/// No policy is configured for pins that choose none.
fn hot_alone(asked: Option<u8>) -> Result<PolicyChoice, String> {
    match asked {
        None | Some(0) => Ok(PolicyChoice::default()),
        Some(_) => {
            Err("meta.replicas: this node has no policy under which the pin would go to Filecoin".into())
        }
    }
}

/// A number of replicas, in digits.
fn replicas(text: &str) -> Result<u8, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let wrong = || format!("meta.replicas: {} is no number from 0 to 255", shown(text));
    digits.then(|| text.parse().ok()).flatten().ok_or_else(wrong)
}

#[cfg(test)]
pub(super) mod tests {
    use floe_core::policy::Hot;
    use floe_core::{AttoFil, Policy, PolicyChoice};

    use super::*;

    static NONE: BTreeMap<String, Policy> = BTreeMap::new();

    /// Of a node without policies.
    pub(crate) fn unsaid() -> Choosing<'static> {
        Choosing { policies: &NONE, path: None, token: None, most: None, inherited: None }
    }

    fn policies(of: &[(&str, u8)]) -> BTreeMap<String, Policy> {
        let policy = |(name, replicas): &(&str, u8)| Policy {
            name: (*name).to_owned(),
            replicas: *replicas,
            regions: Vec::new(),
            max_price: AttoFil::ZERO,
            duration_epochs: 1_555_200,
            hot: Hot::Always,
            providers: Vec::new(),
            ipni: true,
            spare_after_epochs: None,
        };
        of.iter().map(policy).map(|policy| (policy.name.clone(), policy)).collect()
    }

    fn choice(name: &str, replicas: u8) -> PolicyChoice {
        PolicyChoice { name: name.to_owned(), replicas }
    }

    fn meta(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn token_path_and_meta_in_rising_precedence() {
        let all = policies(&[("default", 1), ("t", 2), ("p", 3), ("m", 4)]);
        let chosen = |path, token, named: Option<&str>| {
            let choosing = Choosing { policies: &all, path, token, ..unsaid() };
            let meta = named.map_or_else(BTreeMap::new, |name| meta(&[("policy", name)]));
            choosing.choose(&meta).unwrap()
        };
        assert_eq!(chosen(None, None, None), choice("default", 1));
        assert_eq!(chosen(None, Some("t"), None), choice("t", 2));
        assert_eq!(chosen(Some("p"), Some("t"), None), choice("p", 3));
        assert_eq!(chosen(Some("p"), Some("t"), Some("m")), choice("m", 4));
        assert_eq!(chosen(Some("default"), Some("t"), None), choice("default", 1));
        assert_eq!(chosen(Some("p"), None, Some("default")), choice("default", 1));
    }

    #[test]
    fn what_is_unknown_is_refused_and_the_known_ones_are_named() {
        let all = policies(&[("gold", 2), ("silver", 1)]);
        let choosing = Choosing { policies: &all, ..unsaid() };
        for unknown in ["Gold", "", "gold ", &"x".repeat(1_000)] {
            let error = choosing.choose(&meta(&[("policy", unknown)])).unwrap_err();
            assert!(error.starts_with("meta.policy: ") && error.len() < 300, "{error}");
            assert!(error.ends_with(r#"there is "default", "gold", "silver""#), "{error}");
        }
        let gone = Choosing { token: Some("bronze"), ..choosing };
        assert!(gone.choose(&meta(&[])).unwrap_err().starts_with("the token's policy: "));
        assert_eq!(gone.choose(&meta(&[("policy", "gold")])), Ok(choice("gold", 2)));
        let many: Vec<(String, u8)> = (0..limits::POLICIES_NAMED).map(|n| (format!("p{n:02}"), 1)).collect();
        let many: Vec<(&str, u8)> = many.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert!(!known(&policies(&many[1..])).ends_with('…'));
        assert!(known(&policies(&[&many[..], &[("q", 1)]].concat())).ends_with('…'));
    }

    #[test]
    fn replicas_are_digits_within_the_bounds_of_account_and_policy() {
        let all = policies(&[("gold", 3), ("hot", 0)]);
        let asked = |policy: &str, most, text: &str| {
            let choosing = Choosing { policies: &all, most, ..unsaid() };
            choosing.choose(&meta(&[("policy", policy), ("replicas", text)])).map(|choice| choice.replicas)
        };
        for (most, text, want) in [
            (None, "0", Some(0)),
            (None, "3", Some(3)),
            (None, "4", None),
            (Some(2), "2", Some(2)),
            (Some(2), "3", None),
            (Some(5), "5", Some(5)),
            (Some(5), "6", None),
            (Some(200), "17", None),
        ] {
            assert_eq!(asked("gold", most, text).ok(), want, "{text} where {most:?} is the most");
        }
        for text in ["", "-1", "+1", "1.0", "two", "256", " 1", "1e1"] {
            let error = asked("gold", None, text).unwrap_err();
            assert!(error.starts_with("meta.replicas: "), "{text}: {error}");
        }
        assert_eq!(asked("hot", Some(5), "0"), Ok(0));
        assert!(asked("hot", Some(5), "1").is_err(), "it has no terms for deals");
        assert!(asked("default", Some(5), "1").is_err(), "and neither has what is not configured");
        let plain = Choosing { policies: &all, path: Some("gold"), most: Some(1), ..unsaid() };
        assert_eq!(plain.choose(&meta(&[])), Ok(choice("gold", 1)), "the account's bound cuts what is usual");
    }

    #[test]
    fn m22_a_replacement_inherits_what_it_does_not_say() {
        let all = policies(&[("default", 1), ("gold", 3), ("silver", 2)]);
        let from = |inherited, path, pairs: &[(&str, &str)]| {
            let choosing = Choosing { policies: &all, path, token: Some("silver"), ..unsaid() };
            choosing.replacing(Some(inherited)).choose(&meta(pairs))
        };
        assert_eq!(from(choice("gold", 2), None, &[]), Ok(choice("gold", 2)), "and not what its token says");
        assert_eq!(from(choice("gold", 2), Some("silver"), &[]), Ok(choice("silver", 2)));
        assert_eq!(from(choice("gold", 2), None, &[("policy", "default")]), Ok(choice("default", 1)));
        assert_eq!(from(choice("gold", 2), None, &[("replicas", "3")]), Ok(choice("gold", 3)));
        assert!(from(choice("gold", 2), None, &[("replicas", "4")]).is_err());
        assert_eq!(from(choice("", 0), None, &[]), Ok(choice("", 0)), "it was hot alone");
        assert_eq!(from(choice("gone", 2), None, &[]), Ok(choice("gone", 2)), "a pin keeps its replicas");
        assert!(from(choice("gone", 2), None, &[("replicas", "1")]).unwrap_err().contains("gone"));
    }
}
