//! Scripted bodies and backends.

#![allow(dead_code)] // no test uses all of it

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Response};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tower_lb::{Candidates, Choice, PickContext, Policy};

/// A body whose frames are set by the test. The last one may be trailers or an error.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) frames: std::collections::VecDeque<Step>,
    /// Whether the body reports its end once no frame is left.
    pub(crate) tells_its_end: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data,
    /// 64 KiB.
    Block,
    Trailers(Vec<(&'static str, &'static str)>),
    Break,
}

impl Script {
    pub(crate) fn new(frames: impl IntoIterator<Item = Step>) -> Self {
        Self {
            frames: frames.into_iter().collect(),
            tells_its_end: false,
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(self.frames.pop_front().map(|step| match step {
            Step::Data => Ok(Frame::data(Bytes::from_static(b"data"))),
            Step::Block => Ok(Frame::data(Bytes::from_static(&[0; BLOCK]))),
            Step::Trailers(trailers) => Ok(Frame::trailers(headers(&trailers))),
            Step::Break => Err(std::io::Error::other("it broke off")),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.tells_its_end && self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let sizes = self.frames.iter().map(|step| match step {
            Step::Data => 4,
            Step::Block => BLOCK,
            Step::Trailers(_) | Step::Break => 0,
        });
        SizeHint::with_exact(sizes.sum::<usize>() as u64)
    }
}

const BLOCK: usize = 1 << 16;

pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            (HeaderName::from_static(name), value)
        })
        .collect()
}

pub(crate) fn response<B>(status: u16, pairs: &[(&'static str, &str)], body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status.try_into().unwrap();
    *response.headers_mut() = headers(pairs);
    response
}

/// Always picks the first candidate.
#[derive(Clone, Debug)]
pub(crate) struct InOrder;

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
        first.map_or(Choice::Nobody, |(at, _)| Choice::Member(at))
    }
}
