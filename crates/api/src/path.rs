//! Where the API is mounted: prefixes and policies are taken off the path before it is routed.
//!
//! A layer of the router would run after routing, so this works on the request's URI in front of it. Nothing
//! redirects: a client that is redirected drops its body or its token.

use axum::http::Uri;
use http::uri::PathAndQuery;

use crate::Error;

/// The only policy there is. A path that names another is left alone, and so is not found.
const DEFAULT_POLICY: &str = "/p/default/pins";

/// The prefixes of `api.path_prefixes`, longest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefixes(Vec<String>);

impl Prefixes {
    pub(crate) fn new(prefixes: &[String]) -> Result<Self, Error> {
        let mut checked = prefixes.iter().map(|p| prefix(p)).collect::<Result<Vec<_>, _>>()?;
        checked.retain(|p| !p.is_empty());
        checked.sort_by_key(|p| std::cmp::Reverse(p.len()));
        Ok(Self(checked))
    }

    /// The path that the router knows.
    fn route<'a>(&self, path: &'a str) -> &'a str {
        let path = self.0.iter().find_map(|p| below(path, p)).unwrap_or(path);
        let path = match below(path, DEFAULT_POLICY) {
            Some(_) => &path[DEFAULT_POLICY.len() - "/pins".len()..],
            None => path,
        };
        match path.strip_suffix('/') {
            None | Some("") => path,
            Some(path) => path,
        }
    }

    /// Rewrites the request's path to the one that the router knows.
    pub(crate) fn normalise(&self, uri: &mut Uri) {
        let route = self.route(uri.path());
        if route == uri.path() {
            return;
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

fn prefix(text: &str) -> Result<String, Error> {
    let trimmed = text.trim_end_matches('/');
    let plain = trimmed.bytes().all(|b| b.is_ascii_graphic() && !b"?#%\\".contains(&b));
    let valid = trimmed.is_empty() || (trimmed.starts_with('/') && !trimmed.contains("//"));
    if plain && valid { Ok(trimmed.to_owned()) } else { Err(Error::PathPrefix(text.to_owned())) }
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
    fn prefixes_are_plain_paths() {
        for bad in ["psa", "/a//b", "/a?b", "/a#b", "/a%20", "/a b", "/ä", "http://x"] {
            assert!(Prefixes::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(prefixes(&["/", ""]).0.is_empty());
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
