use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::Status;

/// Counts the endpoints of a set by their state. Each change of an endpoint keeps it up.
#[derive(Debug, Default)]
pub(crate) struct Census {
    candidates: AtomicUsize,
    ejected: AtomicUsize,
    available: AtomicUsize,
}

/// A reading of a [`Census`], or what one endpoint adds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Endpoints that are not draining and not unknown.
    pub(crate) candidates: usize,
    /// The candidates from which a breaker keeps requests.
    pub(crate) ejected: usize,
    /// The candidates that are available and whose breaker is closed.
    pub(crate) available: usize,
}

/// What a breaker does to the requests of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerView {
    /// It lets them through.
    Closed,
    /// Nothing: the ejection has ended, and no probe is reserved or under way.
    Idle,
    /// It keeps them out.
    Out,
}

/// An endpoint's entry in one census.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    census: Arc<Census>,
    breaker: BreakerView,
    /// What the census counts for this endpoint.
    counts: Counts,
}

/// The entries of one endpoint: one for each set that counts it, and there is rarely a second one.
// Boxed: every endpoint has one word for it, and only those that are watched have more.
#[derive(Debug, Default)]
#[allow(clippy::box_collection)]
pub(super) struct Entries(Option<Box<Vec<Entry>>>);

impl Census {
    /// Replaces what one endpoint adds. **O(1)**.
    // Relaxed: the counts publish nothing. No count falls below 0, because the changes of one
    // endpoint happen under its lock.
    fn replace(&self, before: Counts, after: Counts) {
        let pairs = [
            (&self.candidates, before.candidates, after.candidates),
            (&self.ejected, before.ejected, after.ejected),
            (&self.available, before.available, after.available),
        ];
        for (count, before, after) in pairs {
            match before < after {
                true => count.fetch_add(after - before, Relaxed),
                false if before > after => count.fetch_sub(before - after, Relaxed),
                false => continue,
            };
        }
    }

    pub(crate) fn read(&self) -> Counts {
        Counts {
            candidates: self.candidates.load(Relaxed),
            ejected: self.ejected.load(Relaxed),
            available: self.available.load(Relaxed),
        }
    }
}

impl Counts {
    pub(crate) fn of(weight: u32, status: Status, breaker: BreakerView) -> Self {
        let is_candidate = weight > 0 && status != Status::Unknown;
        let is_available = breaker == BreakerView::Closed && status == Status::Available;
        Self {
            candidates: usize::from(is_candidate),
            ejected: usize::from(is_candidate && breaker == BreakerView::Out),
            available: usize::from(is_candidate && is_available),
        }
    }
}

impl Entries {
    /// Adds an entry under a number that no other entry has.
    pub(super) fn add(&mut self, number: u64, census: &Arc<Census>, breaker: BreakerView) {
        let entries = self.0.get_or_insert_default();
        entries.reserve_exact(1);
        entries.push(Entry {
            number,
            census: census.clone(),
            breaker,
            counts: Counts::default(),
        });
    }

    /// Removes an entry, if it is still there.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(entry) = self.get_mut(number) {
            entry.census.replace(entry.counts, Counts::default());
        }
        if let Some(entries) = &mut self.0 {
            entries.retain(|entry| entry.number != number);
        }
    }

    pub(super) fn set_breaker(&mut self, number: u64, breaker: BreakerView) {
        if let Some(entry) = self.get_mut(number) {
            entry.breaker = breaker;
        }
    }

    /// Brings each census up to the endpoint's state.
    pub(super) fn update(&mut self, weight: u32, status: Status) {
        for entry in self.0.iter_mut().flat_map(|entries| entries.iter_mut()) {
            let counts = Counts::of(weight, status, entry.breaker);
            entry.census.replace(entry.counts, counts);
            entry.counts = counts;
        }
    }

    /// Returns what the census of this entry counts without the endpoint itself.
    pub(super) fn others(&self, number: u64) -> Option<Counts> {
        let entry = self.0.as_ref()?.iter().find(|e| e.number == number)?;
        let all = entry.census.read();
        // Saturating: the three counts are not read at one moment.
        Some(Counts {
            candidates: all.candidates.saturating_sub(entry.counts.candidates),
            ejected: all.ejected.saturating_sub(entry.counts.ejected),
            available: all.available.saturating_sub(entry.counts.available),
        })
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Entry> {
        let entries = self.0.as_mut()?;
        entries.iter_mut().find(|entry| entry.number == number)
    }
}
