/// Copies a request, so that it can be sent a second time.
///
/// Implemented by [`ByClone`] and by any `Fn(&Req) -> Option<Req>`.
#[diagnostic::on_unimplemented(
    message = "the request `{Req}` can't be copied to be sent a second time",
    label = "a request that is no `Clone` needs `copy_with`",
    note = "`FailoverLayer::copy_with(|request: &Request| Some(..))`; for bodies that can't be cloned, `http::UnsentBody`"
)]
pub trait CopyRequest<Req> {
    /// Returns a copy, or `None` if the request cannot, or can no longer, be sent again.
    fn copy(&self, request: &Req) -> Option<Req>;
}

/// Copies a request by `Clone`. This is the default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ByClone;

#[diagnostic::do_not_recommend]
impl<Req: Clone> CopyRequest<Req> for ByClone {
    #[inline]
    fn copy(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

#[diagnostic::do_not_recommend]
impl<Req, F> CopyRequest<Req> for F
where
    F: Fn(&Req) -> Option<Req>,
{
    #[inline]
    fn copy(&self, request: &Req) -> Option<Req> {
        self(request)
    }
}
