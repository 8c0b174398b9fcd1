//! A member: an endpoint and the service that reaches it.

use std::fmt;

use tower::load::Load;

use crate::endpoint::Endpoint;

/// An endpoint and the service that reaches it.
///
/// [`Balance::members`](crate::Balance::members) lists the members, for example for a dashboard. A
/// member has what the service measures (`member.service().in_flight()`, `member.service().load()`)
/// and what the endpoint knows: weight, status, zone.
pub struct Member<A, S> {
    pub(crate) endpoint: Endpoint<A>,
    pub(crate) service: S,
    /// Grows in the order of joining. Never used twice in one balancer.
    pub(crate) id: u64,
    pub(crate) weight: u32,
    /// What weighted policies go by: `weight`, scaled by slow start and reported weights.
    /// Comparable only within one snapshot.
    pub(crate) share: u32,
    /// Whether the endpoint is not draining, not ejected, not unhealthy and not unknown.
    pub(crate) available: bool,
    /// Whether the endpoint is draining, and not ejected, unhealthy or unknown.
    pub(crate) drains: bool,
    /// Whether its first health check is waited for.
    pub(crate) unknown: bool,
    /// As `available`. In a panic that fails open, true for every member that is not draining and
    /// not unknown.
    pub(crate) candidate: bool,
}

impl<A, S> Member<A, S> {
    /// Returns the endpoint.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint<A> {
        &self.endpoint
    }

    /// Returns the service that reaches the endpoint, and that measures its load.
    #[must_use]
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// Returns the weight that this snapshot was built with.
    ///
    /// Takes no lock, unlike the endpoint's own weight.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns the weight that counts now, relative to those of the other members of this snapshot.
    ///
    /// It is the [`weight`](Self::weight) unless an endpoint warms up in [slow
    /// start](crate::BalanceLayer::slow_start) or endpoints report [weights of their
    /// own](crate::ReportedWeightsLayer). Then it is a number in proportion to the weight, to how
    /// far the endpoint has warmed up and to what it reports.
    #[must_use]
    pub const fn share(&self) -> u32 {
        self.share
    }

    /// Returns whether the member may be picked.
    ///
    /// True for an available member. In a panic that fails open, true for every member that is not
    /// draining and whose first check is not waited for.
    #[must_use]
    pub const fn is_candidate(&self) -> bool {
        self.candidate
    }

    /// Returns whether the endpoint is not draining, not ejected and not unhealthy.
    ///
    /// In a panic, when other members are [candidates](Self::is_candidate) too, this tells which of
    /// them are healthy.
    #[must_use]
    pub const fn is_available(&self) -> bool {
        self.available
    }

    /// Returns the service's load.
    #[must_use]
    pub fn load(&self) -> S::Metric
    where
        S: Load,
    {
        self.service.load()
    }
}

impl<A, S: Clone> Clone for Member<A, S> {
    fn clone(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            service: self.service.clone(),
            ..*self
        }
    }
}

impl<A: fmt::Display, S> fmt::Debug for Member<A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("endpoint", &self.endpoint)
            .field("weight", &self.weight)
            .field("candidate", &self.candidate)
            .finish_non_exhaustive()
    }
}
