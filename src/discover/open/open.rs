use std::{error::Error, fmt};

use super::{schemes, text::Text};
use crate::discover::source::{Found, StartError};

/// Opens the source that a text names, for example one from a configuration.
///
/// | text | source | feature |
/// |---|---|---|
/// | `static:10.0.0.1:80,[::1]:80` | these addresses, for ever | |
/// | `file:/etc/users.json` or `file:///etc/users.json` | `file` | `file` |
/// | `dns:///users.internal.:8080` or `dns:users.internal.:8080` | `Dns::new` | `dns` |
/// | `dns://10.0.0.53/users.internal.:8080` | the same, asking this server | `dns` |
/// | `srv:///_http._tcp.users.internal.` | `Dns::srv` | `dns` |
/// | `consul:///users?tag=v2` | `Consul::from_env` | `consul` |
/// | `consul://10.0.0.1:8500/users` | the same, at this agent | `consul` |
/// | `kubernetes:///users.shop:http` | `Kubernetes::new("users")` in the namespace `shop` | `kubernetes` |
/// | `cloud-map:///shop.internal/users` | `CloudMap::from_env` | `cloud-map-rustls` |
///
/// The two slashes and a third one may be left out. Parameters follow a question mark, with `&`
/// between:
///
/// | scheme | parameters |
/// |---|---|
/// | `dns`, `srv` | `family` |
/// | `consul` | `tag` (several), `ns`, `dc`, `near`, `filter`, `zone-meta`; without a value: `warnings`, `stale`, `consistent`. Values are percent-decoded |
/// | `kubernetes` | `context`, `kubeconfig`, `family` |
///
/// A `family` is `both`, `v4`, `v6`, `prefer-v4` or `prefer-v6`. A port of Kubernetes is a name or a
/// number, and may be left out if the service has one. The names of `dns:` and `kubernetes:` are as
/// in gRPC and its resolvers.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let found = tower_lb::discover::open("static:10.0.0.1:80,10.0.0.2:80")?;
/// assert_eq!(found.first(std::time::Duration::from_secs(1)).await?.len(), 2);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// # Errors
///
/// If the text names no source, or one of a feature that is off, or if the source can't be started.
/// The error says what is wrong, and at which character.
pub fn open(text: &str) -> Result<Found, OpenError> {
    let error = |kind| OpenError {
        text: text.to_owned(),
        kind,
    };
    let parsed = Text::parse(text).map_err(error)?;
    let source = schemes::made(&parsed).map_err(error)?;
    let not_started = |why| error(Kind::NotStarted(why));
    let source = source.map_err(not_started)?;
    let source = match parsed.scheme {
        "static" => source.named(text),
        _ => source,
    };
    source.start().map_err(not_started)
}

