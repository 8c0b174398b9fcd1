//! Which failures are tried again.

use super::*;

/// The table of the module's docs: server 0 fails, server 1 answers.
#[tokio::test(start_paused = true)]
async fn each_kind_of_failure_is_tried_again_where_it_is_safe() {
    use Act::*;
    let refused = Fail(ErrorKind::ConnectionRefused);
    // What happens, and whether connect errors, idempotent requests and others are tried again.
    let table = [
        (refused, [true, true, true]),
        (Fail(ErrorKind::HostUnreachable), [false, true, false]),
        (Fail(ErrorKind::NetworkUnreachable), [false, true, false]),
        (Fail(ErrorKind::NetworkDown), [false, true, false]),
        (Fail(ErrorKind::AddrNotAvailable), [true, true, true]),
        (Fail(ErrorKind::ConnectionReset), [false, true, false]),
        (Fail(ErrorKind::TimedOut), [false, true, false]),
        (Fail(ErrorKind::BrokenPipe), [false, true, false]),
        (Fail(ErrorKind::Other), [false, true, false]),
        (Hang, [false, true, false]),
        (Answer(503), [false, true, false]),
        (Answer(404), [false, false, false]),
        (Answer(200), [false, false, false]),
    ];
    for (act, expected) in table {
        let (calls, make) = backends(move |endpoint| {
            let act = if endpoint == 0 { act } else { Answer(299) };
            (Duration::ZERO, act)
        });
        let balancer = || {
            ServiceBuilder::new()
                .layer(BalanceLayer::new(InOrder))
                .layer(fixed([0, 1]))
                .service(make.clone())
        };
        let connect = FailoverLayer::new(ConnectErrors::default())
            .try_timeout(ms(100))
            .layer(balancer());
        let idempotent = FailoverLayer::new(Idempotent::when(is_get).classify(Statuses))
            .try_timeout(ms(100))
            .layer(balancer());
        let cases = [
            connect.oneshot(Get).await,
            idempotent.clone().oneshot(Get).await,
            idempotent.oneshot(Post).await,
        ];
        let mut expected_calls = Vec::new();
        for (answer, again) in cases.iter().zip(expected) {
            let second = matches!(answer, Ok(299));
            assert_eq!(second, again, "{act:?}: {answer:?}");
            expected_calls.push(0);
            if again {
                expected_calls.push(1);
            }
        }
        assert_eq!(*calls.lock().unwrap(), expected_calls, "{act:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_readiness_is_tried_again_for_any_request() {
    let servers = servers(&[Behaviour::Answer(ms(0))]);
    servers[0].fail_readiness(true);
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(ConnectErrors::default()).backoff(ms(25), ms(25)))
        .layer(BalanceLayer::new(P2c::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed([0]))
        .service(factory(&servers));
    let answer = tokio::spawn(client.clone().oneshot(()));
    settle().await;
    servers[0].fail_readiness(false);
    assert_eq!(answer.await.unwrap().unwrap(), 0);
    // If it never becomes ready, the attempts run out:
    servers[0].fail_readiness(true);
    let error = client.oneshot(()).await.unwrap_err();
    assert_eq!(stopped(&error), Stopped::Attempts);
    assert_eq!(names(&error), ["?", "?", "?"]);
    assert!(std::error::Error::source(&*error).unwrap().is::<NotReady>());
}

#[tokio::test(start_paused = true)]
async fn nobody_to_send_to_is_said_at_once_and_as_it_is() {
    let (_, make) = backends(|_| (Duration::ZERO, Act::Answer(200)));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0; 0]))
        .service(make);
    let start = Instant::now();
    let error = client.oneshot(Get).await.unwrap_err();
    assert!(error.is::<NoEndpoints>());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_users_own_connect_errors_count_wherever_they_are_in_the_chain() {
    #[derive(Debug)]
    struct Dial(io::Error);
    impl fmt::Display for Dial {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("dialling failed")
        }
    }
    impl std::error::Error for Dial {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let policy = ConnectErrors::default();
    let judge = |policy: &dyn RetryPolicy<(), ()>, error| policy.retry(&(), Err(&error));
    let refused = || io::Error::from(ErrorKind::ConnectionRefused);
    assert_eq!(judge(&policy, refused().into()), Retry::Yes);
    assert_eq!(judge(&policy, Dial(refused()).into()), Retry::Yes);
    let other = || BoxError::from(Dial(io::Error::other("no")));
    assert_eq!(judge(&policy, other()), Retry::No);
    let policy = policy.also(|error| error.is::<Dial>());
    assert_eq!(judge(&policy, other()), Retry::Yes);
}
