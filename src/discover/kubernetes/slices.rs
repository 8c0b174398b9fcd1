use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use crate::{discover::AddressFamily, endpoint::Target};

/// A port of a Kubernetes service: its name, or the number that the pods listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServicePort {
    /// The name of the port in the service, such as `http`.
    Named(String),
    /// The number of the port in the pods, which a service may call by another number.
    Number(u16),
}

/// How targets are read from slices.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// `None`: the only one there is.
    pub(super) port: Option<ServicePort>,
    pub(super) family: AddressFamily,
    pub(super) weight_annotation: Option<String>,
}

/// The slices of one service, as targets.
#[derive(Debug, Default)]
pub(super) struct Slices(BTreeMap<String, Slice>);

/// What one slice lists.
#[derive(Debug, Default)]
struct Slice {
    /// Those that get requests.
    ready: Vec<Target>,
    /// Those that terminate, and still serve: for when none is ready.
    last_resort: Vec<Target>,
    /// The ports of the slice, where the wanted one is not among them.
    other_ports: Vec<String>,
}

/// Why there are no targets though there are slices.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSuchPort {
    wanted: Option<ServicePort>,
    ports: BTreeSet<String>,
}

impl Slices {
    /// Adds a slice, in the place of the one with its name.
    pub(super) fn insert(&mut self, slice: &EndpointSlice, reading: &Reading) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.0.insert(name, reading.slice(slice));
    }

    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        self.0
            .remove(slice.metadata.name.as_deref().unwrap_or_default());
    }

    /// Returns the targets of all slices, each address once.
    pub(super) fn targets(&self, reading: &Reading) -> Result<Vec<Target>, NoSuchPort> {
        let chosen = |of: fn(&Slice) -> &[Target]| {
            let mut seen = HashSet::new();
            let all = self.0.values().flat_map(of);
            let all = all.filter(|target| seen.insert(target.address));
            let is_v4 = |target: &Target| target.address.is_ipv4();
            let (v4, v6) = all.cloned().partition(is_v4);
            reading.family.choose(v4, v6)
        };
        let ready = chosen(|slice| &slice.ready);
        if !ready.is_empty() {
            return Ok(ready);
        }
        let last_resort = chosen(|slice| &slice.last_resort);
        let slices = self.0.values();
        let ports: BTreeSet<_> = slices.flat_map(|slice| slice.other_ports.clone()).collect();
        if last_resort.is_empty() && !ports.is_empty() {
            let wanted = reading.port.clone();
            return Err(NoSuchPort { wanted, ports });
        }
        Ok(last_resort)
    }
}

impl Reading {
    fn slice(&self, slice: &EndpointSlice) -> Slice {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let endpoints = slice.endpoints.as_deref().unwrap_or_default();
        let mut read = Slice::default();
        let Some(port) = self.port(ports) else {
            if !endpoints.is_empty() {
                read.other_ports = ports.iter().map(in_words).collect();
            }
            return read;
        };
        let weight = self.weight(slice);
        for endpoint in endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            // What is absent counts as the API says: as ready, and as serving if it is ready.
            let is_ready = conditions.ready.unwrap_or(true);
            let is_serving = conditions.serving.unwrap_or(is_ready);
            let terminates = conditions.terminating.unwrap_or(false);
            let list = match (is_ready, terminates && is_serving) {
                (true, _) => &mut read.ready,
                (false, true) => &mut read.last_resort,
                (false, false) => continue,
            };
            list.extend(target(endpoint, port, weight));
        }
        read
    }

    /// Returns the number of the wanted port, if the slice has it.
    fn port(&self, ports: &[EndpointPort]) -> Option<u16> {
        let is_tcp = |port: &&EndpointPort| port.protocol.as_deref().is_none_or(|p| p == "TCP");
        let mut ports = ports.iter().filter(is_tcp);
        let port = match &self.port {
            // A slice without ports, or with one without a number, allows any.
            Some(ServicePort::Number(wanted)) => {
                let is_any = ports.clone().all(|port| port.port.is_none());
                let number = i32::from(*wanted);
                return (is_any || ports.any(|port| port.port == Some(number))).then_some(*wanted);
            }
            Some(ServicePort::Named(wanted)) => {
                ports.find(|port| port.name.as_deref().unwrap_or_default() == wanted)
            }
            None => ports.next().filter(|_| ports.next().is_none()),
        };
        port?.port.and_then(|number| u16::try_from(number).ok())
    }

    fn weight(&self, slice: &EndpointSlice) -> u32 {
        let annotations = slice.metadata.annotations.as_ref();
        let key = self.weight_annotation.as_ref();
        let weight = annotations.zip(key).and_then(|(all, key)| all.get(key));
        weight
            .and_then(|weight| weight.trim().parse().ok())
            .unwrap_or(1)
    }
}