/// Reports that a text names no source that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NoScheme,
    UnknownScheme(String),
    /// What is wrong, and at which character, from 1 on.
    Bad(String, usize),
    #[allow(dead_code, reason = "with all features, none is off")]
    FeatureIsOff(&'static str),
    NotStarted(StartError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        let known = schemes::KNOWN;
        match &self.kind {
            Kind::NoScheme => {
                write!(
                    f,
                    "{text:?} names no source: it has no scheme, one of {known}"
                )
            }
            Kind::UnknownScheme(scheme) => write!(
                f,
                "{text:?} names no source: `{scheme}:` is unknown, there are {known}"
            ),
            Kind::Bad(what, at) => write!(f, "{what}, at character {at} of {text:?}"),
            Kind::FeatureIsOff(feature) => write!(
                f,
                "{text:?} needs the feature `{feature}` of tower-lb, which is off"
            ),
            Kind::NotStarted(why) => write!(f, "{text:?} can't be started: {why}"),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::NotStarted(why) => Some(why),
            _ => None,
        }
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        open(text).expect_err(text).to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_opens_a_source_or_the_error_says_what_is_wrong_where() {
        let known = schemes::KNOWN;
        assert_eq!(
            error(""),
            format!("\"\" names no source: it has no scheme, one of {known}")
        );
        assert_eq!(
            error("ftp:x"),
            format!("\"ftp:x\" names no source: `ftp:` is unknown, there are {known}")
        );
        for (text, expected) in [
            (
                "static:10.0.0.1:80,users",
                "\"users\" is not an address with a port, at character 20",
            ),
            (
                "static://10.0.0.1:80",
                "nothing may stand between `//` and `/`, at character 10",
            ),
            (
                "static://",
                "\"\" is not an address with a port, at character 10",
            ),
            (
                "static:",
                "\"\" is not an address with a port, at character 8",
            ),
            (
                "static:10.0.0.1:80?a=b",
                "the parameter \"a\" is unknown, at character 20",
            ),
            (
                "static://x/10.0.0.1:80",
                "nothing may stand between `//` and `/`, at character 10",
            ),
        ] {
            assert_eq!(error(text), format!("{expected} of {text:?}"));
        }
        for text in [
            "static:10.0.0.1:80, [::1]:80",
            "static:///10.0.0.1:80,[::1]:80",
        ] {
            let found = open(text).unwrap();
            let first = found.first(std::time::Duration::from_secs(1)).await;
            assert_eq!(first.unwrap().len(), 2);
            // It does not end: an end is for sources that could have gone on.
            assert!(!found.state().is_stale());
        }
    }

    /// Each text with the feature that it needs, and the error if the feature is on; none: it opens.
    const TEXTS: [(&str, bool, &str, Option<&str>); 19] = [
        (
            "file",
            cfg!(feature = "file"),
            "file:",
            Some("the path is missing, at character 6"),
        ),
        (
            "file",
            cfg!(feature = "file"),
            "file:///nowhere/users.json",
            None,
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns:///users.internal:8080",
            None,
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns:[::1]:8080?family=v6",
            None,
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns://10.0.0.53/users.internal:80",
            None,
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns://[::1]:5353/users.internal:80",
            None,
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns:users.internal",
            Some("\"users.internal\" is not a name with a port, at character 5"),
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns:a:http",
            Some("\"http\" is not a port, at character 7"),
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns://here/a:80",
            Some("\"here\" is not the address of a server, at character 7"),
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "dns:a:80?family=5",
            Some("a family is `both`, `v4`, `v6`, `prefer-v4` or `prefer-v6`, at character 17"),
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "srv:///_http._tcp.users.internal",
            None,
        ),
        (
            "dns",
            cfg!(feature = "dns"),
            "srv:",
            Some("can't be started: srv : the name is missing"),
        ),
        (
            "consul",
            cfg!(feature = "consul"),
            "consul:///users?tag=v2&tag=a%20b&stale&warnings",
            None,
        ),
        (
            "consul",
            cfg!(feature = "consul"),
            "consul://127.0.0.1:1/users?day=1",
            Some("the parameter \"day\" is unknown, at character 28"),
        ),
        (
            "kubernetes",
            cfg!(feature = "kubernetes"),
            "kubernetes:///users.shop.svc.cluster.local:http?kubeconfig=/nowhere",
            None,
        ),
        (
            "kubernetes",
            cfg!(feature = "kubernetes"),
            "kubernetes:users.shop.example.com:80",
            Some("after the service and its namespace comes nothing, or `svc`, at character 23"),
        ),
        (
            "kubernetes",
            cfg!(feature = "kubernetes"),
            "kubernetes:///:80",
            Some("can't be started: kubernetes :80: the name of the service is none"),
        ),
        (
            "cloud-map-rustls",
            cfg!(feature = "cloud-map-rustls"),
            "cloud-map:users",
            Some("a namespace and a service are needed, with `/` between, at character 11"),
        ),
        (
            "cloud-map-rustls",
            cfg!(feature = "cloud-map-rustls"),
            "cloud-map:/users",
            Some("can't be started: cloud-map /users: the name of the namespace is missing"),
        ),
    ];

    #[tokio::test]
    async fn each_scheme_has_its_grammar_and_its_feature() {
        for (feature, is_on, text, expected) in TEXTS {
            match expected {
                _ if !is_on => {
                    let expected = format!("needs the feature `{feature}` of tower-lb");
                    assert!(error(text).contains(&expected), "{}", error(text));
                }
                Some(expected) => assert!(error(text).contains(expected), "{}", error(text)),
                None => drop(open(text).unwrap()),
            }
        }
    }
}
