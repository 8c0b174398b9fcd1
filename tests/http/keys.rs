//! Hash keys of requests, and sessions.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use ::http::{Request, Response};
use tokio::sync::watch;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    hash::HashKey,
    http::{
        SameSite, SessionLayer,
        key::{ClientIp, Cookie, Extension, Header, Path, Query},
    },
    *,
};

fn request(uri: &str, pairs: &[(&str, &[u8])]) -> Request<()> {
    let mut request = Request::get(uri).body(()).unwrap();
    for (name, value) in pairs {
        let name: ::http::HeaderName = name.parse().unwrap();
        let value = ::http::HeaderValue::from_bytes(value).unwrap();
        request.headers_mut().append(name, value);
    }
    request
}

/// Returns the hash of these bytes, which is the same for every client.
fn of(bytes: &[u8]) -> Option<u64> {
    hash::owned(|bytes: &Vec<u8>| Some(bytes.clone())).hash(&bytes.to_vec(), 0)
}

#[test]
fn headers_are_keys() {
    let key = Header::new("X-Tenant");
    let hash = |pairs: &[(&str, &[u8])]| key.hash(&request("/", pairs), 0);
    assert_eq!(hash(&[("x-tenant", b"a")]), of(b"a"));
    assert_eq!(hash(&[]), None);
    assert_eq!(hash(&[("x-other", b"a")]), None);
    assert_eq!(hash(&[("x-tenant", b"a"), ("x-tenant", b"b")]), of(b"a"));
    assert_eq!(hash(&[("x-tenant", b"")]), of(b""));
    assert_eq!(hash(&[("x-tenant", b"\xff\xfe;=,")]), of(b"\xff\xfe;=,"));
    let huge = vec![b'x'; 1 << 20];
    assert_eq!(hash(&[("x-tenant", &huge)]), of(&huge));
    assert!(std::panic::catch_unwind(|| Header::new("no name")).is_err());
}

#[test]
fn cookies_are_keys() {
    let key = Cookie::new("id");
    let hash = |cookies: &[&[u8]]| {
        let pairs: Vec<_> = cookies.iter().map(|&value| ("cookie", value)).collect();
        key.hash(&request("/", &pairs), 0)
    };
    let seven = of(b"7");
    for cookies in [
        &[&b"id=7"[..]] as &[&[u8]],
        &[b"a=1; id=7; b=2"],
        &[b"a=1;id=7;b=2"],
        &[b"id=7; id=8"],
        &[b"a=1", b"id=7"],
        &[b"  id=7  "],
        &[b"idx=8; xid=9; id=7"],
        &[b";;; ; id=7;"],
        &[b"id; id=7"],
    ] {
        assert_eq!(hash(cookies), seven, "{cookies:?}");
    }
    for cookies in [
        &[] as &[&[u8]],
        &[b""],
        &[b"ID=7"],
        &[b"idx=7"],
        &[b"id"],
        &[b"=id"],
        &[b"i"],
    ] {
        assert_eq!(hash(cookies), None, "{cookies:?}");
    }
    assert_eq!(hash(&[b"id="]), of(b""));
    assert_eq!(hash(&[b"id=\xff\x80=7"]), of(b"\xff\x80=7"));
    assert_eq!(hash(&[b"id=\"7\""]), of(b"\"7\""), "as it was sent");
    let huge = [b"id=".as_slice(), &vec![b'='; 1 << 20]].concat();
    assert_eq!(hash(&[&huge]), of(&huge[3..]));
}

