use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;

use crate::endpoint::Target;

/// An instance of a service, as `/v1/health/service` lists it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    node: Node,
    service: Service,
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
    #[serde(default)]
    address: String,
    meta: Option<HashMap<String, String>>,
    locality: Option<Locality>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    #[serde(default)]
    address: String,
    port: u16,
    weights: Option<Weights>,
    locality: Option<Locality>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Locality {
    #[serde(default)]
    zone: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
}

/// How targets are read from instances.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// Whether those with warnings count.
    pub(super) with_warnings: bool,
    /// The key of a node's metadata that holds its zone.
    pub(super) zone_meta: Option<String>,
}

/// Why an answer has no list of targets.
#[derive(Debug)]
pub(super) enum BadAnswer {
    Json(serde_json::Error),
    /// No instance can be reached, this one for example.
    NoAddress(String),
}

/// Reads the targets of an answer.
pub(super) fn targets(answer: &[u8], reading: &Reading) -> Result<Vec<Target>, BadAnswer> {
    let instances: Vec<Instance> = serde_json::from_slice(answer).map_err(BadAnswer::Json)?;
    let mut ids: HashMap<&str, u32> = HashMap::new();
    for instance in &instances {
        *ids.entry(&instance.service.id).or_default() += 1;
    }
    let mut targets = Vec::new();
    let mut unreachable = None;
    for instance in &instances {
        let Some(weight) = instance.weight(reading.with_warnings) else {
            continue;
        };
        let Some(address) = instance.address() else {
            unreachable = Some(instance);
            continue;
        };
        let mut target = Target::new(address).weight(weight);
        target.zone = instance.zone(reading).map(Into::into);
        // An id is one of its agent: by default the name of the service, on every node.
        let Service { id, service, .. } = &instance.service;
        let is_one = id != service && ids.get(id.as_str()) == Some(&1);
        targets.push(match is_one {
            true => target.hash_key(id.as_str()),
            false => target.hash_key(format!("{}/{id}", instance.node.node)),
        });
    }
    match unreachable {
        Some(instance) if targets.is_empty() => Err(BadAnswer::NoAddress(instance.in_words())),
        Some(instance) => {
            tracing::debug!(
                instance = instance.in_words(),
                "no address and port: left out"
            );
            Ok(targets)
        }
        None => Ok(targets),
    }
}

impl Instance {
    /// Returns the weight by the worst of the checks; `None` if it gets no requests.
    fn weight(&self, with_warnings: bool) -> Option<u32> {
        let mut checks = self.checks.iter().flatten();
        let has_warning = checks.clone().any(|check| check.status == "warning");
        if checks.any(|check| !matches!(&*check.status, "passing" | "warning")) {
            return None;
        }
        let weights = self.service.weights.as_ref();
        match has_warning {
            true if !with_warnings => None,
            true => Some(weights.map_or(1, |weights| weights.warning)),
            false => Some(weights.map_or(1, |weights| weights.passing)),
        }
    }

    /// Returns where it is: at its node, if it has no address of its own.
    fn address(&self) -> Option<SocketAddr> {
        let address = match self.service.address.as_str() {
            "" => &self.node.address,
            address => address,
        };
        let ip: IpAddr = address.parse().ok()?;
        let port = self.service.port;
        (port != 0).then_some(SocketAddr::new(ip, port))
    }

    fn zone(&self, reading: &Reading) -> Option<&str> {
        if let Some(key) = &reading.zone_meta {
            let meta = self.node.meta.as_ref()?;
            return meta.get(key).map(String::as_str);
        }
        let zone = |locality: &Locality| !locality.zone.is_empty();
        let own = self.service.locality.as_ref().filter(|l| zone(l));
        let locality = own.or(self.node.locality.as_ref().filter(|l| zone(l)))?;
        Some(&locality.zone)
    }

    fn in_words(&self) -> String {
        let Service {
            id, address, port, ..
        } = &self.service;
        let address = match address.as_str() {
            "" => &self.node.address,
            address => address,
        };
        format!("{id} at {address:?} port {port}")
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => write!(f, "the answer is no list of instances: {error}"),
            Self::NoAddress(instance) => {
                write!(f, "no instance has an IP address and a port: {instance}")
            }
        }
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn instance(id: &str, node: &str) -> Value {
        json!({
            "Node": { "Node": node, "Address": "10.0.0.9", "Meta": { "rack": "r1" } },
            "Service": {
                "ID": id, "Service": "web", "Address": "10.0.0.1", "Port": 80,
                "Weights": { "Passing": 5, "Warning": 2 }, "Tags": null, "Meta": null
            },
            "Checks": [{ "Status": "passing", "CheckID": "serfHealth" }]
        })
    }

