//! One function for each scheme: the source that it names, or the feature that is off.

use std::net::SocketAddr;

use super::{open::Kind, text::Text};
use crate::discover::source::{Source, StartError};

/// What a scheme makes: a source, whose settings may be wrong.
type Made = Result<Result<Source, StartError>, Kind>;

/// The schemes, as an error lists them.
pub(super) const KNOWN: &str =
    "`static:`, `file:`, `dns:`, `srv:`, `consul:`, `kubernetes:` and `cloud-map:`";

pub(super) fn made(text: &Text<'_>) -> Made {
    match text.scheme {
        "static" => fixed(text),
        "file" => file(text),
        "dns" => dns(text),
        "srv" => srv(text),
        "consul" => consul(text),
        "kubernetes" => kubernetes(text),
        "cloud-map" => cloud_map(text),
        scheme => Err(Kind::UnknownScheme(scheme.to_owned())),
    }
}

fn fixed(text: &Text<'_>) -> Made {
    text.without_authority()?;
    text.without_parameters()?;
    let mut addresses = Vec::new();
    for part in text.path.split(',') {
        let bad = |_| text.bad(part, format!("{part:?} is not an address with a port"));
        addresses.push(part.trim().parse::<SocketAddr>().map_err(bad)?);
    }
    Ok(Ok(Source::fixed(addresses)))
}

#[cfg(feature = "file")]
fn file(text: &Text<'_>) -> Made {
    text.without_authority()?;
    text.without_parameters()?;
    if text.path.is_empty() {
        return Err(text.bad(text.path, "the path is missing"));
    }
    Ok(Ok(crate::discover::file(text.absolute_path())))
}

#[cfg(feature = "dns")]
fn dns(text: &Text<'_>) -> Made {
    let parts = text
        .path
        .rsplit_once(':')
        .filter(|(name, port)| !name.is_empty() && !port.is_empty());
    let path = text.path;
    let no_port = || text.bad(path, format!("{path:?} is not a name with a port"));
    let (name, port) = parts.ok_or_else(no_port)?;
    let bad = |_| text.bad(port, format!("{port:?} is not a port"));
    let port = port.parse().map_err(bad)?;
    // An IPv6 address has brackets before a port.
    let name = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    asked(text, crate::discover::Dns::new(name, port))
}

#[cfg(feature = "dns")]
fn srv(text: &Text<'_>) -> Made {
    asked(text, crate::discover::Dns::srv(text.path))
}

/// Sets what DNS may be told.
#[cfg(feature = "dns")]
fn asked(text: &Text<'_>, mut dns: crate::discover::Dns) -> Made {
    if let Some(server) = text.authority {
        let with_port = server.parse::<SocketAddr>();
        let parsed = with_port.or_else(|_| server.parse().map(|ip| SocketAddr::new(ip, 53)));
        let bad = |_| text.bad(server, format!("{server:?} is not the address of a server"));
        dns = dns.servers([parsed.map_err(bad)?]);
    }
    for (name, value) in text.parameters() {
        dns = match name {
            "family" => dns.family(family(text, value)?),
            _ => return Err(text.unknown(name)),
        };
    }
    Ok(dns.source())
}

#[cfg(any(feature = "dns", feature = "kubernetes"))]
fn family(text: &Text<'_>, value: &str) -> Result<crate::discover::AddressFamily, Kind> {
    use crate::discover::AddressFamily;
    match value {
        "both" => Ok(AddressFamily::Both),
        "v4" => Ok(AddressFamily::V4),
        "v6" => Ok(AddressFamily::V6),
        "prefer-v4" => Ok(AddressFamily::PreferV4),
        "prefer-v6" => Ok(AddressFamily::PreferV6),
        _ => Err(text.bad(
            value,
            "a family is `both`, `v4`, `v6`, `prefer-v4` or `prefer-v6`",
        )),
    }
}

#[cfg(feature = "consul")]
fn consul(text: &Text<'_>) -> Made {
    use crate::discover::{Consistency, Consul};
    let decoded = |value: &str| {
        let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
        let bad = |_| text.bad(value, "its percent signs do not make UTF-8");
        decoded.map(String::from).map_err(bad)
    };
    let mut consul = Consul::from_env(decoded(text.path)?);
    if let Some(address) = text.authority {
        consul = consul.address(address);
    }
    for (name, value) in text.parameters() {
        let value = decoded(value)?;
        consul = match name {
            "tag" => consul.tag(value),
            "ns" => consul.namespace(value),
            "dc" => consul.datacenter(value),
            "near" => consul.near(value),
            "filter" => consul.filter(value),
            "zone-meta" => consul.zone_meta(value),
            "warnings" => consul.with_warnings(),
            "stale" => consul.consistency(Consistency::Stale),
            "consistent" => consul.consistency(Consistency::Consistent),
            _ => return Err(text.unknown(name)),
        };
    }
    Ok(consul.source())
}

#[cfg(feature = "kubernetes")]
fn kubernetes(text: &Text<'_>) -> Made {
    use crate::discover::Kubernetes;
    text.without_authority()?;
    let (name, port) = text.path.split_once(':').unwrap_or((text.path, ""));
    let mut labels = name.splitn(3, '.');
    let mut kubernetes = Kubernetes::new(labels.next().unwrap_or_default());
    if let Some(namespace) = labels.next() {
        kubernetes = kubernetes.namespace(namespace);
    }
    if let Some(domain) = labels.next().filter(|domain| !domain.starts_with("svc")) {
        return Err(text.bad(
            domain,
            "after the service and its namespace comes nothing, or `svc`",
        ));
    }
    kubernetes = match port.parse::<u16>() {
        _ if port.is_empty() => kubernetes,
        Ok(number) => kubernetes.port(number),
        Err(_) => kubernetes.port(port),
    };
    for (name, value) in text.parameters() {
        kubernetes = match name {
            "context" => kubernetes.context(value),
            "kubeconfig" => kubernetes.kubeconfig(value),
            "family" => kubernetes.family(family(text, value)?),
            _ => return Err(text.unknown(name)),
        };
    }
    Ok(kubernetes.source())
}

#[cfg(feature = "cloud-map-rustls")]
fn cloud_map(text: &Text<'_>) -> Made {
    text.without_authority()?;
    text.without_parameters()?;
    match text.path.split_once('/') {
        Some((namespace, service)) => {
            Ok(crate::discover::CloudMap::from_env(namespace, service).source())
        }
        None => Err(text.bad(
            text.path,
            "a namespace and a service are needed, with `/` between",
        )),
    }
}

/// Where the feature is off.
macro_rules! off {
    ($($feature:literal: $($scheme:ident),*;)*) => {$($(
        #[cfg(not(feature = $feature))]
        fn $scheme(_: &Text<'_>) -> Made {
            Err(Kind::FeatureIsOff($feature))
        }
    )*)*};
}

off! {
    "file": file;
    "dns": dns, srv;
    "consul": consul;
    "kubernetes": kubernetes;
    "cloud-map-rustls": cloud_map;
}
