//! What each run must show.

use super::*;

impl Seen {
    /// Asserts what holds in every run with failover. Returns the number of reads.
    pub(crate) fn check_failover(&self) -> usize {
        let reads: Vec<_> = self.answers.iter().filter(|a| a.by.is_read()).collect();
        let lost = reads.iter().find(|answer| !answer.ok);
        assert!(lost.is_none(), "a read was lost: {lost:?}");
        let twice = self.executed.iter().find(|(_, times)| **times > 1);
        assert_eq!(twice, None, "a write was executed more than once");
        assert!(self.in_flight_at_the_end.iter().all(|&count| count == 0));
        reads.len()
    }

    pub(crate) fn writes_tried_again(&self) -> usize {
        let mut tries: BTreeMap<u64, usize> = BTreeMap::new();
        for call in &self.calls {
            if let By::Write(number) = call.by {
                *tries.entry(number).or_default() += 1;
            }
        }
        tries.values().filter(|&&tries| tries > 1).count()
    }

    pub(crate) fn failures(&self, from: Duration, to: Duration) -> usize {
        let between = self
            .answers
            .iter()
            .filter(|answer| (from..to).contains(&answer.at));
        between.filter(|answer| !answer.ok).count()
    }

    /// Asserts what holds in every run without failover.
    pub(crate) fn check(&self, fault: Fault, victim: IpAddr) {
        let requests = END.as_millis() / PACE.as_millis();
        assert!(
            self.answers.len() as u128 >= requests * 9 / 10,
            "{} answers",
            self.answers.len()
        );
        for answer in &self.answers {
            assert!(
                answer.took <= PATIENCE + Duration::from_millis(20),
                "{answer:?}"
            );
        }
        assert_eq!(
            self.failures(Duration::ZERO, FAULT_BEGINS - PATIENCE),
            0,
            "before the fault"
        );
        assert!(self.in_flight_at_the_end.iter().all(|&count| count == 0));
        // Every server recovers from its fault in time.
        let late = self.failures(FAULT_ENDS + BACK_WITHIN, END);
        assert_eq!(late, 0, "long after the fault");
        let all = &self.statuses_at_the_end;
        assert_eq!(*all, [Status::Available; SERVERS], "in the end");
        let is_back = |call: &&Call| {
            call.at > FAULT_ENDS && call.server == victim && call.by != By::Check && call.ok
        };
        let back = self
            .calls
            .iter()
            .find(is_back)
            .map(|call| call.at - FAULT_ENDS);
        assert!(
            back.is_some_and(|back| back <= BACK_WITHIN),
            "used again after {back:?}"
        );
        // An endpoint that has left the set gets no more calls.
        for sets in self.sets.windows(2) {
            let [(from, before), (to, after)] = sets else {
                continue;
            };
            let is_stray = |call: &&Call| {
                let is_member = [before, after].iter().any(|set| set.contains(&call.server));
                (from..to).contains(&&call.at) && !is_member
            };
            let stray = self.calls.iter().find(is_stray);
            assert_eq!(stray, None, "from {from:?} to {to:?}");
        }
        let failures = self.failures(FAULT_BEGINS - PATIENCE, FAULT_ENDS);
        match fault {
            Fault::Flaps => assert_eq!(failures, 0),
            // Only run with failover.
            Fault::Rolling => {}
            // All links fail at random, so no client could do better than the share of links that
            // works.
            Fault::Loses => {}
            Fault::AllButOne => {
                // Once the balancer knows of the crashes, the last server serves all requests.
                let later = FAULT_BEGINS + ALONE_WITHIN;
                let failures = self.failures(later, FAULT_ENDS);
                assert_eq!(failures, 0, "while one server is there");
            }
            Fault::Delays => assert!(failures <= MOST_FAILURES_OF_DELAYS, "{failures} failures"),
            _ => assert!(failures <= MOST_FAILURES, "{failures} failures"),
        }
    }
}
