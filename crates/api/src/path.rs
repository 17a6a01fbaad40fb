//! Where the API is mounted: prefixes and policies are taken off the path before it is routed.
//!
//! A layer of the router would run after routing, so this works on the request's URI in front of it. Nothing
//! redirects: a client that is redirected drops its body or its token.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::Uri;
use floe_core::policy::DEFAULT_POLICY;
use http::uri::PathAndQuery;

use crate::Error;

/// The policy that the path of a request names, as a request extension.
#[derive(Debug, Clone)]
pub(crate) struct PathPolicy(pub(crate) Arc<str>);

/// Where our own routes begin. A prefix is taken off before a path is routed, so one of these would hide them.
const OURS: [&str; 5] = ["pins", "p", "deals", "admin", "openapi.json"];

/// The prefixes of `api.path_prefixes`, longest first, and the policies that a path may name. One that names another is
/// left alone, and so is not found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefixes {
    prefixes: Vec<String>,
    policies: BTreeSet<Arc<str>>,
}

impl Prefixes {
    pub(crate) fn new(prefixes: &[String]) -> Result<Self, Error> {
        let wrong = |text: &str, reason| Error::PathPrefix { prefix: text.to_owned(), reason };
        let check = |text: &String| prefix(text).map_err(|reason| wrong(text, reason));
        let mut checked = prefixes.iter().map(check).collect::<Result<Vec<_>, _>>()?;
        let hides = |longer: &&String| checked.iter().any(|p| below(longer, p).is_some_and(is_ours));
        if let Some(longer) = checked.iter().find(hides) {
            return Err(wrong(longer, HIDES));
        }
        checked.sort_by_key(|p| std::cmp::Reverse(p.len()));
        Ok(Self { prefixes: checked, policies: BTreeSet::from([DEFAULT_POLICY.into()]) })
    }

    /// The same, and paths may name these policies too.
    pub(crate) fn with_policies<'a>(mut self, names: impl Iterator<Item = &'a String>) -> Self {
        self.policies.extend(names.map(|name| Arc::from(name.as_str())));
        self
    }

    /// The path that the router knows, and the policy that was named.
    fn route<'a>(&self, path: &'a str) -> (&'a str, Option<PathPolicy>) {
        let path = self.prefixes.iter().find_map(|p| below(path, p)).unwrap_or(path);
        let (path, policy) = match self.policy_of(path) {
            Some((policy, path)) => (path, Some(policy)),
            None => (path, None),
        };
        match path.strip_suffix('/') {
            None | Some("") => (path, policy),
            Some(path) => (path, policy),
        }
    }

    /// The policy of `/p/<policy>/pins`, and the path behind it, where that is one of pins.
    fn policy_of<'a>(&self, path: &'a str) -> Option<(PathPolicy, &'a str)> {
        let rest = path.strip_prefix("/p/")?;
        let (name, path) = rest.split_at(rest.find('/')?);
        let known = self.policies.get(name)?;
        below(path, "/pins").map(|_| (PathPolicy(Arc::clone(known)), path))
    }

    /// Rewrites the request's path to the one that the router knows; the policy that it named.
    pub(crate) fn normalise(&self, uri: &mut Uri) -> Option<PathPolicy> {
        let (route, policy) = self.route(uri.path());
        if route == uri.path() {
            return policy;
        }
        let text = match uri.query() {
            Some(query) => format!("{route}?{query}"),
            None => route.to_owned(),
        };
        let mut parts = uri.clone().into_parts();
        // A part of a valid path is one; where it is not, the request stays as it came and is not found.
        if let Ok(path) = PathAndQuery::try_from(text) {
            parts.path_and_query = Some(path);
            if let Ok(rewritten) = Uri::from_parts(parts) {
                *uri = rewritten;
            }
        }
        policy
    }
}

/// What of `path` lies below `prefix`, with its slash; `/` for the prefix itself.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    match path.strip_prefix(prefix)? {
        "" => Some("/"),
        rest if rest.starts_with('/') => Some(rest),
        _ => None,
    }
}

const HIDES: &str =
    "it would hide the API's own /pins, /p, /deals, /admin or /openapi.json: choose another word";

/// One of `api.path_prefixes`, without a slash at its end.
///
/// # Errors
/// What is wrong with it, in words.
pub fn prefix(text: &str) -> Result<String, &'static str> {
    let path = text.trim_end_matches('/');
    let plain = |s: &str| {
        let known = s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
        known && !["", ".", ".."].contains(&s)
    };
    match path.strip_prefix('/') {
        Some(rest) if !rest.split('/').all(plain) => {
            Err("a path of letters, digits and any of - . _ ~, such as /psa")
        }
        Some(_) if is_ours(path) => Err(HIDES),
        Some(_) => Ok(path.to_owned()),
        None => Err("a path that begins with /, such as /psa"),
    }
}

