use std::{
    any::Any,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    detectors::Tally,
    host::{Host, HostSettings},
};
use crate::{endpoint::Address, metric};

/// What every request reads and writes of its endpoint.
///
/// Seats are never freed: when a host goes, the next one takes its seat. So nobody counts references to them, and a healthy
/// request of which nothing is counted writes nothing.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Seat {
    /// The number of the host that has it: no two have the same, 0 is nobody's.
    number: AtomicU64,
    /// A copy of what the host's door says.
    is_closed: AtomicBool,
    need_tallies: AtomicBool,
    need_some_starts: AtomicBool,
    need_all_starts: AtomicBool,
    /// Failures since the last success.
    in_a_row: AtomicU32,
    /// In this interval: successes in the lower half, failures in the upper one.
    tally: AtomicU64,
    timed: AtomicU64,
    time_nanos: AtomicU64,
    /// The host.
    owner: Mutex<Weak<dyn Any + Send + Sync>>,
}

/// What services and requests hold of their endpoint. Says nothing, and is not heard, when its host has gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    seat: &'static Seat,
    number: u64,
}

/// A seat, for as long as its host lives.
#[derive(Debug)]
pub(super) struct Lease(Ticket);

// Relaxed throughout: who sees late that the door has closed sends one request more, or asks the door in vain, and
// numbers count each by itself. A request that ends while its host's seat changes hands may be counted for the next
// host: as one success, which ends its failures in a row.
impl Ticket {
    /// Returns the seat, while it is this host's.
    #[inline]
    fn own_seat(self) -> Option<&'static Seat> {
        (self.seat.number.load(Relaxed) == self.number).then_some(self.seat)
    }

    /// Returns whether requests go through as they come.
    #[inline]
    pub(super) fn is_closed(self) -> bool {
        self.own_seat().is_none_or(Seat::is_closed)
    }

    /// Returns the time at which a request starts, in ns, if it is to be known at its end; else 0.
    #[inline]
    pub(super) fn start(self) -> u64 {
        // Whoever has the seat: what does not count needs no time.
        if self.seat.need_some_starts.load(Relaxed) {
            self.seat.start_if_timed()
        } else {
            0
        }
    }

    /// Takes the success of a request that was no probe, and that started at `started`.
    #[inline]
    pub(super) fn succeed(self, started: u64) {
        let Some(seat) = self.own_seat() else { return };
        if seat.in_a_row.load(Relaxed) != 0 {
            seat.in_a_row.store(0, Relaxed);
        }
        if seat.need_tallies.load(Relaxed) {
            seat.tally.fetch_add(1, Relaxed);
        }
        if started != 0 {
            seat.time(started);
        }
    }

    /// Takes how long a request has waited for its answer.
    pub(super) fn time(self, started: u64) {
        if let Some(seat) = self.own_seat() {
            seat.time(started);
        }
    }

    /// Returns the host, unless it has gone.
    pub(super) fn host<A: Address>(self) -> Option<Arc<Host<A>>> {
        let owner = self.seat.owner().upgrade()?;
        let host = owner.downcast::<Host<A>>().ok()?;
        // The seat may be another one's by now.
        (host.number() == self.number).then_some(host)
    }
}

