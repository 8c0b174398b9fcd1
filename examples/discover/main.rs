//! Shows what a source of targets finds, as it changes, and how the source is.
//!
//! Run: `cargo run -p tower-lb-discover -- dns users.internal:8080`, or with another source:
//! `srv`, `consul`, `kubernetes`, `cloud-map`, `file`, or `open` with what a configuration names.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use tokio::time::{interval, timeout};
use tower::BoxError;
use tower_lb::{
    Target,
    discover::{self, CloudMap, Consul, Dns, Found, Kubernetes, SourceState},
};

/// Prints the targets that a source finds, as they change, and how the source is.
#[derive(Parser)]
struct Arguments {
    /// Ends after so many seconds. Without it, `Ctrl-C` ends it.
    #[arg(long, global = true)]
    seconds: Option<u64>,
    #[command(subcommand)]
    source: Source,
}

#[derive(Subcommand)]
enum Source {
    /// The addresses of a name, such as `users.internal:8080`.
    Dns {
        name_and_port: String,
        /// A server to ask, such as `10.0.0.53:53`; several are possible.
        #[arg(long)]
        server: Vec<SocketAddr>,
    },
    /// The SRV records of a name, such as `_http._tcp.users.internal`.
    Srv {
        name: String,
        /// A server to ask, such as `10.0.0.53:53`; several are possible.
        #[arg(long)]
        server: Vec<SocketAddr>,
    },
    /// The healthy instances of a service in Consul, as `CONSUL_HTTP_ADDR` and its like set.
    Consul {
        service: String,
        /// A tag that instances must have; several are possible.
        #[arg(long)]
        tag: Vec<String>,
        /// Takes instances with warnings as well.
        #[arg(long)]
        warnings: bool,
    },
    /// The ready endpoints of a Kubernetes service.
    Kubernetes {
        service: String,
        #[arg(long)]
        namespace: Option<String>,
        /// The port's name in the service, or its number in the pods.
        #[arg(long)]
        port: Option<String>,
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
        #[arg(long)]
        context: Option<String>,
    },
    /// The instances of a service in AWS Cloud Map, as the environment sets region and credentials.
    CloudMap { namespace: String, service: String },
    /// The targets that a file lists.
    File { path: PathBuf },
    /// What a text names, such as `consul:///users?tag=v2`.
    Open { text: String },
}

impl Source {
    /// Starts the source. Each of these is all that a program needs.
    fn start(self) -> Result<Found, BoxError> {
        let found = match self {
            Self::Dns {
                name_and_port,
                server,
            } => {
                let parts = name_and_port.rsplit_once(':');
                let (name, port) = parts.ok_or("a name and a port, with a colon between")?;
                let dns = Dns::new(name, port.parse()?);
                asking(dns, server).start()?
            }
            Self::Srv { name, server } => asking(Dns::srv(name), server).start()?,
            Self::Consul {
                service,
                tag,
                warnings,
            } => {
                let consul = tag.into_iter().fold(Consul::from_env(service), Consul::tag);
                match warnings {
                    true => consul.with_warnings().start()?,
                    false => consul.start()?,
                }
            }
            Self::Kubernetes {
                service,
                namespace,
                port,
                kubeconfig,
                context,
            } => {
                let mut kubernetes = Kubernetes::new(service);
                if let Some(namespace) = namespace {
                    kubernetes = kubernetes.namespace(namespace);
                }
                if let Some(port) = port {
                    kubernetes = match port.parse::<u16>() {
                        Ok(number) => kubernetes.port(number),
                        Err(_) => kubernetes.port(port),
                    };
                }
                if let Some(path) = kubeconfig {
                    kubernetes = kubernetes.kubeconfig(path);
                }
                if let Some(context) = context {
                    kubernetes = kubernetes.context(context);
                }
                kubernetes.start()?
            }
            Self::CloudMap { namespace, service } => {
                CloudMap::from_env(namespace, service).start()?
            }
            Self::File { path } => discover::file(path).start()?,
            Self::Open { text } => discover::open(&text)?,
        };
        Ok(found)
    }
}

/// Asks these servers, or those of the system.
fn asking(dns: Dns, servers: Vec<SocketAddr>) -> Dns {
    match servers.is_empty() {
        true => dns,
        false => dns.servers(servers),
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The events of the source: that it fails, and that it is well again.
    tracing_subscriber::fmt().without_time().init();
    let arguments = Arguments::parse();
    let found = arguments.source.start()?;
    println!("{} is asked", found.name());
    let watched = watch(&found);
    match arguments.seconds {
        Some(seconds) => {
            let _ = timeout(Duration::from_secs(seconds), watched).await;
        }
        None => tokio::select! {
            () = watched => {}
            ended = tokio::signal::ctrl_c() => ended?,
        },
    }
    println!(
        "{}: {} targets at the end",
        found.name(),
        found.targets().len()
    );
    Ok(())
}

/// Prints what changes, until there will be no further answer.
async fn watch(found: &Found) {
    let mut sets = found.subscribe();
    let mut looks = interval(Duration::from_millis(200));
    let mut known = BTreeMap::new();
    let mut said = String::new();
    loop {
        tokio::select! {
            changed = sets.changed() => if changed.is_err() { return },
            _ = looks.tick() => {}
        }
        let set = sets.borrow_and_update().clone();
        let set = set.iter().flat_map(|targets| targets.iter());
        let set: BTreeMap<_, _> = set
            .map(|target| (target.address, in_words(target)))
            .collect();
        for (address, words) in &known {
            if !set.contains_key(address) {
                println!("- {words}");
            }
        }
        for (address, words) in &set {
            if known.get(address) != Some(words) {
                println!("+ {words}");
            }
        }
        known = set;
        let state = describe(&found.state());
        if state != said {
            println!("= {state}");
            said = state;
        }
    }
}

fn in_words(target: &Target) -> String {
    let mut words = format!("{} weight {}", target.address, target.weight);
    if target.priority > 0 {
        words += &format!(" priority {}", target.priority);
    }
    if let Some(zone) = &target.zone {
        words += &format!(" zone {zone}");
    }
    if let Some(name) = &target.hash_key {
        words += &format!(" named {name}");
    }
    words
}

fn describe(state: &SourceState) -> String {
    let targets = state.targets;
    match &state.last_failure {
        Some(failure) if state.is_failing => {
            format!("{targets} targets; it fails: {}", failure.error)
        }
        _ if state.is_keeping => format!("{targets} targets, which the last answer contradicts"),
        _ if state.last_success.is_none() => "no answer yet".to_owned(),
        _ => format!("{targets} targets"),
    }
}
