//! The assertions of tower's tests of `balance::p2c`, rewritten. Two differences are intended:
//!
//! - An empty set is ready, and its calls fail with `NoEndpoints`. tower's stays pending.
//! - An endpoint whose `poll_ready` failed stays a member and is tried again. tower forgets it.
//!   While *every* endpoint fails, the balancer is ready and its calls fail with `NotReady`.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Weak,
    task::{Context, Poll, Waker},
};

use rand::{Rng as _, SeedableRng, rngs::SmallRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{BoxError, Layer, Service, discover::Change};
use tower_lb::*;

use crate::support::*;

#[test]
fn a_single_endpoint_is_ready_when_it_is() {
    let mut world = World::new(1);
    world.add();
    assert_eq!(world.poll(), Poll::Pending);
    assert_eq!(world.balance.members().len(), 1);
    world.allow(0);
    assert!(world.poll().is_ready());
    assert_eq!(world.call().unwrap(), 0);
    assert_eq!(world.poll(), Poll::Pending);
    world.servers[&0].server.fail_readiness(true);
    assert!(world.poll().is_ready());
    assert!(world.call().unwrap_err().is::<NotReady>());
    assert_eq!(
        world.balance.members().len(),
        1,
        "it failed, and is a member still"
    );
}

#[test]
fn of_two_endpoints_the_ready_one_is_called() {
    let mut world = World::new(2);
    world.add();
    world.add();
    assert_eq!(world.poll(), Poll::Pending);
    for which in [0, 1, 0] {
        world.allow(which);
        assert!(world.poll().is_ready());
        assert_eq!(world.call().unwrap(), which);
        assert_eq!(world.poll(), Poll::Pending);
    }
    world.allow(0);
    world.allow(1);
    let mut called = Vec::new();
    for _ in 0..2 {
        assert!(world.poll().is_ready());
        called.push(world.call().unwrap());
    }
    called.sort_unstable();
    assert_eq!(called, [0, 1]);
    assert_eq!(world.poll(), Poll::Pending);
}

/// 100 000 rounds of adding, removing, making ready, failing, restoring and calling.
#[test]
fn stress() {
    let mut world = World::new(3);
    for _ in 0..100_000 {
        for _ in 0..world.below(8) {
            world.step();
        }
        let _ = world.check();
    }
    assert!(world.called > 10_000, "only {} calls", world.called);
}

type Handle = Balance<P2c, Constant<Client, u64>, (), usize>;

struct World {
    balance: Handle,
    driver: Pin<Box<dyn Future<Output = ()>>>,
    changes: mpsc::UnboundedSender<Result<Change<usize, Client>, BoxError>>,
    servers: BTreeMap<usize, Known>,
    removed: Vec<Weak<()>>,
    next: usize,
    called: usize,
    rng: SmallRng,
}

/// The model: what the test knows of a server.
struct Known {
    server: Server,
    /// Whether it has a permit that no call has used.
    ready: bool,
    failing: bool,
    alive: Weak<()>,
}

impl World {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let (changes, rx) = mpsc::unbounded_channel();
        let loads = std::cell::Cell::new(0_u64);
        // The loads are arbitrary, because no assertion here may depend on them.
        let layer = tower::layer::layer_fn(move |client| {
            loads.set(loads.get() + 1);
            Constant::new(
                client,
                loads.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60,
            )
        });
        let discover = each(layer).layer(from_discover(UnboundedReceiverStream::new(rx)));
        let (balance, driver) = Balance::pair(discover, P2c::seeded(seed));
        Self {
            balance,
            driver: Box::pin(driver),
            changes,
            servers: BTreeMap::new(),
            removed: Vec::new(),
            next: 0,
            called: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n.max(1) as u64) as usize
    }

    fn step(&mut self) {
        let which = self.below(self.servers.len());
        let which = self.servers.keys().nth(which).copied();
        match (self.below(7), which) {
            (0, Some(which)) => self.remove(which),
            (1, Some(which)) if !self.servers[&which].ready => self.allow(which),
            (2, Some(which)) => self.fail(which, true),
            (3, Some(which)) => self.fail(which, false),
            (4, _) if self.servers.len() < 12 => self.add(),
            (5 | 6, _) => self.check_call(),
            _ => {}
        }
    }

    fn add(&mut self) {
        let server = Server::new(self.next, Behaviour::Answer(ms(0)));
        server.allow(0);
        let client = server.client();
        let alive = client.alive();
        self.changes
            .send(Ok(Change::Insert(self.next, client)))
            .unwrap();
        let known = Known {
            server,
            ready: false,
            failing: false,
            alive,
        };
        self.servers.insert(self.next, known);
        self.next += 1;
    }

    fn remove(&mut self, which: usize) {
        self.removed
            .push(self.servers.remove(&which).unwrap().alive);
        self.changes.send(Ok(Change::Remove(which))).unwrap();
    }

    fn allow(&mut self, which: usize) {
        let known = self.servers.get_mut(&which).unwrap();
        known.ready = true;
        known.server.allow(1);
    }

    fn fail(&mut self, which: usize, failing: bool) {
        let known = self.servers.get_mut(&which).unwrap();
        known.failing = failing;
        known.server.fail_readiness(failing);
    }

    fn poll(&mut self) -> Poll<()> {
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(self.driver.as_mut().poll(cx).is_pending());
        self.balance.poll_ready(cx).map(Result::unwrap)
    }

    fn call(&mut self) -> Result<usize, BoxError> {
        let before: usize = self
            .servers
            .values()
            .map(|known| known.server.calls())
            .sum();
        let mut answer = std::pin::pin!(self.balance.call(()));
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(answer) = answer.as_mut().poll(cx) else {
            panic!("the answer is not there at once");
        };
        let after: usize = self
            .servers
            .values()
            .map(|known| known.server.calls())
            .sum();
        assert_eq!(
            after - before,
            usize::from(answer.is_ok()),
            "exactly one is called"
        );
        answer
    }

    /// Compares readiness with the model. Returns whether a call must succeed, if the balancer is
    /// ready.
    fn check(&mut self) -> Poll<bool> {
        let polled = self.poll();
        let usable = self
            .servers
            .values()
            .any(|known| known.ready && !known.failing);
        // Before the first report the balancer can't know that the set is empty, so it is pending.
        let hopeless = self.next > 0 && self.servers.values().all(|known| known.failing);
        let expected = if usable || hopeless {
            Poll::Ready(usable)
        } else {
            Poll::Pending
        };
        assert_eq!(
            polled.is_ready(),
            expected.is_ready(),
            "{} servers",
            self.servers.len()
        );
        for alive in self.removed.drain(..) {
            assert_eq!(alive.strong_count(), 0, "a removed service is dropped");
        }
        expected
    }

    fn check_call(&mut self) {
        match self.check() {
            Poll::Pending => {}
            Poll::Ready(true) => {
                let which = self.call().unwrap();
                let known = self.servers.get_mut(&which).expect("a member is called");
                assert!(known.ready && !known.failing, "a ready one is called");
                known.ready = false;
                self.called += 1;
            }
            Poll::Ready(false) => {
                let error = self.call().unwrap_err();
                let empty = self.servers.is_empty();
                assert_eq!(
                    (error.is::<NoEndpoints>(), error.is::<NotReady>()),
                    (empty, !empty)
                );
            }
        }
    }
}