#[test]
fn paths_and_parameters_are_keys() {
    let huge = format!("/?user={}", "x".repeat(60_000));
    let path = |uri: &str| HashKey::<Request<()>>::hash(&Path, &request(uri, &[]), 0);
    assert_eq!(path("/a/b?c=d"), of(b"/a/b"));
    assert_eq!(path("http://host/a/b"), of(b"/a/b"));
    assert_eq!(path("http://host"), of(b"/"));
    assert_ne!(path("/a%2Fb"), path("/a/b"));
    let key = Query::new("user");
    let query = |uri: &str| key.hash(&request(uri, &[]), 0);
    for (uri, expected) in [
        ("/?user=7", of(b"7")),
        ("/?a=1&user=7&b=2", of(b"7")),
        ("/?user=7&user=8", of(b"7")),
        ("/?user=a%20b", of(b"a%20b")),
        ("/?user=7=8", of(b"7=8")),
        (&huge, of(&huge.as_bytes()[7..])),
        ("/?user", of(b"")),
        ("/?user=", of(b"")),
        ("/?&&&user=7", of(b"7")),
        ("/", None),
        ("/?", None),
        ("/?users=7", None),
        ("/?xuser=7", None),
        ("/user=7", None),
    ] {
        assert_eq!(query(uri), expected, "{uri}");
    }
}

#[test]
fn extensions_are_keys() {
    let ip = |address: Option<&str>| {
        let mut request = request("/", &[]);
        if let Some(address) = address {
            let address: SocketAddr = address.parse().unwrap();
            request.extensions_mut().insert(address);
        }
        HashKey::<Request<()>>::hash(&ClientIp, &request, 0)
    };
    assert_eq!(ip(Some("10.0.0.1:80")), of(&[10, 0, 0, 1]));
    assert_eq!(ip(Some("10.0.0.1:81")), ip(Some("10.0.0.1:80")), "any port");
    assert_eq!(ip(Some("[::ffff:10.0.0.1]:80")), ip(Some("10.0.0.1:80")));
    assert_ne!(ip(Some("[::1]:80")), ip(Some("[::2]:80")));
    assert_eq!(ip(None), None);
    #[derive(Clone)]
    struct Tenant(String);
    let key = Extension::new(|tenant: &Tenant| tenant.0.clone());
    let mut tagged = request("/", &[]);
    assert_eq!(key.hash(&tagged, 0), None);
    let huge = "t".repeat(1 << 20);
    tagged.extensions_mut().insert(Tenant(huge.clone()));
    assert_eq!(key.hash(&tagged, 0), of(huge.as_bytes()));
    tagged.extensions_mut().insert(Tenant("t".to_owned()));
    assert_eq!(key.hash(&tagged, 0), of(b"t"));
    // Combined in a tuple, as a policy takes them.
    let both = (
        Header::new("x"),
        Extension::new(|tenant: &Tenant| tenant.0.clone()),
    );
    assert!(both.hash(&tagged, 0).is_some());
}

// Sessions.

type Targets = watch::Sender<Vec<&'static str>>;

/// Builds a client whose answers carry the name of the answering endpoint.
fn client(
    sessions: &SessionLayer,
    targets: &Targets,
) -> impl Service<Request<()>, Response = Response<String>, Error = BoxError, Future: Send> + Clone + use<>
{
    ServiceBuilder::new()
        .layer(BalanceLayer::new(sessions.policy(RoundRobin::default())))
        .layer(sessions.clone())
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(targets.subscribe()))
        .service(|endpoint: &Endpoint<&'static str>| {
            let name = endpoint.to_string();
            service_fn(move |_: Request<()>| {
                std::future::ready(Ok::<_, std::io::Error>(Response::new(name.clone())))
            })
        })
}

/// Sends a request with this cookie. Returns the answering endpoint and the cookie that was set.
async fn send<S>(client: &S, cookie: Option<&str>) -> (String, Option<String>)
where
    S: Service<Request<()>, Response = Response<String>, Error = BoxError> + Clone,
{
    let pairs: Vec<_> = cookie.iter().map(|c| ("cookie", c.as_bytes())).collect();
    let response = client.clone().oneshot(request("/", &pairs)).await.unwrap();
    let set = response.headers().get("set-cookie");
    let set = set.map(|value| value.to_str().unwrap().to_owned());
    (response.into_body(), set)
}

/// The part of a cookie that a browser sends back.
fn pair(set_cookie: &str) -> &str {
    set_cookie.split(';').next().unwrap()
}

