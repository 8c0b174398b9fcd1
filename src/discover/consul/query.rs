use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};
use tower::BoxError;

use super::{
    client::{Answer, Client},
    instances::{self, BadAnswer, Reading},
    token::{NoToken, Token},
};
use crate::endpoint::Target;

/// Selects how Consul's servers agree on an answer before they give it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// The leader answers. For some moments, a leader that was cut off may answer as well.
    #[default]
    Default,
    /// The leader asks the others whether it still is the leader.
    Consistent,
    /// Any server answers, also while there is no leader. The answer may be old.
    Stale,
}

/// Asks for the instances of a service whenever they change, by blocking queries.
pub(super) struct Query {
    client: Client,
    /// Scheme, host and path, and the parameters that stay.
    uri: String,
    token: Token,
    wait: Duration,
    reading: Reading,
    /// The index of the last answer, beyond which the next one is; `None`: the state of now.
    index: Option<u64>,
    /// When to ask again.
    due: Option<Instant>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    Token(NoToken),
    Request(http::Error),
    Transport(BoxError),
    Slow(Duration),
    /// What Consul says, without secrets.
    Status(StatusCode, String),
    BadAnswer(BadAnswer),
    Aborted,
}

impl Query {
    pub(super) const fn new(
        client: Client,
        uri: String,
        token: Token,
        wait: Duration,
        reading: Reading,
    ) -> Self {
        Self {
            client,
            uri,
            token,
            wait,
            reading,
            index: None,
            due: None,
        }
    }

    /// Waits until the instances change, or for as long as a query waits.
    pub(super) async fn next(&mut self) -> Result<Vec<Target>, Failed> {
        if let Some(due) = self.due.take() {
            sleep_until(due).await;
        }
        // After an error, the next query asks for what there is: an agent that was started again
        // would wait on an index of before.
        let index = self.index.take();
        let token = self.token.read().map_err(Failed::Token)?;
        let request = self.request(index, token.as_deref())?;
        let longest = match index {
            // Consul adds up to a sixteenth of the wait, at random.
            Some(_) => self.wait + self.wait / 16 + LONGEST_ANSWER,
            None => LONGEST_ANSWER,
        };
        let answer = timeout(longest, (self.client)(request)).await;
        let answer = answer.map_err(|_| Failed::Slow(longest))?;
        let Answer {
            status,
            headers,
            body,
        } = answer.map_err(Failed::Transport)?;
        if !status.is_success() {
            return Err(Failed::Status(status, said(&body, token.as_deref())));
        }
        let came = Instant::now();
        let targets = read(body, self.reading.clone()).await?;
        let next = index_of(&headers);
        let is_blocking = next.is_some();
        // An index that goes back is one of another state.
        self.index = next.filter(|next| index.is_none_or(|last| *next >= last));
        let pause = match is_blocking {
            true => (came.elapsed() * 10).clamp(LEAST_PAUSE, MOST_PAUSE),
            false => WITHOUT_INDEX,
        };
        self.due = came.checked_add(pause);
        Ok(targets)
    }

    fn request(&self, index: Option<u64>, token: Option<&str>) -> Result<Request<String>, Failed> {
        let mut uri = self.uri.clone();
        if let Some(index) = index {
            uri += &format!("&index={index}");
        }
        let mut request = Request::get(uri)
            .body(String::new())
            .map_err(Failed::Request)?;
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token).map_err(|e| Failed::Request(e.into()))?;
            value.set_sensitive(true);
            request.headers_mut().insert("x-consul-token", value);
        }
        Ok(request)
    }
}

/// Reads an answer on a thread where a long one holds nobody up.
async fn read(body: Bytes, reading: Reading) -> Result<Vec<Target>, Failed> {
    let read = move || instances::targets(&body, &reading).map_err(Failed::BadAnswer);
    spawn_blocking(read).await.unwrap_or(Err(Failed::Aborted))
}

/// Returns the index of an answer. 0, or none, is one that can't be waited for.
fn index_of(headers: &HeaderMap) -> Option<u64> {
    let index = headers.get("x-consul-index")?.to_str().ok()?.parse().ok()?;
    (index > 0).then_some(index)
}

/// Returns the beginning of what an error says, without the token.
fn said(body: &[u8], token: Option<&str>) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * LONGEST_TEXT)]);
    let text = match token {
        Some(token) if !token.is_empty() => text.replace(token, "(the token)"),
        _ => text.into_owned(),
    };
    text.trim().chars().take(LONGEST_TEXT).collect()
}

impl Consistency {
    /// Returns the parameter that asks for it.
    pub(super) const fn parameter(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Consistent => Some("consistent"),
            Self::Stale => Some("stale"),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(error) => write!(f, "{error}"),
            Self::Request(error) => write!(f, "the query can't be made: {error}"),
            Self::Transport(error) => {
                write!(f, "{error}")?;
                let mut cause = error.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
            Self::Slow(longest) => write!(f, "no answer within {longest:?}"),
            Self::Status(status, said) => write!(f, "{status}: {said}"),
            Self::BadAnswer(error) => write!(f, "{error}"),
            Self::Aborted => f.write_str("the answer could not be read: the runtime shuts down"),
        }
    }
}

/// An agent that takes longer, beyond what it was asked to wait, is as good as gone.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// Changes that follow one another so soon are one. After an answer that is long, the pause is ten
/// times as long as it took to read, up to the most: a change is to be seen within a second.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
const MOST_PAUSE: Duration = Duration::from_millis(800);

/// The pause after an answer that has no index.
const WITHOUT_INDEX: Duration = Duration::from_secs(1);

/// So much of an error's text is told, in characters.
const LONGEST_TEXT: usize = 200;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_what_consul_says_without_the_token() {
        let body = format!("ACL of s3cret not found{}", "!".repeat(1_000));
        let said = said(body.as_bytes(), Some("s3cret"));
        assert!(said.starts_with("ACL of (the token) not found!!"));
        assert_eq!(said.chars().count(), LONGEST_TEXT);
    }
}
