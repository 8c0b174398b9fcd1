use http::{HeaderMap, Response, StatusCode};

use super::{ClassifyEnd, CompleteOnBody};
use crate::outcome::{Classify, Outcome, Outcomes};

/// Classifies HTTP answers by their status.
///
/// | answer | outcome |
/// |---|---|
/// | an error, 5xx | failure |
/// | 4xx | neutral: the request's own fault |
/// | 1xx, 2xx, 3xx | success |
///
/// 429 is neutral even with `Retry-After`: usually one caller is over its quota, and the server is
/// well for all others. Where it means that the server is at its limit, set
/// `.status(429, Outcome::Failure)`.
///
/// It looks at the head of an answer. To count a body that breaks off as a failure too, leave these
/// statuses to the body: set `.class(2, Outcome::Undecided)`, and use a
/// [`CompleteOnBody`](super::CompleteOnBody) completion.
///
/// ```
/// use tower_lb::{Outcome, OutlierLayer, http::HttpStatus};
///
/// // A server without its data answers 404; 501 says nothing of its health.
/// let status = HttpStatus::new().status(404, Outcome::Failure).status(501, Outcome::Neutral);
/// let outliers = OutlierLayer::default().classify(status);
/// # let _ = outliers;
/// ```
///
/// The error of the `Result` may be of any type.
#[derive(Clone, Copy, Debug)]
pub struct HttpStatus {
    classes: [Outcome; 5],
    exceptions: [Option<(u16, Outcome)>; MOST_EXCEPTIONS],
}

/// Classifies gRPC answers by their status, which is in the headers or the trailers.
///
/// UNAVAILABLE, INTERNAL and DEADLINE_EXCEEDED are failures. OK is a success. Other codes are
/// neutral, because they are about the request. RESOURCE_EXHAUSTED is one of these: usually one
/// caller is over its quota. Where it means that the server is at its limit, set
/// `.failures([4, 8, 13, 14])`.
///
/// An answer that ends without a status is a failure. So are the HTTP statuses 400 and all from
/// 500: gRPC takes 400 for INTERNAL, and 502, 503 and 504 for UNAVAILABLE. HTTP's 429 is neutral,
/// too.
///
/// Usually the status is in the trailers. The head of such an answer is
/// [`Undecided`](Outcome::Undecided), and [`CompleteOnBody`] asks the classifier again at the end.
/// `outcomes` sets both:
///
/// ```
/// use tower_lb::{OutlierLayer, http::GrpcStatus};
///
/// let outliers = OutlierLayer::default().outcomes(GrpcStatus::new());
/// # let _ = outliers;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct GrpcStatus {
    /// Bit *n* is set if code *n* is a failure.
    failures: u32,
    http: HttpStatus,
}

impl HttpStatus {
    /// Creates the classifier of the table above.
    #[must_use]
    pub const fn new() -> Self {
        use Outcome::{Failure, Neutral, Success};
        Self {
            classes: [Success, Success, Success, Neutral, Failure],
            exceptions: [None; MOST_EXCEPTIONS],
        }
    }

    /// Sets the outcome of a whole class of statuses: 1 for 1xx, 5 for 5xx.
    ///
    /// # Panics
    ///
    /// If `class` is not 1 to 5.
    #[must_use]
    #[track_caller]
    pub fn class(mut self, class: u8, outcome: Outcome) -> Self {
        assert!((1..=5).contains(&class), "a class is 1 to 5, not {class}");
        self.classes[usize::from(class - 1)] = outcome;
        self
    }

    /// Sets the outcome of one status, whatever its class.
    ///
    /// # Panics
    ///
    /// If `status` is not 100 to 999, or if eight others are set already. For more, write a
    /// classifier of your own.
    #[must_use]
    #[track_caller]
    pub fn status(mut self, status: u16, outcome: Outcome) -> Self {
        assert!(
            (100..1000).contains(&status),
            "a status is 100 to 999, not {status}"
        );
        let same_or_free = self
            .exceptions
            .iter_mut()
            .find(|exception| exception.is_none_or(|(code, _)| code == status));
        let Some(exception) = same_or_free else {
            panic!("at most {MOST_EXCEPTIONS} statuses can be set");
        };
        *exception = Some((status, outcome));
        self
    }