impl Seat {
    fn new() -> Self {
        Self {
            number: AtomicU64::new(0),
            is_closed: AtomicBool::new(true),
            need_tallies: AtomicBool::new(false),
            need_some_starts: AtomicBool::new(false),
            need_all_starts: AtomicBool::new(false),
            in_a_row: AtomicU32::new(0),
            tally: AtomicU64::new(0),
            timed: AtomicU64::new(0),
            time_nanos: AtomicU64::new(0),
            owner: Mutex::new(Weak::<()>::new()),
        }
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    /// Takes over what the host's door says; whatever it is, failures are counted anew.
    pub(super) fn set_closed(&self, is_closed: bool) {
        self.in_a_row.store(0, Relaxed);
        self.is_closed.store(is_closed, Relaxed);
    }

    #[inline(never)]
    fn start_if_timed(&self) -> u64 {
        let is_needed = self.need_all_starts.load(Relaxed) || self.is_timed();
        if is_needed { metric::now() } else { 0 }
    }

    /// Returns whether the next request is one of those that are timed: the first ones, and one in 16.
    fn is_timed(&self) -> bool {
        let successes = self.tally.load(Relaxed) & SUCCESSES;
        successes < 64 || successes % 16 == 0
    }

    #[inline(never)]
    fn time(&self, started: u64) {
        let took = metric::now().saturating_sub(started);
        self.timed.fetch_add(1, Relaxed);
        self.time_nanos.fetch_add(took, Relaxed);
    }

    /// Takes a failure; returns how many there have been in a row.
    pub(super) fn fail(&self) -> u32 {
        if self.need_tallies.load(Relaxed) {
            self.tally.fetch_add(1 << 32, Relaxed);
        }
        self.in_a_row.fetch_add(1, Relaxed).saturating_add(1)
    }

    pub(super) fn failures_in_a_row(&self) -> u32 {
        self.in_a_row.load(Relaxed)
    }

    /// Returns what was counted, and starts to count anew.
    pub(super) fn take_tally(&self) -> Tally {
        let tally = self.tally.swap(0, Relaxed);
        Tally {
            successes: tally & SUCCESSES,
            failures: tally >> 32,
            timed: self.timed.swap(0, Relaxed),
            time: Duration::from_nanos(self.time_nanos.swap(0, Relaxed)),
        }
    }

    fn owner(&self) -> MutexGuard<'_, Weak<dyn Any + Send + Sync>> {
        // Nothing under this lock panics.
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    pub(super) fn new(settings: &HostSettings) -> Self {
        let free = free().pop();
        let seat = free.unwrap_or_else(|| Box::leak(Box::new(Seat::new())));
        let need_all_starts = settings.cancelled_after > 0;
        seat.need_tallies.store(settings.need_tallies, Relaxed);
        seat.need_some_starts.store(settings.need_start, Relaxed);
        seat.need_all_starts.store(need_all_starts, Relaxed);
        seat.set_closed(true);
        seat.take_tally();
        let number = NEXT_NUMBER.fetch_add(1, Relaxed);
        seat.number.store(number, Relaxed);
        Self(Ticket { seat, number })
    }

    /// Says whose it is, so that tickets lead there.
    pub(super) fn set_owner<A: Address>(&self, host: &Arc<Host<A>>) {
        let host: Weak<dyn Any + Send + Sync> = Arc::<Host<A>>::downgrade(host);
        *self.seat().owner() = host;
    }

    pub(super) const fn ticket(&self) -> Ticket {
        self.0
    }

    pub(super) const fn seat(&self) -> &'static Seat {
        self.0.seat
    }

    pub(super) const fn number(&self) -> u64 {
        self.0.number
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let seat = self.seat();
        seat.number.store(0, Relaxed);
        *seat.owner() = Weak::<()>::new();
        free().push(seat);
    }
}

/// The lower half of a tally.
const SUCCESSES: u64 = u32::MAX as u64;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// The seats that were given back.
static FREE: Mutex<Vec<&'static Seat>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<&'static Seat>> {
    // Nothing under this lock panics.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::collections::HashSet;

    use tokio::time::Instant;

    use super::{
        super::{OutlierLayer, detectors::Reason},
        *,
    };
    use crate::endpoint::Endpoint;

    #[test]
    fn seats_are_taken_again() {
        let fleet = OutlierLayer::default().fleet();
        let fleet = Arc::new(fleet);
        let mut seats = HashSet::new();
        for number in 0..10_000 {
            let endpoint = Endpoint::new(number);
            let ticket = fleet.insert(&endpoint);
            seats.insert(std::ptr::from_ref(ticket.seat));
            fleet.remove(&endpoint);
        }
        // Other tests take some meanwhile.
        assert!(seats.len() < 100, "{}", seats.len());
    }

    #[test]
    fn an_endpoint_that_has_gone_is_not_heard() {
        let fleet = Arc::new(OutlierLayer::default().fleet::<&str>());
        let (a, b) = (Endpoint::new("a"), Endpoint::new("b"));
        let gone = fleet.insert(&a);
        fleet.remove(&a);
        // Has the seat of the one before, unless another test took it.
        let here = fleet.insert(&b);
        assert!(gone.is_closed(), "who is not watched is not kept waiting");
        assert!(gone.host::<&str>().is_none());
        let host = here.host::<&str>().unwrap();
        assert!(here.host::<String>().is_none(), "another type of address");

        gone.succeed(0);
        assert_eq!(host.take_tally().successes, 0);
        here.succeed(0);
        assert_eq!(host.take_tally().successes, 1);

        host.eject(Reason::Probe, Duration::ZERO, Instant::now());
        assert!(!here.is_closed());
        assert!(gone.is_closed());
        drop((fleet, host));
        assert!(here.is_closed() && here.host::<&str>().is_none());
    }
}