fn target(endpoint: &Endpoint, port: u16, weight: u32) -> Option<Target> {
    // Its addresses lead to the same pod: the first one is as good as any.
    let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let mut target = Target::new(SocketAddr::new(ip, port)).weight(weight);
    target.zone = endpoint.zone.as_deref().map(Into::into);
    target.hash_key = lasting_name(endpoint).map(Into::into);
    Some(target)
}

/// Returns the name of a pod that outlives its address: one of a stateful set, which ends with a
/// number.
fn lasting_name(endpoint: &Endpoint) -> Option<&str> {
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = pod.and_then(|pod| pod.name.as_deref());
    let name = endpoint.hostname.as_deref().or(pod)?;
    let (_, number) = name.rsplit_once('-')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(name)
}

fn in_words(port: &EndpointPort) -> String {
    let name = port.name.as_deref().filter(|name| !name.is_empty());
    let number = port
        .port
        .map_or_else(|| "any".to_owned(), |number| number.to_string());
    match name {
        Some(name) => format!("{name} ({number})"),
        None => number,
    }
}

impl From<u16> for ServicePort {
    fn from(number: u16) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for ServicePort {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

impl From<String> for ServicePort {
    fn from(name: String) -> Self {
        Self::Named(name)
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl fmt::Display for NoSuchPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<_> = self.ports.iter().map(String::as_str).collect();
        let ports = ports.join(", ");
        match &self.wanted {
            Some(wanted) => write!(f, "the service has no TCP port {wanted}, but {ports}"),
            None => write!(f, "the service has several ports, choose one of {ports}"),
        }
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading {
            port: None,
            family: AddressFamily::PreferV4,
            weight_annotation: Some("example.com/weight".to_owned()),
        }
    }

    fn endpoint(address: &str) -> Endpoint {
        Endpoint {
            addresses: vec![address.to_owned()],
            ..Endpoint::default()
        }
    }

    fn with_conditions(
        address: &str,
        ready: Option<bool>,
        serving: Option<bool>,
        terminating: Option<bool>,
    ) -> Endpoint {
        let mut endpoint = endpoint(address);
        let conditions = endpoint.conditions.get_or_insert_default();
        conditions.ready = ready;
        conditions.serving = serving;
        conditions.terminating = terminating;
        endpoint
    }

    fn port(name: &str, number: i32) -> EndpointPort {
        EndpointPort {
            name: Some(name.to_owned()),
            port: Some(number),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }
    }

    fn slice(name: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let mut slice = EndpointSlice {
            address_type: "IPv4".to_owned(),
            endpoints: Some(endpoints),
            ports: Some(vec![port("http", 80)]),
            ..EndpointSlice::default()
        };
        slice.metadata.name = Some(name.to_owned());
        slice
    }

    fn of(slices: &[EndpointSlice], reading: &Reading) -> Result<Vec<Target>, String> {
        let mut read = Slices::default();
        for slice in slices {
            read.insert(slice, reading);
        }
        read.targets(reading).map_err(|error| error.to_string())
    }

    fn addresses(slices: &[EndpointSlice]) -> Vec<String> {
        let targets = of(slices, &reading()).expect("the only port");
        targets.iter().map(|t| t.address.ip().to_string()).collect()
    }

    #[test]
    fn what_is_absent_counts_as_the_api_says() {
        let (yes, no) = (Some(true), Some(false));
        let one = |ready, serving, terminating| {
            let endpoints = vec![with_conditions("10.0.0.1", ready, serving, terminating)];
            !addresses(&[slice("a", endpoints)]).is_empty()
        };
        for (ready, serving, terminating, is_used) in [
            (None, None, None, true),
            (yes, yes, no, true),
            (no, None, None, false),
            (no, no, no, false),
            // Not ready for another reason than its end.
            (no, yes, no, false),
            // It terminates: it is used while no other one is ready.
            (no, yes, yes, true),
            (no, no, yes, false),
            (no, None, yes, false),
            (None, None, yes, true),
        ] {
            assert_eq!(
                one(ready, serving, terminating),
                is_used,
                "{ready:?} {serving:?} {terminating:?}"
            );
        }
        let ends = with_conditions("10.0.0.1", no, yes, yes);
        assert_eq!(
            addresses(&[slice("a", vec![ends.clone(), endpoint("10.0.0.2")])]),
            ["10.0.0.2"]
        );
        let other = slice("b", vec![endpoint("10.0.0.2")]);
        assert_eq!(addresses(&[slice("a", vec![ends]), other]), ["10.0.0.2"]);
    }

    #[test]
    fn slices_are_merged_and_an_address_counts_once() {
        let a = slice("a", vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]);
        let b = slice("b", vec![endpoint("10.0.0.2"), endpoint("10.0.0.3")]);
        assert_eq!(
            addresses(&[a.clone(), b.clone()]),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        );
        let mut slices = Slices::default();
        slices.insert(&a, &reading());
        slices.insert(&b, &reading());
        slices.remove(&a);
        assert_eq!(slices.targets(&reading()).unwrap().len(), 2);
        slices.insert(&slice("b", Vec::new()), &reading());
        assert!(slices.targets(&reading()).unwrap().is_empty());
    }

    #[test]
    fn a_pod_with_two_addresses_is_one_target() {
        let v6 = slice("b", vec![endpoint("2001:db8::1")]);
        let both = [slice("a", vec![endpoint("10.0.0.1")]), v6];
        assert_eq!(addresses(&both), ["10.0.0.1"]);
        assert_eq!(addresses(&both[1..]), ["2001:db8::1"]);
        let mut several = endpoint("10.0.0.1");
        several.addresses.push("10.0.0.9".to_owned());
        assert_eq!(addresses(&[slice("a", vec![several])]), ["10.0.0.1"]);
        // A name is no address.
        assert!(addresses(&[slice("a", vec![endpoint("users.example.com")])]).is_empty());
    }

    #[test]
    fn a_port_is_chosen_by_name_or_number() {
        let mut two = slice("a", vec![endpoint("10.0.0.1")]);
        let mut datagrams = port("dns", 53);
        datagrams.protocol = Some("UDP".to_owned());
        two.ports = Some(vec![datagrams, port("http", 80), port("grpc", 81)]);
        let with = |port: Option<ServicePort>| {
            let reading = Reading { port, ..reading() };
            let found = of(std::slice::from_ref(&two), &reading)?;
            Ok::<_, String>(found[0].address.port())
        };
        assert_eq!(with(Some("grpc".into())), Ok(81));
        assert_eq!(with(Some(80.into())), Ok(80));
        let error = |port| with(port).unwrap_err();
        assert_eq!(
            error(None),
            "the service has several ports, choose one of dns (53), grpc (81), http (80)"
        );
        assert!(error(Some(53.into())).starts_with("the service has no TCP port 53, but dns"));
        assert!(error(Some("web".into())).starts_with("the service has no TCP port web, but dns"));
        // Without ports, none is excluded.
        two.ports = None;
        let reading = Reading {
            port: Some(8080.into()),
            ..reading()
        };
        assert_eq!(of(&[two], &reading).unwrap()[0].address.port(), 8080);
    }

    #[test]
    fn zone_weight_and_lasting_names_are_read() {
        let mut pod = endpoint("10.0.0.1");
        pod.zone = Some("eu-1a".to_owned());
        let target_ref = pod.target_ref.get_or_insert_default();
        target_ref.kind = Some("Pod".to_owned());
        let mut names = Vec::new();
        for name in ["web-0", "web-5d8f7c9b-x2k4j", "web", "-"] {
            pod.target_ref.as_mut().unwrap().name = Some(name.to_owned());
            let mut slice = slice("a", vec![pod.clone()]);
            let annotations = slice.metadata.annotations.get_or_insert_default();
            annotations.insert("example.com/weight".to_owned(), "7".to_owned());
            let target = of(&[slice], &reading()).unwrap().remove(0);
            assert_eq!((target.weight, target.zone.as_deref()), (7, Some("eu-1a")));
            names.push(target.hash_key.map(|key| key.to_string()));
        }
        assert_eq!(names, [Some("web-0".to_owned()), None, None, None]);
    }
}
