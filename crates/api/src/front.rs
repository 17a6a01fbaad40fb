//! What every request passes in front of the router, and every answer on its way out.
//!
//! In: the bounds on headers (431), the `Host` check that keeps DNS rebinding out (T29), a place among the requests in
//! flight, the path. Out: errors that libraries made get a JSON body, causes of internal
//! errors are logged under an id, requests are counted.
//!
//! A panic in a handler ends its request with a 500 and nothing else.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::response::{IntoResponse as _, Response};
use floe_core::ports::Entropy;
use futures::FutureExt as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE, FORWARDED, HOST, RETRY_AFTER};
use http::uri::Authority;
use http::{HeaderName, Method, Request, StatusCode, Uri};
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{Any, CorsLayer};

use crate::client::{Peer, Place, Places, TrustedProxies};
use crate::error::{ApiError, Cause, with_json_body};
use crate::limits;
use crate::path::Prefixes;
use crate::{Error, body};

/// What the paths of administration begin with.
const ADMINISTRATION: &str = "/admin/";

/// What a connection calls.
pub(crate) type App = BoxCloneSyncService<Request<Body>, Response, Infallible>;

/// Whether a request comes from this machine, as a request extension: `network.private_addresses = auto`
/// lets only such a request have private addresses dialled and shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local(pub(crate) bool);

/// What a listener says to whom it has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 429: it is for the client to ask less.
    TooMany,
    /// 503: the client is a provider, for whom a 4xx is the end of a deal.
    Unavailable,
}

impl Refusal {
    pub(crate) fn error(self, details: &str) -> ApiError {
        match self {
            Self::TooMany => ApiError::too_many_requests(details, limits::REFUSED_FOR),
            Self::Unavailable => ApiError::busy(details, limits::PULL_AGAIN),
        }
    }
}

/// Which hosts a listener answers to, and which requests are local.
#[derive(Debug, Clone)]
pub(crate) struct HostRule {
    loopback: bool,
    public_host: Option<String>,
}

impl HostRule {
    pub(crate) fn new(listens_on: SocketAddr, public_host: Option<String>) -> Self {
        Self { loopback: listens_on.ip().to_canonical().is_loopback(), public_host }
    }

    /// Any host: of a listener where the path alone lets in, and that has nothing for a page to read.
    pub(crate) fn any() -> Self {
        Self { loopback: false, public_host: None }
    }

    /// Whether the request is local, or a refusal: on a loopback listener the `Host` must name the loopback or
    /// the public URL's host, or else a page of any site could talk to us through a name of its own (T29).
    fn check(&self, request: &Request<Body>) -> Result<Local, ApiError> {
        if !self.loopback {
            return Ok(Local(false));
        }
        let host = named_host(request).ok_or_else(|| ApiError::forbidden("the request names no host"))?;
        if is_loopback(&host) {
            return Ok(Local(self.public_host.is_none() && !is_forwarded(request)));
        }
        if self.public_host.as_ref().is_some_and(|public| public.eq_ignore_ascii_case(&host)) {
            return Ok(Local(false));
        }
        Err(ApiError::forbidden("this Host is not served here: use localhost, or set api.public_url"))
    }
}

/// The host of `api.public_url`.
pub(crate) fn public_host(url: &str) -> Result<String, Error> {
    let wrong = || Error::PublicUrl(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(bare(host).to_owned()),
        _ => Err(wrong()),
    }
}

