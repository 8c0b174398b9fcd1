use std::collections::HashSet;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    members::Members,
    reported_weights::apply_reported_weights,
    shared::{Availability, Config, InPanic},
    warm_up::WarmUp,
};
use crate::{
    endpoint::{Address, Endpoint, Status},
    error::{NoEndpoints, Unavailable},
    guard::guarded,
    member::Member,
};

/// Makes the list of members for a snapshot, from what discovery and endpoints say.
pub(super) struct Publisher<A> {
    /// The endpoints whose weight was 0 when the last list was made.
    draining: HashSet<Endpoint<A>>,
    is_in_panic: bool,
    /// Used only in slow start.
    warm_up: WarmUp,
}

/// A list of members, before the policy has built its table.
pub(super) struct Draft<A, S> {
    pub(super) members: Vec<Member<A, S>>,
    pub(super) availability: Availability,
    /// When the first ejection ends, or shares are to grow.
    pub(super) next_change: Option<Instant>,
}

/// How many members there are to pick from.
#[derive(Clone, Copy, Debug)]
struct Counts {
    /// Members that are not draining, not ejected, not unhealthy and not unknown.
    available: usize,
    /// Members that are not draining and not unknown.
    taking: usize,
    /// Members that are not draining, and whose first check is waited for.
    unknown: usize,
}

impl<A: Address> Publisher<A> {
    /// Makes the list of the members in their state at `now`. **O(n)**.
    pub(super) fn draft<S: Clone>(
        &mut self,
        members: &Members<A, S>,
        config: &Config,
        no_endpoints: NoEndpoints,
        now: Instant,
    ) -> Draft<A, S> {
        let (mut members, ejection_ends) = list(members, now);
        self.note_draining(&members);
        let mut next_change = ejection_ends;
        if let Some(slow_start) = &config.slow_start {
            let tick = self.warm_up.warm_up(slow_start, &mut members, now);
            next_change = earlier(next_change, tick.map(|tick| now + tick));
        }
        apply_reported_weights(&mut members);
        let availability = self.judge(config, no_endpoints, &mut members);
        if self.is_in_panic {
            // In a panic too few members are left. No member is held back by slow start, and
            // reported weights are left out too.
            for member in &mut members {
                member.share = member.weight;
            }
        }
        Draft {
            members,
            availability,
            next_change,
        }
    }

    /// Logs which endpoints have started or ended draining.
    fn note_draining<S>(&mut self, members: &[Member<A, S>]) {
        let is_draining = |member: &&Member<A, S>| member.weight == 0;
        if self.draining.is_empty() && !members.iter().any(|member| is_draining(&member)) {
            return;
        }
        let before = std::mem::take(&mut self.draining);
        for member in members {
            let endpoint = &member.endpoint;
            let was_draining = before.contains(endpoint);
            if is_draining(&member) {
                if !was_draining {
                    info!(%endpoint, "draining: no new requests");
                }
                self.draining.insert(endpoint.clone());
            } else if was_draining {
                info!(%endpoint, "no longer draining");
            }
        }
    }

    /// Decides whether there is anything to pick. In a panic, revives the unavailable members.
    fn judge<S>(
        &mut self,
        config: &Config,
        no_endpoints: NoEndpoints,
        members: &mut [Member<A, S>],
    ) -> Availability {
        let count = |is: fn(&Member<A, S>) -> bool| members.iter().filter(|m| is(m)).count();
        let counts = Counts {
            available: count(|member| member.available),
            taking: count(|member| member.weight > 0 && !member.unknown),
            unknown: count(|member| member.weight > 0 && member.unknown),
        };
        let Counts {
            available,
            taking,
            unknown,
        } = counts;
        let share = available as f64 / taking as f64;
        // Not known yet is neither empty nor down: the first checks are awaited.
        let is_awaited = available == 0 && unknown > 0;
        let is_few = available == 0 || share < config.panic_threshold;
        let panics = taking > 0 && is_few && !is_awaited;
        self.note_panic(panics, counts, config, members);
        if is_awaited {
            return Availability::Unreported;
        }
        if taking == 0 {
            return Availability::Empty(no_endpoints.with_draining(members.len()));
        }
        if panics && config.in_panic == InPanic::Fail {
            return Availability::Closed(Unavailable::new(available, taking));
        }
        if panics {
            for member in members {
                let revived = !member.available && member.weight > 0 && !member.unknown;
                member.endpoint.set_revived(revived);
                member.candidate |= revived;
            }
        }
        Availability::Open
    }

    /// Logs the beginning and the end of a panic.
    fn note_panic<S>(
        &mut self,
        panics: bool,
        Counts {
            available, taking, ..
        }: Counts,
        config: &Config,
        members: &[Member<A, S>],
    ) {
        if panics == self.is_in_panic {
            return;
        }
        self.is_in_panic = panics;
        members
            .iter()
            .for_each(|member| member.endpoint.set_revived(false));
        if panics {
            let action = config.in_panic;
            warn!(
                available,
                of = taking,
                ?action,
                "too few endpoints are available: panic"
            );
        } else {
            info!(
                available,
                of = taking,
                "enough endpoints are available again"
            );
        }
    }
}

/// Lists the members with what their endpoints say. Returns when the first ejection ends.
fn list<A: Address, S: Clone>(
    members: &Members<A, S>,
    now: Instant,
) -> (Vec<Member<A, S>>, Option<Instant>) {
    let mut listed = Vec::with_capacity(members.len());
    let mut ejection_ends = None;
    for (id, endpoint, service) in members.iter() {
        let (weight, status) = endpoint.weight_and_status(now);
        if let Status::Ejected { until } = status {
            ejection_ends = earlier(ejection_ends, Some(until));
        }
        let service = match guarded(|| service.clone()) {
            Ok(service) => service,
            Err(panic) => {
                error!(%endpoint, %panic, "the service panicked when it was cloned: left out");
                continue;
            }
        };
        let available = status == Status::Available && weight > 0;
        listed.push(Member {
            endpoint: endpoint.clone(),
            service,
            id,
            weight,
            share: weight,
            available,
            drains: status == Status::Available && weight == 0,
            unknown: status == Status::Unknown,
            candidate: available,
        });
    }
    (listed, ejection_ends)
}

/// Returns the earlier of two moments; `None` if there is neither.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl<A> Publisher<A> {
    pub(super) const fn is_in_panic(&self) -> bool {
        self.is_in_panic
    }
}

impl<A> Default for Publisher<A> {
    fn default() -> Self {
        Self {
            draining: HashSet::new(),
            is_in_panic: false,
            warm_up: WarmUp::default(),
        }
    }
}
