//! How classifiers judge an answer.

use std::io;

use ::http::HeaderMap;
use tower_lb::{
    Classify, Outcome,
    http::{ClassifyEnd, GrpcStatus, HttpStatus},
};

use crate::support::*;

fn http(classifier: HttpStatus, status: u16, pairs: &[(&'static str, &str)]) -> Outcome {
    Classify::<_, io::Error>::classify(&classifier, Ok(&response(status, pairs, ())))
}

#[test]
fn every_status_has_its_outcome() {
    let classifier = HttpStatus::new();
    for status in 100..1000 {
        let expected = match status {
            100..400 => Outcome::Success,
            400..500 => Outcome::Neutral,
            _ => Outcome::Failure,
        };
        assert_eq!(http(classifier, status, &[]), expected, "{status}");
    }
    assert_eq!(
        http(classifier, 429, &[("retry-after", "1")]),
        Outcome::Neutral
    );
    assert_eq!(
        http(classifier, 503, &[("retry-after", "1")]),
        Outcome::Failure
    );
    assert_eq!(
        http(classifier, 404, &[("retry-after", "1")]),
        Outcome::Neutral
    );
    let error = io::Error::other("no");
    let answer: Result<&::http::Response<()>, _> = Err(&error);
    assert_eq!(classifier.classify(answer), Outcome::Failure);
}

#[test]
fn statuses_and_classes_can_be_set() {
    let classifier = HttpStatus::new()
        .class(4, Outcome::Success)
        .status(404, Outcome::Failure)
        .status(501, Outcome::Neutral)
        .status(404, Outcome::Neutral)
        .status(429, Outcome::Failure);
    for (status, expected) in [
        (400, Outcome::Success),
        (404, Outcome::Neutral),
        (500, Outcome::Failure),
        (501, Outcome::Neutral),
        (200, Outcome::Success),
    ] {
        assert_eq!(http(classifier, status, &[]), expected, "{status}");
    }
    assert_eq!(
        http(classifier, 429, &[("retry-after", "1")]),
        Outcome::Failure
    );
    for class in [0, 6] {
        let refused = std::panic::catch_unwind(|| HttpStatus::new().class(class, Outcome::Neutral));
        assert!(refused.is_err());
    }
    let eight = (400..408).fold(HttpStatus::new(), |c, s| c.status(s, Outcome::Failure));
    assert!(std::panic::catch_unwind(move || eight.status(408, Outcome::Failure)).is_err());
}

#[test]
fn every_grpc_code_has_its_outcome_in_headers_and_in_trailers() {
    let classifier = GrpcStatus::new();
    let table = (0..=17).map(|code| {
        let expected = match code {
            0 => Outcome::Success,
            4 | 13 | 14 | 17 => Outcome::Failure,
            _ => Outcome::Neutral,
        };
        (code.to_string(), expected)
    });
    let odd = ["", "x", "-1", "99999999999", "1 4"].map(|code| (code.to_owned(), Outcome::Failure));
    for (code, expected) in table.chain(odd) {
        let pairs = [("grpc-status", &*code)];
        let answer = response(200, &pairs, ());
        let in_headers = Classify::<_, io::Error>::classify(&classifier, Ok(&answer));
        assert_eq!(in_headers, expected, "{code:?} in headers");
        let in_trailers = classifier.classify_end(Some(&headers(&pairs)));
        assert_eq!(in_trailers, expected, "{code:?} in trailers");
    }
    // A missing status in the headers is undecided. A missing status at the end is a failure.
    let grpc =
        |status| Classify::<_, io::Error>::classify(&classifier, Ok(&response(status, &[], ())));
    assert_eq!(grpc(200), Outcome::Undecided);
    assert_eq!(grpc(503), Outcome::Failure);
    assert_eq!(grpc(404), Outcome::Neutral);
    assert_eq!(grpc(429), Outcome::Neutral);
    assert_eq!(classifier.classify_end(None), Outcome::Failure);
    assert_eq!(
        classifier.classify_end(Some(&HeaderMap::new())),
        Outcome::Failure
    );
    assert_eq!(classifier.classify_break(), Outcome::Failure);
    let only_unknown = GrpcStatus::new().failures([2]);
    let end = |code| only_unknown.classify_end(Some(&headers(&[("grpc-status", code)])));
    assert_eq!((end("2"), end("14")), (Outcome::Failure, Outcome::Neutral));
    for code in [0, 17] {
        assert!(std::panic::catch_unwind(|| GrpcStatus::new().failures([code])).is_err());
    }
}