/// The host that the client asked for: the `:authority` of HTTP/2 or an absolute URI, else the one `Host`.
fn named_host(request: &Request<Body>) -> Option<String> {
    if let Some(authority) = request.uri().authority() {
        return host_of(authority);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let only = hosts.next().filter(|_| hosts.next().is_none())?;
    host_of(&only.to_str().ok()?.parse().ok()?)
}

fn host_of(authority: &Authority) -> Option<String> {
    let host = bare(authority.host());
    (!host.is_empty() && !authority.as_str().contains('@')).then(|| host.to_owned())
}

/// Without the brackets of an IPv6 address and the dot of a full name.
fn bare(host: &str) -> &str {
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Whether a proxy handed the request on: then it may come from anywhere.
fn is_forwarded(request: &Request<Body>) -> bool {
    let tells = |name: &HeaderName| *name == FORWARDED || name.as_str().starts_with("x-forwarded-");
    request.headers().keys().any(tells)
}

/// The stages in front of a router.
#[derive(Clone)]
pub(crate) struct Front(Arc<Stages>);

struct Stages {
    router: Router,
    host: HostRule,
    prefixes: Prefixes,
    trusted: TrustedProxies,
    places: Places,
    refusal: Refusal,
    entropy: Arc<dyn Entropy>,
}

impl Front {
    pub(crate) fn new(
        router: Router,
        host: HostRule,
        prefixes: Prefixes,
        trusted: TrustedProxies,
        places: Places,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let router = router.layer(axum::middleware::map_request(note_route));
        let refusal = Refusal::TooMany;
        Self(Arc::new(Stages { router, host, prefixes, trusted, places, refusal, entropy }))
    }

    /// For storage providers.
    pub(crate) fn for_pulls(
        router: Router,
        trusted: TrustedProxies,
        places: Places,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let router = router.layer(axum::middleware::map_request(note_route));
        let (host, prefixes, refusal) = (HostRule::any(), Prefixes::default(), Refusal::Unavailable);
        Self(Arc::new(Stages { router, host, prefixes, trusted, places, refusal, entropy }))
    }

    /// CORS is outermost, so that a browser may read refusals too, and asks without a token.
    pub(crate) fn into_service(self) -> App {
        let service = tower::service_fn(move |request| {
            let front = self.clone();
            async move { Ok::<_, Infallible>(front.answer(request).await) }
        });
        BoxCloneSyncService::new(cors().layer(service))
    }

    async fn answer(&self, mut request: Request<Body>) -> Response {
        let started = Instant::now();
        let method = request.method().clone();
        let route = Route::default();
        request.extensions_mut().insert(route.clone());
        let response = match self.admit(&mut request) {
            Ok(place) => held(self.finish(self.route(request).await), place),
            Err(refused) => self.finish(refused.into_response()),
        };
        count(&method, &route, response.status(), started);
        response
    }

    fn admit(&self, request: &mut Request<Body>) -> Result<Place, ApiError> {
        check_headers(request)?;
        if let Some(token) = request.headers_mut().get_mut(AUTHORIZATION) {
            // Debug output of a sensitive value is "Sensitive" (T24).
            token.set_sensitive(true);
        }
        let local = self.0.host.check(request)?;
        request.extensions_mut().insert(local);
        if let Some(policy) = self.0.prefixes.normalise(request.uri_mut()) {
            request.extensions_mut().insert(policy);
        }
        let peer = request.extensions().get().map(|Peer(ip)| *ip);
        let client = peer.and_then(|peer| self.0.trusted.client_of(peer, request.headers()));
        let places = &self.0.places;
        // By its path, because who it is from is found out later, and costs more.
        let place = if request.uri().path().starts_with(ADMINISTRATION) {
            places.take_for_administration(client)
        } else {
            places.take(client)
        };
        place.ok_or_else(|| self.0.refusal.error("too many requests are in flight"))
    }

    async fn route(&self, request: Request<Body>) -> Response {
        let routed = AssertUnwindSafe(self.0.router.clone().oneshot(request)).catch_unwind().await;
        match routed {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(|m| (*m).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                ApiError::internal(format!("a handler panicked: {message}")).into_response()
            }
        }
    }

    /// Turns a cause into a line of the log and an id for the client (T45).
    fn finish(&self, response: Response) -> Response {
        let response = with_json_body(response);
        let Some(Cause(cause)) = response.extensions().get() else { return response };
        let mut random = [0; 8];
        self.0.entropy.fill(&mut random);
        let id = format!("{:016x}", u64::from_be_bytes(random));
        tracing::error!(id, cause, "request failed ({id}): {cause}");
        ApiError::internal_with_id(&id).into_response()
    }
}

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::DELETE, Method::OPTIONS])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, body::IDEMPOTENCY_KEY])
        .expose_headers([RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(24 * 3600))
}