#[tokio::test]
async fn a_session_follows_its_endpoint_over_restarts_and_moves_when_it_is_gone() {
    let sessions = SessionLayer::new("lb", [7; 16]);
    let (targets, _rx) = watch::channel(vec!["a", "b", "c"]);
    let first = client(&sessions, &targets);
    let (home, set) = send(&first, None).await;
    let cookie = set.expect("the first answer sets a cookie");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"));
    for _ in 0..10 {
        assert_eq!(
            send(&first, Some(pair(&cookie))).await,
            (home.clone(), None)
        );
    }
    // Without a cookie, requests go round.
    let mut others = HashSet::new();
    for _ in 0..6 {
        others.insert(send(&first, None).await.0);
    }
    assert_eq!(others.len(), 3);
    // Another process has the same key, but lists the set in another order.
    targets.send_replace(vec!["c", "b", "a"]);
    let restarted = client(&SessionLayer::new("lb", [7; 16]), &targets);
    drop(first);
    for _ in 0..10 {
        assert_eq!(
            send(&restarted, Some(pair(&cookie))).await,
            (home.clone(), None)
        );
    }
    // When its endpoint leaves, the session moves once.
    let left: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .filter(|name| *name != home)
        .collect();
    targets.send_replace(left);
    until(async || send(&restarted, Some(pair(&cookie))).await.0 != home).await;
    let (next, set) = send(&restarted, Some(pair(&cookie))).await;
    assert_ne!(next, home);
    let moved = set.expect("a new cookie");
    for _ in 0..10 {
        assert_eq!(
            send(&restarted, Some(pair(&moved))).await,
            (next.clone(), None)
        );
    }
}

/// Waits until the balancer has applied a change.
async fn until(is_so: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if is_so().await {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never comes");
}

#[tokio::test]
async fn of_several_cookies_the_good_one_counts_and_an_error_begins_no_session() {
    let sessions = SessionLayer::new("lb", [7; 16]);
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(sessions.policy(RoundRobin::default())))
        .layer(sessions)
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(["a", "b", "c"]))
        .service(|endpoint: &Endpoint<&'static str>| {
            let name = endpoint.to_string();
            service_fn(move |_: Request<()>| {
                let status = if name == "a" { 503 } else { 200 };
                let mut answer = Response::new(name.clone());
                *answer.status_mut() = status.try_into().unwrap();
                std::future::ready(Ok::<_, std::io::Error>(answer))
            })
        });
    let mut cookies = HashMap::new();
    for _ in 0..3 {
        let (who, set) = send(&client, None).await;
        cookies.insert(who, set);
    }
    assert_eq!(cookies["a"], None, "503");
    let good = pair(cookies["b"].as_ref().unwrap()).to_owned();
    // Other cookies of the same name come from another path, from an older key or from a forger.
    for others in ["lb=x", &format!("lb={}", "0".repeat(32))] {
        for cookies in [format!("{others}; {good}"), format!("{good}; {others}")] {
            for _ in 0..6 {
                assert_eq!(send(&client, Some(&cookies)).await, ("b".to_owned(), None));
            }
        }
    }
}

#[tokio::test]
async fn a_forged_cookie_is_ignored() {
    let sessions = SessionLayer::new("lb", [7; 16]);
    let (targets, _rx) = watch::channel(vec!["a", "b", "c"]);
    let client_of = |sessions: &SessionLayer| client(sessions, &targets);
    let (ours, theirs) = (
        client_of(&sessions),
        client_of(&SessionLayer::new("lb", [8; 16])),
    );
    let (_, set) = send(&theirs, None).await;
    let forged = [
        pair(&set.unwrap()).to_owned(),
        "lb=a".to_owned(),
        "lb=".to_owned(),
        format!("lb={}", "0".repeat(32)),
        format!("lb={}", "f".repeat(100_000)),
        "lb=../../etc/passwd".to_owned(),
        "other=1".to_owned(),
    ];
    for cookie in forged {
        let mut answered = HashSet::new();
        for _ in 0..6 {
            let (who, set) = send(&ours, Some(&cookie)).await;
            assert!(set.is_some(), "a good one is set");
            answered.insert(who);
        }
        assert_eq!(answered.len(), 3, "nobody is chosen by {:.40}", cookie);
    }
    // One digit changed.
    let (home, set) = send(&ours, None).await;
    let mut bytes = pair(&set.unwrap()).to_owned().into_bytes();
    let last = bytes.last_mut().unwrap();
    *last = if *last == b'0' { b'1' } else { b'0' };
    let changed = String::from_utf8(bytes).unwrap();
    let mut answered = HashSet::new();
    for _ in 0..6 {
        answered.insert(send(&ours, Some(&changed)).await.0);
    }
    assert!(answered.len() > 1, "not only {home}");
}

