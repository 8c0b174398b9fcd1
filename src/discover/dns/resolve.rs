use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hickory_resolver::proto::rr::Name;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::{
    dns::Records,
    resolver::{Answer, Failed, Known, Resolver, Servers},
    srv,
};
use crate::{
    discover::AddressFamily,
    endpoint::Target,
    random::{entropy, random_part},
};

/// Looks a name up, again and again.
pub(super) struct Resolve {
    name: Name,
    records: Records,
    servers: Servers,
    family: AddressFamily,
    refresh: RangeInclusive<Duration>,
    /// `None` at first, and after a failure: the system's configuration may be another one then,
    /// and a connection may be broken.
    resolver: Option<Resolver>,
    /// The last answers, which stay while their lookups fail.
    known: Known,
    /// When to ask again; `None` at first, and after a failure.
    due: Option<Instant>,
    rng: SmallRng,
}

impl Resolve {
    pub(super) fn new(
        name: Name,
        records: Records,
        servers: Servers,
        family: AddressFamily,
        refresh: RangeInclusive<Duration>,
    ) -> Self {
        Self {
            name,
            records,
            servers,
            family,
            refresh,
            resolver: None,
            known: HashMap::new(),
            due: None,
            rng: SmallRng::seed_from_u64(entropy()),
        }
    }

    /// Waits until it is time to ask again, and asks.
    pub(super) async fn next(&mut self) -> Result<Vec<Target>, Failed> {
        if let Some(due) = self.due.take() {
            sleep_until(due).await;
        }
        let resolver = match self.resolver.take() {
            Some(resolver) => resolver,
            None => Resolver::new(&self.servers).map_err(Failed::Configuration)?,
        };
        let asked = timeout(LONGEST_ANSWER, self.ask(&resolver)).await;
        let Answer { mut records, ttl } = asked.unwrap_or(Err(Failed::Slow(LONGEST_ANSWER)))?;
        self.resolver = Some(resolver);
        let pause = self.pause(ttl, records.is_empty());
        self.due = Instant::now().checked_add(pause);
        // Servers rotate their answers, and of two targets with one address the first counts.
        records.sort_by(|a, b| {
            let by_weight = b.weight.cmp(&a.weight);
            let by_key = a.hash_key.cmp(&b.hash_key);
            a.priority.cmp(&b.priority).then(by_weight).then(by_key)
        });
        Ok(records)
    }

    /// Returns the time until the next lookup: before the answer expires, and not at the moment
    /// when other clients ask.
    fn pause(&mut self, ttl: Duration, is_empty: bool) -> Duration {
        let (shortest, longest) = (*self.refresh.start(), *self.refresh.end());
        let longest = match is_empty {
            true => longest.min(NOTHING_THERE),
            false => longest,
        };
        let early = ttl / 10 + random_part(ttl / 10, &mut self.rng);
        ttl.saturating_sub(early).min(longest).max(shortest)
    }

    async fn ask(&mut self, resolver: &Resolver) -> Result<Answer<Target>, Failed> {
        match self.records {
            Records::Addresses { port } => {
                let names = vec![self.name.clone()];
                let Answer { records, ttl } = self.look_up(resolver, names).await?;
                let addresses = records.into_iter().flat_map(|(_, addresses)| addresses);
                let target = |ip| Target::new(SocketAddr::new(ip, port));
                let records = addresses.map(target).collect();
                Ok(Answer { records, ttl })
            }
            Records::Srv => {
                let srv = resolver.srv(&self.name).await?;
                let mut names: Vec<Name> = srv.records.iter().map(|r| r.target.clone()).collect();
                names.sort();
                names.dedup();
                let Answer { records, ttl } = self.look_up(resolver, names).await?;
                let addresses: HashMap<Name, Vec<IpAddr>> = records.into_iter().collect();
                let weights = srv::weights(&srv.records);
                let targets = std::iter::zip(&srv.records, weights).flat_map(|(record, weight)| {
                    let addresses = addresses.get(&record.target);
                    srv::targets(record, weight, addresses.map_or(&[], Vec::as_slice))
                });
                let records = targets.collect();
                let ttl = ttl.min(srv.ttl);
                Ok(Answer { records, ttl })
            }
        }
    }

    /// Looks up the addresses of names. Where some lookups fail, their last answers stay.
    async fn look_up(
        &mut self,
        resolver: &Resolver,
        names: Vec<Name>,
    ) -> Result<Answer<(Name, Vec<IpAddr>)>, Failed> {
        let family = self.family;
        let mut lookups = stream::iter(names)
            .map(|name| resolver.addresses(name, family))
            .buffer_unordered(AT_ONCE);
        let (mut records, mut ttl) = (Vec::new(), Duration::MAX);
        let (mut is_fresh, mut failure) = (false, None);
        let mut known = Known::new();
        while let Some(looked_up) = lookups.next().await {
            let name = looked_up.name.clone();
            let found = looked_up.merge(&self.known, &mut known, family);
            is_fresh |= found.is_fresh;
            ttl = ttl.min(found.ttl);
            if let Some(failed) = found.failed {
                debug!(error = %failed, "one of several lookups has failed");
                ttl = ttl.min(SOON);
                failure = Some(failed);
            }
            records.push((name, found.used));
        }
        drop(lookups);
        match failure {
            // What has failed may have had all the addresses.
            Some(failed) if !is_fresh => Err(failed),
            _ => {
                self.known = known;
                Ok(Answer { records, ttl })
            }
        }
    }
}

/// So many names of SRV records are looked up at once.
const AT_ONCE: usize = 16;

/// Servers that take longer are as good as gone.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// The time until a lookup that has failed, beside others that have not, is tried again.
const SOON: Duration = Duration::from_secs(5);

/// The most time between lookups while there are no targets: servers that are about to start.
const NOTHING_THERE: Duration = Duration::from_secs(30);