fn check_headers(request: &Request<Body>) -> Result<(), ApiError> {
    let headers = request.headers();
    if headers.len() > limits::HEADER_FIELDS {
        limits::hit("header_fields");
        let (most, got) = (limits::HEADER_FIELDS, headers.len());
        return Err(ApiError::headers_too_large(format!("{got} header fields; the most is {most}")));
    }
    let line = request.method().as_str().len() + uri_bytes(request.uri()) + " HTTP/1.1\r\n".len() + 1;
    let fields: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len() + ": \r\n".len()).sum();
    if line + fields > limits::HEADER_BYTES {
        limits::hit("header_bytes");
        let (most, got) = (limits::HEADER_BYTES, line + fields);
        return Err(ApiError::headers_too_large(format!("{got} bytes of headers; the most is {most}")));
    }
    Ok(())
}

fn uri_bytes(uri: &Uri) -> usize {
    uri.path_and_query().map_or(0, |p| p.as_str().len()) + uri.authority().map_or(0, |a| a.as_str().len())
}

/// Keeps a request's place until the last byte of its answer is gone: the connection looks for it.
fn held(mut response: Response, place: Place) -> Response {
    response.extensions_mut().insert(Arc::new(place));
    response
}

/// The template of the route that was taken, told to [`Front::answer`] from inside the router. A set of
/// labels that clients could choose would grow without bound (T31).
#[derive(Debug, Clone, Default)]
struct Route(Arc<std::sync::OnceLock<String>>);

async fn note_route(request: Request<Body>) -> Request<Body> {
    let extensions = request.extensions();
    if let (Some(route), Some(path)) = (extensions.get::<Route>(), extensions.get::<MatchedPath>()) {
        let _ = route.0.set(path.as_str().to_owned());
    }
    request
}