    fn read(instances: &[Value], reading: &Reading) -> Result<Vec<Target>, String> {
        let answer = Value::from(instances.to_vec()).to_string();
        targets(answer.as_bytes(), reading).map_err(|error| error.to_string())
    }

    #[test]
    fn checks_select_instances_and_weights() {
        let warnings = Reading {
            with_warnings: true,
            ..Reading::default()
        };
        for (checks, passing_only, with_warnings) in [
            (json!([]), Some(5), Some(5)),
            (Value::Null, Some(5), Some(5)),
            (
                json!([{ "Status": "passing" }, { "Status": "warning" }]),
                None,
                Some(2),
            ),
            (
                json!([{ "Status": "warning" }, { "Status": "critical" }]),
                None,
                None,
            ),
            (json!([{ "Status": "a new one" }]), None, None),
        ] {
            let mut one = instance("web-1", "n1");
            one["Checks"] = checks.clone();
            let weight = |reading: &Reading| {
                let targets = read(std::slice::from_ref(&one), reading).unwrap();
                targets.first().map(|target| target.weight)
            };
            assert_eq!(weight(&Reading::default()), passing_only, "{checks}");
            assert_eq!(weight(&warnings), with_warnings, "{checks}");
        }
    }

    #[test]
    fn an_instance_without_an_address_is_at_its_node() {
        let mut one = instance("web-1", "n1");
        one["Service"]["Address"] = "".into();
        let found = read(&[one.clone()], &Reading::default()).unwrap();
        assert_eq!(found[0].address.to_string(), "10.0.0.9:80");
        one["Service"]["Address"] = "web.example.com".into();
        let error = read(&[one.clone()], &Reading::default()).unwrap_err();
        let expected =
            "no instance has an IP address and a port: web-1 at \"web.example.com\" port 80";
        assert_eq!(error, expected);
        // Beside others, it is left out.
        let other = instance("web-2", "n1");
        assert_eq!(read(&[one, other], &Reading::default()).unwrap().len(), 1);
    }

    #[test]
    fn an_id_is_the_key_for_hashing_if_it_is_unique() {
        let keys = |instances: &[Value]| {
            let targets = read(instances, &Reading::default()).unwrap();
            let keys = targets.into_iter().flat_map(|target| target.hash_key);
            keys.map(|key| key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            keys(&[instance("a", "n1"), instance("b", "n1")]),
            ["a", "b"]
        );
        assert_eq!(
            keys(&[instance("a", "n1"), instance("a", "n2")]),
            ["n1/a", "n2/a"]
        );
        // The default is the service's name: with the first one of its kind, there will be others.
        assert_eq!(keys(&[instance("web", "n1")]), ["n1/web"]);
    }

    #[test]
    fn the_zone_is_that_of_metadata_or_locality() {
        let mut one = instance("web-1", "n1");
        let zone = |one: &Value, key: Option<&str>| {
            let reading = Reading {
                zone_meta: key.map(str::to_owned),
                ..Reading::default()
            };
            let zone = read(std::slice::from_ref(one), &reading)
                .unwrap()
                .remove(0)
                .zone;
            zone.map(|zone| zone.to_string())
        };
        assert_eq!(zone(&one, None), None);
        assert_eq!(zone(&one, Some("rack")).as_deref(), Some("r1"));
        assert_eq!(zone(&one, Some("row")), None);
        one["Node"]["Locality"] = json!({ "Region": "eu", "Zone": "eu-1a" });
        assert_eq!(zone(&one, None).as_deref(), Some("eu-1a"));
        one["Service"]["Locality"] = json!({ "Region": "eu", "Zone": "eu-1b" });
        assert_eq!(zone(&one, None).as_deref(), Some("eu-1b"));
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for answer in ["", "{}", "[{}]", "null", "\u{1}"] {
            let error = targets(answer.as_bytes(), &Reading::default()).unwrap_err();
            let error = error.to_string();
            assert!(
                error.starts_with("the answer is no list of instances"),
                "{error}"
            );
        }
    }
}