#[tokio::test]
async fn a_session_leaves_an_endpoint_that_is_unavailable_and_attributes_are_set() {
    let sessions = SessionLayer::new("lb", [7; 16])
        .path("/app")
        .max_age(std::time::Duration::from_secs(60))
        .secure();
    let endpoints = Arc::new(Mutex::new(Vec::new()));
    let kept = endpoints.clone();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(sessions.policy(P2c::default())))
        .layer(sessions)
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(["a", "b"]))
        .service(move |endpoint: &Endpoint<&'static str>| {
            kept.lock().unwrap().push(endpoint.clone());
            let name = endpoint.to_string();
            service_fn(move |_: Request<()>| {
                std::future::ready(Ok::<_, std::io::Error>(Response::new(name.clone())))
            })
        });
    let (home, set) = send(&client, None).await;
    let set = set.unwrap();
    assert!(set.ends_with("; Path=/app; HttpOnly; SameSite=Lax; Max-Age=60; Secure"));
    let endpoint = {
        let endpoints = endpoints.lock().unwrap();
        endpoints
            .iter()
            .find(|e| e.to_string() == home)
            .unwrap()
            .clone()
    };
    endpoint.mark_unhealthy();
    until(async || send(&client, Some(pair(&set))).await.0 != home).await;
    endpoint.mark_healthy();
    until(async || send(&client, Some(pair(&set))).await.0 == home).await;
    for name in ["", "a b", "a;b", "ü"] {
        assert!(std::panic::catch_unwind(|| SessionLayer::new(name, [0; 16])).is_err());
    }
}

/// A client of these sessions over targets with weights; 0 drains.
macro_rules! weighted {
    ($policy:expr, $sessions:expr, $targets:expr) => {
        ServiceBuilder::new()
            .layer(BalanceLayer::new($policy))
            .layer($sessions.clone())
            .layer(each(PendingRequestsLayer::default().with_total()))
            .layer(WatchLayer::new($targets.subscribe()))
            .service(|endpoint: &Endpoint<&'static str>| {
                let name = endpoint.to_string();
                service_fn(move |request: Request<()>| {
                    let name = name.clone();
                    async move {
                        if request.uri().path() == "/slow" {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, std::io::Error>(Response::new(name))
                    }
                })
            })
    };
}

#[tokio::test]
async fn a_session_stays_at_a_draining_home_and_none_begins_there() {
    for leaves in [false, true] {
        let mut sessions = SessionLayer::new("lb", [7; 16]);
        if leaves {
            sessions = sessions.leave_draining();
        }
        let (targets, _rx) = watch::channel(vec![("a", 1), ("b", 1), ("c", 1)]);
        let client = weighted!(sessions.policy(RoundRobin::default()), sessions, targets);
        let (home, set) = send(&client, None).await;
        let cookie = set.unwrap();
        targets.send_modify(|list| {
            let home = list.iter_mut().find(|(name, _)| *name == home).unwrap();
            home.1 = 0;
        });
        until(async || {
            let members = client.members();
            let mut members = members.iter();
            members.any(|member| member.weight() == 0)
        })
        .await;
        for _ in 0..10 {
            let (answered, set) = send(&client, Some(pair(&cookie))).await;
            assert_eq!((answered == home, set.is_none()), (!leaves, !leaves));
            assert_ne!(send(&client, None).await.0, home, "no new session");
        }
        // It is ejected, too: then the session moves.
        let members = client.members();
        let draining = members.iter().find(|member| member.weight() == 0).unwrap();
        draining.endpoint().mark_unhealthy();
        until(async || send(&client, Some(pair(&cookie))).await.0 != home).await;
    }
}

