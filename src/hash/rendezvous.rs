use super::{
    hosts::Hosts,
    key::{hash_bytes, rehash},
    table::{Lookup, Scheme, sealed::Sealed},
};

/// The settings of a [`Rendezvous`](super::Rendezvous) policy: none.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RendezvousScheme;

/// Hosts that bid for each key: the highest score has it.
///
/// The score of a host of weight `w` is `-w / ln(u)`, with `u` between 0 and 1 from
/// `XXH64(key's hash, seed XXH64(host's key))`. Cost: a lookup is **O(n)**, some nanoseconds a host, and more where
/// weights differ; no table but 24 bytes a host.
///
/// Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6(1), 1998;
/// weights: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005.
#[derive(Debug)]
pub struct RendezvousTable {
    bidders: Box<[Bidder]>,
    /// Whether scores need the logarithm: with one weight for all, the order is that of `u`.
    weighted: bool,
}

#[derive(Debug)]
struct Bidder {
    hash: u64,
    weight: f64,
    position: u32,
}

/// A place in the order of a key.
#[derive(Clone, Debug)]
pub struct Bids {
    hash: u64,
    /// The last one yielded: its score, and its number among the bidders.
    last: Option<(f64, usize)>,
}

impl Sealed for RendezvousScheme {}
impl Sealed for RendezvousTable {}

impl Scheme for RendezvousScheme {
    type Table = RendezvousTable;

    fn build(&self, hosts: &Hosts, _: Option<(&Hosts, &RendezvousTable)>) -> RendezvousTable {
        let bidders = hosts.candidates().map(|host| Bidder {
            hash: hash_bytes(host.key.as_bytes(), 0),
            weight: host.weight.into(),
            position: host.position,
        });
        RendezvousTable {
            bidders: bidders.collect(),
            weighted: hosts.common_weight().is_none(),
        }
    }
}

impl RendezvousTable {
    /// Returns how much a bidder offers for a key: anything above 0.
    #[inline]
    fn score(&self, bidder: &Bidder, hash: u64) -> f64 {
        // 52 bits and a half, of 53: neither 0 nor 1.
        let u = ((rehash(hash, bidder.hash) >> 12) as f64 + 0.5) / 2_f64.powi(52);
        if self.weighted {
            // The standard library's logarithm differs from platform to platform.
            -bidder.weight / libm::log(u)
        } else {
            u
        }
    }

    /// Finds the best bid that is accepted, of those after `last`. Equal bids: the lesser number first.
    #[inline]
    fn best(
        &self,
        hash: u64,
        last: Option<(f64, usize)>,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<(f64, usize)> {
        let mut best: Option<(f64, usize)> = None;
        for (number, bidder) in self.bidders.iter().enumerate() {
            let score = self.score(bidder, hash);
            let was_before = last
                .is_some_and(|(before, at)| score > before || (score == before && number <= at));
            let is_better = best.is_none_or(|(best, _)| score > best);
            if is_better && !was_before && accept(bidder.position as usize) {
                best = Some((score, number));
            }
        }
        best
    }
}

impl Lookup for RendezvousTable {
    type Cursor = Bids;

    fn start(&self, hash: u64) -> Bids {
        Bids { hash, last: None }
    }

    fn step(&self, bids: &mut Bids) -> Option<usize> {
        bids.last = Some(self.best(bids.hash, bids.last, |_| true)?);
        bids.last
            .map(|(_, number)| self.bidders[number].position as usize)
    }

    #[inline]
    fn find(&self, hash: u64, accept: impl FnMut(usize) -> bool) -> Option<usize> {
        let (_, number) = self.best(hash, None, accept)?;
        Some(self.bidders[number].position as usize)
    }
}