fn count(method: &Method, route: &Route, status: StatusCode, started: Instant) {
    let route = route.0.get().map_or("none", String::as_str).to_owned();
    let took = started.elapsed();
    tracing::debug!(%method, route, status = status.as_u16(), ?took, "{method} {route}: {status}");
    let class = match status.as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    let method = match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let labels = [("route", route.clone()), ("method", method.to_owned()), ("status", class.to_owned())];
    metrics::counter!("floe_http_requests_total", &labels).increment(1);
    metrics::histogram!("floe_http_request_seconds", "route" => route).record(took);
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Body;
    use http::header::{ALLOW, CONTENT_TYPE, HOST};
    use http::{HeaderName, HeaderValue, Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::public_host;
    use crate::limits::{HEADER_BYTES, HEADER_FIELDS};
    use crate::testing::{Options, front, front_for_pulls};

    fn request(method: &str, uri: &str) -> Request<Body> {
        Request::builder().method(method).uri(uri).header(HOST, "localhost:4780").body(Body::empty()).unwrap()
    }

    async fn send(options: &Options, request: Request<Body>) -> (http::response::Parts, String) {
        let (parts, body) = front(options).into_service().oneshot(request).await.unwrap().into_parts();
        (parts, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn status(options: &Options, request: Request<Body>) -> u16 {
        send(options, request).await.0.status.as_u16()
    }

    #[tokio::test]
    async fn m02_what_no_handler_answers_is_json_too() {
        for (method, uri, status, reason) in [
            ("GET", "/nothing", 404, "NOT_FOUND"),
            ("GET", "/p/gold/pins", 404, "NOT_FOUND"),
            ("PUT", "/ok", 405, "METHOD_NOT_ALLOWED"),
            ("GET", "/refused", 400, "BAD_REQUEST"),
            ("GET", "/panic", 500, "INTERNAL_SERVER_ERROR"),
            ("GET", "/cause", 500, "INTERNAL_SERVER_ERROR"),
        ] {
            let (parts, body) = send(&Options::default(), request(method, uri)).await;
            assert_eq!(parts.status, status, "{uri}");
            assert_eq!(parts.headers[CONTENT_TYPE], "application/json", "{uri}");
            assert_eq!(
                parts.headers["access-control-allow-origin"], "*",
                "{uri}: a browser may read refusals"
            );
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["error"]["reason"], reason, "{uri}");
        }
        let (parts, _) = send(&Options::default(), request("PUT", "/ok")).await;
        assert_eq!(parts.headers[ALLOW], "GET,HEAD,POST");
    }

    #[tokio::test]
    async fn t45_an_internal_error_shows_an_id_and_no_cause() {
        for uri in ["/panic", "/cause"] {
            let (_, body) = send(&Options::default(), request("GET", uri)).await;
            assert!(!body.contains("secret-host"), "{body}");
            assert!(body.contains("the log says more under 0000000000000000"), "{body}");
        }
    }

    #[tokio::test]
    async fn headers_over_100_fields_are_431() {
        for (fields, want) in [(HEADER_FIELDS - 1, 200), (HEADER_FIELDS, 200), (HEADER_FIELDS + 1, 431)] {
            let mut request = request("GET", "/ok");
            for i in request.headers().len()..fields {
                let name: HeaderName = format!("x-{i}").parse().unwrap();
                request.headers_mut().insert(name, HeaderValue::from_static("v"));
            }
            assert_eq!(status(&Options::default(), request).await, want, "{fields}");
        }
    }

    #[tokio::test]
    async fn headers_over_16_kib_are_431() {
        let head = "GET /ok HTTP/1.1\r\nhost: localhost:4780\r\nx-long: \r\n".len();
        for (bytes, want) in [(HEADER_BYTES - 1, 200), (HEADER_BYTES, 200), (HEADER_BYTES + 1, 431)] {
            let mut request = request("GET", "/ok");
            let long = HeaderValue::from_str(&"v".repeat(bytes - head)).unwrap();
            request.headers_mut().insert("x-long", long);
            assert_eq!(status(&Options::default(), request).await, want, "{bytes}");
        }
        let request = request("GET", &format!("/ok?{}", "q".repeat(HEADER_BYTES)));
        let (parts, body) = send(&Options::default(), request).await;
        assert_eq!(parts.status, 431);
        assert!(body.contains("HEADERS_TOO_LARGE"), "{body}");
    }

    /// A page of any site can give its own name the address 127.0.0.1 and then talk to us as its own origin.
    #[tokio::test]
    async fn t29_a_loopback_listener_answers_to_its_own_names_alone() {
        let with_host = |host: &str| {
            let mut request = request("GET", "/ok");
            request.headers_mut().insert(HOST, HeaderValue::from_str(host).unwrap());
            request
        };
        let local = Options::default();
        let public = Options { public_host: Some("pins.example.org".to_owned()), ..Options::default() };
        let wildcard = Options { listens_on: SocketAddr::from(([0, 0, 0, 0], 0)), ..Options::default() };
        for good in ["localhost", "LocalHost:1", "localhost.", "127.0.0.1", "127.9.9.9:80", "[::1]:4780"] {
            assert_eq!(status(&local, with_host(good)).await, 200, "{good}");
            assert_eq!(status(&public, with_host(good)).await, 200, "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.0.1",
            "[::2]",
            "",
            "a@localhost",
        ] {
            assert_eq!(status(&local, with_host(bad)).await, 403, "{bad}");
            assert_eq!(status(&public, with_host(bad)).await, 403, "{bad}");
        }
        assert_eq!(status(&local, with_host("pins.example.org")).await, 403);
        assert_eq!(status(&public, with_host("Pins.Example.org:443")).await, 200);
        assert_eq!(status(&wildcard, with_host("anything.example")).await, 200);

        let mut twice = with_host("localhost");
        twice.headers_mut().append(HOST, HeaderValue::from_static("evil.example"));
        assert_eq!(status(&local, twice).await, 403);
        let mut none = with_host("localhost");
        none.headers_mut().remove(HOST);
        assert_eq!(status(&local, none).await, 403);
        let mut absolute = with_host("localhost");
        *absolute.uri_mut() = "http://evil.example/ok".parse().unwrap();
        assert_eq!(status(&local, absolute).await, 403);
    }

    #[tokio::test]
    async fn a_request_is_local_only_if_nothing_speaks_against_it() {
        let ask = async |options: &Options, host: &'static str, header: Option<&'static str>| {
            let mut request = request("GET", "/local");
            request.headers_mut().insert(HOST, HeaderValue::from_static(host));
            if let Some(name) = header {
                request.headers_mut().insert(name, HeaderValue::from_static("x"));
            }
            send(options, request).await.1
        };
        let local = Options::default();
        assert_eq!(ask(&local, "localhost", None).await, "true");
        for header in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"] {
            assert_eq!(ask(&local, "localhost", Some(header)).await, "false", "{header}");
        }
        let public = Options { public_host: Some("pins.example.org".to_owned()), ..Options::default() };
        assert_eq!(ask(&public, "localhost", None).await, "false");
        assert_eq!(ask(&public, "pins.example.org", None).await, "false");
        let wildcard = Options { listens_on: SocketAddr::from(([0, 0, 0, 0], 0)), ..Options::default() };
        assert_eq!(ask(&wildcard, "localhost", None).await, "false");
    }

    #[tokio::test]
    async fn js_cors_preflight_needs_no_token() {
        let mut preflight = request("OPTIONS", "/ok");
        for (name, value) in [
            ("origin", "https://app.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ] {
            preflight.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let (parts, _) = send(&Options::default(), preflight).await;
        assert_eq!(parts.status, 200);
        assert_eq!(parts.headers["access-control-allow-origin"], "*");
        assert_eq!(parts.headers["access-control-allow-methods"], "GET,POST,DELETE,OPTIONS");
        assert_eq!(
            parts.headers["access-control-allow-headers"],
            "authorization,content-type,idempotency-key"
        );
    }

    #[tokio::test]
    async fn t22_a_client_behind_a_proxy_has_its_own_slots() {
        let mut options = Options { trusted: vec!["127.0.0.1/32".parse().unwrap()], ..Options::default() };
        options.pace.requests_per_client = 2;
        let app = front(&options).into_service();
        let from = |client: &'static str| {
            let mut request = request("GET", "/ok");
            request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static(client));
            request.extensions_mut().insert(crate::client::Peer([127, 0, 0, 1].into()));
            app.clone().oneshot(request)
        };
        let held = [from("1.2.3.4").await.unwrap(), from("1.2.3.4").await.unwrap()];
        let third = from("1.2.3.4").await.unwrap();
        assert_eq!((third.status().as_u16(), &third.headers()["retry-after"]), (429, &HeaderValue::from(1)));
        assert_eq!(from("1.2.3.5").await.unwrap().status(), 200);
        drop(held);
        assert_eq!(from("1.2.3.4").await.unwrap().status(), 200);
    }

    /// A 429 ends a transfer of Boost's for good, and with it the deal: of the pull listener each bound on requests is a 503.
    #[tokio::test]
    async fn a_provider_over_a_bound_of_requests_is_told_to_come_back() {
        for (per_client, all) in [(1, 9), (9, 1)] {
            let mut options = Options::default();
            (options.pace.requests_per_client, options.pace.requests) = (per_client, all);
            let app = front_for_pulls(&options).into_service();
            let ask = |uri: &str| {
                let mut request = request("GET", uri);
                request.extensions_mut().insert(crate::client::Peer([203, 0, 113, 5].into()));
                app.clone().oneshot(request)
            };
            let held = ask("/endless").await.unwrap();
            let second = ask("/ok").await.unwrap();
            assert_eq!(
                (second.status().as_u16(), &second.headers()["retry-after"]),
                (503, &HeaderValue::from(30)),
                "{per_client} of one, {all} of all"
            );
            drop(held);
            assert_eq!(ask("/ok").await.unwrap().status(), 200);
        }
    }

    #[tokio::test]
    async fn t31_clients_cannot_make_labels() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let rendered = recorder.handle();
        let _here = metrics::set_default_local_recorder(&recorder);
        let options = Options::default();
        let mut series = 0;
        for i in 0..200 {
            let method = ["GET", "BREW", "PROPFIND"][i % 3];
            for uri in [format!("/item/{i}"), format!("/nothing/{i}"), format!("/psa/item/{i}?q={i}")] {
                status(&options, request(method, &uri)).await;
            }
            if i == 5 {
                series = rendered.render().lines().count();
            }
        }
        assert_eq!(rendered.render().lines().count(), series, "{}", rendered.render());
        assert!(rendered.render().contains(r#"route="/item/{id}""#));
    }

    #[test]
    fn the_public_url_is_absolute() {
        assert_eq!(public_host("https://pins.example.org/x").unwrap(), "pins.example.org");
        assert_eq!(public_host("http://[2001:db8::1]:80").unwrap(), "2001:db8::1");
        for bad in ["", "pins.example.org", "/x", "ftp://x", "https://"] {
            assert!(public_host(bad).is_err(), "{bad}");
        }
    }
}