#[tokio::test]
async fn the_key_changes_and_no_session_moves() {
    let (targets, _rx) = watch::channel(vec!["a", "b", "c"]);
    let old = client(&SessionLayer::new("lb", [1; 16]), &targets);
    let (home, set) = send(&old, None).await;
    let cookie = set.unwrap();
    // A process that is not yet at the new key follows its cookies.
    let ahead = client(
        &SessionLayer::new("lb", [1; 16]).previous_key([2; 16]),
        &targets,
    );
    let new = client(
        &SessionLayer::new("lb", [2; 16]).previous_key([1; 16]),
        &targets,
    );
    let (answered, set) = send(&new, Some(pair(&cookie))).await;
    assert_eq!(answered, home);
    let renewed = set.expect("a cookie of the new key");
    assert_ne!(pair(&renewed), pair(&cookie));
    for client in [&new, &ahead] {
        assert_eq!(send(client, Some(pair(&renewed))).await.0, home);
    }
    assert_eq!(send(&new, Some(pair(&renewed))).await.1, None);
    // Without the old key, its cookies say nothing.
    let later = client(&SessionLayer::new("lb", [2; 16]), &targets);
    let mut seen = HashSet::new();
    for _ in 0..3 {
        seen.insert(send(&later, Some(pair(&cookie))).await.0);
    }
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn cookies_for_other_sites_are_secure() {
    let attributes = |sessions: SessionLayer| async move {
        let (targets, _rx) = watch::channel(vec!["a"]);
        let (_, set) = send(&client(&sessions, &targets), None).await;
        set.unwrap().split_once(';').unwrap().1.to_owned()
    };
    let sessions = || SessionLayer::new("lb", [7; 16]);
    assert_eq!(
        attributes(sessions().same_site(SameSite::None).partitioned()).await,
        " Path=/; HttpOnly; SameSite=None; Secure; Partitioned"
    );
    assert_eq!(
        attributes(sessions().same_site(SameSite::Strict)).await,
        " Path=/; HttpOnly; SameSite=Strict"
    );
}

/// Somebody has collected a cookie and sends all requests with it.
#[tokio::test]
async fn collected_cookies_do_not_send_all_to_one_endpoint() {
    let sessions = SessionLayer::new("lb", [7; 16]);
    let (targets, _rx) = watch::channel(vec![("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
    let policy = sessions.policy(RoundRobin::default()).bounded(2.0);
    let client = weighted!(policy, sessions, targets);
    let (home, set) = send(&client, None).await;
    let cookie = set.unwrap();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let request = request("/slow", &[("cookie", pair(&cookie).as_bytes())]);
        requests.spawn(client.clone().oneshot(request));
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let members = client.members();
    let counts: Vec<_> = members
        .iter()
        .map(|member| (member.endpoint().to_string(), member.service().in_flight()))
        .collect();
    let at_home = counts.iter().find(|(name, _)| *name == home).unwrap().1;
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<usize>(), 80);
    assert!((35..=41).contains(&at_home), "{counts:?}");
    // Where nobody has too much, a session stays at home.
    requests.shutdown().await;
    assert_eq!(send(&client, Some(pair(&cookie))).await, (home, None));
}

/// Nobody else takes requests, but the sessions' home works.
#[tokio::test]
async fn sessions_go_home_when_everybody_drains() {
    let sessions = SessionLayer::new("lb", [7; 16]);
    let (targets, _rx) = watch::channel(vec![("a", 1), ("b", 1)]);
    let client = weighted!(sessions.policy(RoundRobin::default()), sessions, targets);
    let (home, set) = send(&client, None).await;
    let cookie = set.unwrap();
    targets.send_replace(vec![("a", 0), ("b", 0)]);
    until(async || {
        let members = client.members();
        members.iter().all(|member| member.weight() == 0)
    })
    .await;
    assert_eq!(send(&client, Some(pair(&cookie))).await, (home, None));
    let error = client.clone().oneshot(request("/", &[])).await.unwrap_err();
    assert!(error.is::<NoEndpoints>(), "{error}");
}
