use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::{discover::AddressFamily, endpoint::Target};

/// An instance: its id, and its attributes.
pub(super) type Instance<'a> = (&'a str, &'a HashMap<String, String>);

/// How targets are read from instances.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) family: AddressFamily,
    /// For instances that have none.
    pub(super) port: Option<u16>,
    pub(super) weight_attribute: Option<String>,
    pub(super) zone_attribute: String,
}

/// No instance has an IP address and a port; this is one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoAddress(String);

/// Reads the targets of an answer.
pub(super) fn targets<'a>(
    instances: impl Iterator<Item = Instance<'a>>,
    reading: &Reading,
) -> Result<Vec<Target>, NoAddress> {
    let mut targets = Vec::new();
    let mut unreachable = None;
    for instance in instances {
        let found = reading.targets(instance);
        if found.is_empty() {
            unreachable = Some(instance.0);
        }
        targets.extend(found);
    }
    match unreachable {
        Some(id) if targets.is_empty() => Err(NoAddress(id.to_owned())),
        Some(id) => {
            tracing::debug!(id, "no address and port: left out");
            Ok(targets)
        }
        None => Ok(targets),
    }
}

impl Reading {
    fn targets(&self, (id, attributes): Instance<'_>) -> Vec<Target> {
        let get = |key: &str| attributes.get(key).map(|value| value.trim());
        let ip = |key: &str| get(key).and_then(|ip| ip.parse::<IpAddr>().ok());
        let port = get("AWS_INSTANCE_PORT").and_then(|port| port.parse().ok());
        let Some(port) = port.filter(|port| *port != 0).or(self.port) else {
            return Vec::new();
        };
        let v4: Vec<_> = ip("AWS_INSTANCE_IPV4").into_iter().collect();
        let v6: Vec<_> = ip("AWS_INSTANCE_IPV6").into_iter().collect();
        let ips = self.family.choose(v4, v6);
        let weight = self.weight_attribute.as_deref().and_then(get);
        let weight = weight.and_then(|weight| weight.parse().ok()).unwrap_or(1);
        let zone = get(&self.zone_attribute);
        let target = |ip: &IpAddr| {
            let mut target = Target::new(SocketAddr::new(*ip, port)).weight(weight);
            target.zone = zone.map(Into::into);
            // Two endpoints must not have one key.
            match ips.as_slice() {
                [_] => target.hash_key(id),
                _ => target,
            }
        };
        ips.iter().map(target).collect()
    }
}

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(id) = self;
        write!(f, "no instance has an IP address and a port: {id}")
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn read(
        attributes: &[(&str, &str)],
        change: impl FnOnce(&mut Reading),
    ) -> Result<Vec<Target>, NoAddress> {
        let mut reading = Reading {
            family: AddressFamily::PreferV4,
            port: None,
            weight_attribute: Some("weight".to_owned()),
            zone_attribute: "AVAILABILITY_ZONE".to_owned(),
        };
        change(&mut reading);
        let attributes = attributes
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        let attributes: HashMap<_, _> = attributes.collect();
        targets([("i-1", &attributes)].into_iter(), &reading)
    }

    const BOTH: [(&str, &str); 3] = [
        ("AWS_INSTANCE_IPV4", "10.0.0.1"),
        ("AWS_INSTANCE_IPV6", "2001:db8::1"),
        ("AWS_INSTANCE_PORT", "80"),
    ];

    #[test]
    fn attributes_become_address_weight_and_zone() {
        let mut attributes = BOTH.to_vec();
        attributes.extend([("weight", "3"), ("AVAILABILITY_ZONE", "eu-1a")]);
        let expected = Target::new("10.0.0.1:80".parse().unwrap()).weight(3);
        let expected = expected.zone("eu-1a").hash_key("i-1");
        assert_eq!(read(&attributes, |_| ()), Ok(vec![expected]));
        attributes[3].1 = "heavy";
        assert_eq!(read(&attributes, |_| ()).unwrap()[0].weight, 1);
    }

    #[test]
    fn a_family_is_chosen_for_each_instance() {
        let addresses = |attributes: &[(&str, &str)], family| {
            let targets = read(attributes, |reading| reading.family = family);
            let targets = targets.unwrap_or_default().into_iter();
            targets
                .map(|target| target.address.to_string())
                .collect::<Vec<_>>()
        };
        let (v4, v6) = ("10.0.0.1:80", "[2001:db8::1]:80");
        assert_eq!(addresses(&BOTH, AddressFamily::PreferV6), [v6]);
        assert_eq!(addresses(&BOTH, AddressFamily::Both), [v4, v6]);
        assert_eq!(addresses(&BOTH[1..], AddressFamily::PreferV4), [v6]);
        assert!(addresses(&BOTH[1..], AddressFamily::V4).is_empty());
    }

    #[test]
    fn an_instance_without_a_port_has_the_one_that_is_set() {
        assert_eq!(read(&BOTH[..1], |_| ()), Err(NoAddress("i-1".to_owned())));
        let targets = read(&BOTH[..1], |reading| reading.port = Some(8080)).unwrap();
        assert_eq!(targets[0].address.port(), 8080);
        let bad = [BOTH[0], ("AWS_INSTANCE_PORT", "none")];
        assert!(read(&bad, |_| ()).is_err());
        assert!(read(&[("AWS_INSTANCE_CNAME", "a.example.com")], |_| ()).is_err());
    }
}
