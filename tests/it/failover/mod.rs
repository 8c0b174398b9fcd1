//! Failover: which failures are tried again, where, and how often.

use std::{
    collections::HashSet,
    fmt,
    io::{self, ErrorKind},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    sync::watch,
    time::{Instant, advance, sleep, timeout},
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer,
    load_shed::error::Overloaded, service_fn,
};
use tower_lb::{
    budget::TokenThrottle,
    failover::{Reach, Retry, RetryPolicy, Stopped, TryTimedOut},
    hash::{Maglev, Rendezvous, RingHash},
    *,
};

use crate::support::{Behaviour, Server, factory, ms, poll_ready_once, servers, settle};

mod budget;
mod deadline;
mod excluding;
mod hedge;
mod kinds;
mod limit;
mod metastability;
mod tries;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(future)
}

/// What a backend does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Answer(u16),
    Fail(ErrorKind),
    Hang,
}

type Calls = Arc<Mutex<Vec<usize>>>;

/// Makes backends that act as `script(endpoint)` says. Returns the list of the endpoints called,
/// too.
fn backends(
    script: impl Fn(usize) -> (Duration, Act) + Clone + Send + Sync + 'static,
) -> (
    Calls,
    impl Fn(&Endpoint<usize>) -> BoxedBackend + Clone + Send + 'static,
) {
    let calls = Calls::default();
    let seen = calls.clone();
    let make = move |endpoint: &Endpoint<usize>| {
        let (name, script, calls) = (*endpoint.address(), script.clone(), calls.clone());
        BoxedBackend::new(service_fn(move |_: Verb| {
            calls.lock().unwrap().push(name);
            let (after, act) = script(name);
            async move {
                if after > Duration::ZERO {
                    sleep(after).await;
                }
                match act {
                    Act::Answer(status) => Ok(status),
                    Act::Fail(kind) => Err(io::Error::from(kind)),
                    Act::Hang => std::future::pending().await,
                }
            }
        }))
    };
    (seen, make)
}

/// A clonable service of one type.
type BoxedBackend = tower::util::BoxCloneSyncService<Verb, u16, io::Error>;

/// Status 500 and above is a failure.
#[derive(Clone, Copy, Debug)]
struct Statuses;

impl Classify<u16, BoxError> for Statuses {
    fn classify(&self, answer: Result<&u16, &BoxError>) -> Outcome {
        match answer {
            Ok(500..) | Err(_) => Outcome::Failure,
            Ok(400..500) => Outcome::Neutral,
            Ok(_) => Outcome::Success,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Get,
    Post,
}

use Verb::{Get, Post};

fn is_get(request: &Verb) -> bool {
    *request == Get
}

/// Always picks the first candidate, so that the next endpoint to try is known.
#[derive(Clone, Debug)]
struct InOrder;

impl<A, S, Req> Policy<A, S, Req> for InOrder {
    type Table = ();

    fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {}

    fn pick(
        &self,
        (): &(),
        candidates: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        let first = candidates.iter().next();
        first.map_or(Choice::Nobody, |(position, _)| Choice::Member(position))
    }
}

fn names(error: &BoxError) -> Vec<String> {
    let failed = error.downcast_ref::<AttemptsFailed>().expect("attempts");
    let names = failed.attempts().iter();
    names
        .map(|attempt| attempt.endpoint().unwrap_or("?").to_owned())
        .collect()
}

fn stopped(error: &BoxError) -> Stopped {
    let failed = error.downcast_ref::<AttemptsFailed>();
    failed.unwrap_or_else(|| panic!("{error}")).stopped()
}

/// Asks for another try after the given time when the answer is 503.
#[derive(Clone, Debug)]
struct ComeBack(Duration);

impl RetryPolicy<Verb, u16> for ComeBack {
    fn is_idempotent(&self, _: &Verb) -> bool {
        true
    }

    fn retry(&self, _: &Verb, answer: Result<&u16, &BoxError>) -> Retry {
        match answer {
            Ok(503) => Retry::After(self.0),
            _ => Retry::No,
        }
    }
}

/// Server 0 acts after `slow`, the others answer after 1 ms.
fn one_slow(
    slow: Duration,
    act: Act,
) -> (Calls, impl Fn(&Endpoint<usize>) -> BoxedBackend + Clone) {
    backends(move |endpoint| match endpoint {
        0 => (slow, act),
        _ => (ms(1), Act::Answer(200 + endpoint as u16)),
    })
}