    /// Classifies a status.
    #[must_use]
    pub fn outcome(&self, status: StatusCode) -> Outcome {
        let code = status.as_u16();
        let mut exceptions = self.exceptions.iter().flatten();
        if let Some((_, outcome)) = exceptions.find(|(exception, _)| *exception == code) {
            return *outcome;
        }
        // Statuses from 600 on have no meaning: they count as 5xx (RFC 9110, section 15).
        self.classes[usize::from(code / 100).clamp(1, 5) - 1]
    }
}

impl Default for HttpStatus {
    fn default() -> Self {
        Self::new()
    }
}

impl<B, E> Classify<Response<B>, E> for HttpStatus {
    #[inline]
    fn classify(&self, answer: Result<&Response<B>, &E>) -> Outcome {
        match answer {
            Ok(response) => self.outcome(response.status()),
            Err(_) => Outcome::Failure,
        }
    }
}

impl GrpcStatus {
    /// Creates the classifier with the three failure codes above.
    #[must_use]
    pub const fn new() -> Self {
        let mut http = HttpStatus::new();
        http.exceptions[0] = Some((400, Outcome::Failure));
        Self {
            failures: 1 << 4 | 1 << 13 | 1 << 14,
            http,
        }
    }

    /// Sets the codes that are failures, in place of the three above.
    ///
    /// # Panics
    ///
    /// If a code is OK (0) or above 16.
    #[must_use]
    #[track_caller]
    pub fn failures(mut self, codes: impl IntoIterator<Item = u8>) -> Self {
        self.failures = 0;
        for code in codes {
            assert!(
                (1..=16).contains(&code),
                "a code of a failure is 1 to 16, not {code}"
            );
            self.failures |= 1 << code;
        }
        self
    }

    /// Classifies the status in headers or trailers; `None` if they have none.
    fn outcome(&self, headers: &HeaderMap) -> Option<Outcome> {
        let status = headers.get("grpc-status")?;
        let code: Option<u32> = status.to_str().ok().and_then(|code| code.parse().ok());
        Some(match code {
            Some(0) => Outcome::Success,
            Some(code @ 1..=16) if self.failures & 1 << code == 0 => Outcome::Neutral,
            Some(1..=16) => Outcome::Failure,
            // Not a gRPC code: a failure, as in an answer that ends without a status.
            _ => Outcome::Failure,
        })
    }
}

impl Default for GrpcStatus {
    fn default() -> Self {
        Self::new()
    }
}

impl<B, E> Classify<Response<B>, E> for GrpcStatus {
    #[inline]
    fn classify(&self, answer: Result<&Response<B>, &E>) -> Outcome {
        let Ok(response) = answer else {
            return Outcome::Failure;
        };
        if let Some(outcome) = self.outcome(response.headers()) {
            return outcome;
        }
        match self.http.outcome(response.status()) {
            Outcome::Success => Outcome::Undecided,
            other => other,
        }
    }
}

impl ClassifyEnd for GrpcStatus {
    fn classify_end(&self, trailers: Option<&HeaderMap>) -> Outcome {
        let outcome = trailers.and_then(|trailers| self.outcome(trailers));
        outcome.unwrap_or(Outcome::Failure)
    }
}

impl Outcomes for GrpcStatus {
    type Classify = Self;
    type Completion = CompleteOnBody<Self>;

    fn outcomes(self) -> (Self, CompleteOnBody<Self>) {
        (self, CompleteOnBody::classify(self))
    }
}

/// Few, because the classifier is copied for each request.
const MOST_EXCEPTIONS: usize = 8;
