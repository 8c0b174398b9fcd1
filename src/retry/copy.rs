/// Makes the copy of a request that is sent when the first one has failed.
///
/// [`ByClone`] is one, and any `Fn(&Req) -> Option<Req>`.
pub trait CopyRequest<Req> {
    /// Copies the request; `None` if it cannot be sent a second time, or not any more.
    fn copy(&self, request: &Req) -> Option<Req>;
}

/// Copies a request by its `Clone`: the default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ByClone;

impl<Req: Clone> CopyRequest<Req> for ByClone {
    #[inline]
    fn copy(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

impl<Req, F> CopyRequest<Req> for F
where
    F: Fn(&Req) -> Option<Req>,
{
    #[inline]
    fn copy(&self, request: &Req) -> Option<Req> {
        self(request)
    }
}