/// Checks `api.path_prefixes` as a whole: each for itself, and that none hides our routes under another.
///
/// # Errors
/// [`Error::PathPrefix`], for the first that is wrong.
pub fn check_prefixes(prefixes: &[String]) -> Result<(), Error> {
    Prefixes::new(prefixes).map(drop)
}

/// Whether a path begins as one of our own.
fn is_ours(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| OURS.contains(&first))
}

#[cfg(test)]
mod tests {
    use axum::http::Uri;
    use proptest::prelude::*;

    use super::Prefixes;

    fn prefixes(list: &[&str]) -> Prefixes {
        Prefixes::new(&list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn kubo_paths_are_normalised_without_a_redirect() {
        let prefixes = prefixes(&["/psa", "/psa/v1/"]);
        for (path, want) in [
            ("/pins", "/pins"),
            ("/pins/", "/pins"),
            ("/pins?limit=1", "/pins?limit=1"),
            ("/pins/?limit=1", "/pins?limit=1"),
            ("/pins/x/", "/pins/x"),
            ("/p/default/pins", "/pins"),
            ("/p/default/pins/", "/pins"),
            ("/p/default/pins/x/events", "/pins/x/events"),
            ("/p/default/pinsx", "/p/default/pinsx"),
            ("/p/defaultx/pins", "/p/defaultx/pins"),
            ("/p/default", "/p/default"),
            ("/p/gold/pins", "/p/gold/pins"),
            ("/psa/pins", "/pins"),
            ("/psa/v1/pins", "/pins"),
            ("/psa/v1/p/default/pins?a=b", "/pins?a=b"),
            ("/psa", "/"),
            ("/psax/pins", "/psax/pins"),
            ("/psa/psa/pins", "/psa/pins"),
            ("/", "/"),
            ("//", "/"),
        ] {
            let mut uri: Uri = path.parse().unwrap();
            prefixes.normalise(&mut uri);
            assert_eq!(uri.to_string(), want, "{path}");
        }
    }

    #[test]
    fn kubo_a_path_names_a_policy_that_is_there() {
        let names = ["gold".to_owned(), "pins".to_owned()];
        let prefixes = prefixes(&["/psa"]).with_policies(names.iter());
        for (path, want, policy) in [
            ("/pins", "/pins", None),
            ("/p/gold/pins", "/pins", Some("gold")),
            ("/p/gold/pins/?limit=1", "/pins?limit=1", Some("gold")),
            ("/p/gold/pins/x/events", "/pins/x/events", Some("gold")),
            ("/p/gold/pins/batch", "/pins/batch", Some("gold")),
            ("/psa/p/gold/pins", "/pins", Some("gold")),
            ("/p/default/pins", "/pins", Some("default")),
            ("/p/pins/pins", "/pins", Some("pins")),
            ("/p/pins", "/p/pins", None),
            ("/p/Gold/pins", "/p/Gold/pins", None),
            ("/p/silver/pins", "/p/silver/pins", None),
            ("/p//pins", "/p//pins", None),
            ("/p/gold/p/gold/pins", "/p/gold/p/gold/pins", None),
            ("/p/gold/admin/v1/status", "/p/gold/admin/v1/status", None),
        ] {
            let mut uri: Uri = path.parse().unwrap();
            let named = prefixes.normalise(&mut uri);
            let named = named.as_ref().map(|policy| &*policy.0);
            assert_eq!((uri.to_string().as_str(), named), (want, policy), "{path}");
        }
    }

    #[test]
    fn prefixes_are_plain_paths() {
        for bad in [
            "", "/", "psa", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/a%20", "/a b", "/ä", "/{x}",
            "http://x",
        ] {
            assert!(Prefixes::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert_eq!(prefixes(&["/psa/v1/"]).prefixes, ["/psa/v1"]);
    }

    /// `["/p"]` took the API off the air without a word: every path lost its first part before it was routed.
    #[test]
    fn a_prefix_does_not_hide_our_own_routes() {
        for bad in ["/pins", "/p", "/p/", "/p/default", "/deals", "/admin", "/admin/v1", "/openapi.json"] {
            let error = Prefixes::new(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("hide"), "{error}");
        }
        for good in ["/pin", "/ps", "/administration", "/psa/pins", "/x/p"] {
            assert!(Prefixes::new(&[good.to_owned()]).is_ok(), "{good}");
        }
        let both = ["/psa/pins".to_owned(), "/psa".to_owned()];
        assert!(Prefixes::new(&both).is_err(), "the one would hide the pins of the other");
    }

    proptest! {
        #[test]
        fn normalising_never_panics_and_never_loops(path in "/[a-zA-Z0-9/._~%?=&-]{0,40}") {
            if let Ok(mut uri) = path.parse::<Uri>() {
                prefixes(&["/psa"]).normalise(&mut uri);
                prop_assert!(uri.path().starts_with('/'));
            }
        }
    }
}
