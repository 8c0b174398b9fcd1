use http::{HeaderName, Response};

/// Reads a bare number from a header of your own, for
/// [`ReportedLayer`](crate::report::ReportedLayer).
///
/// ```
/// use http::HeaderName;
/// use tower_lb::{http::load_number, report::ReportedLayer};
///
/// let layer = ReportedLayer::new(load_number::<Vec<u8>>(HeaderName::from_static("x-in-flight")));
/// # let _ = layer;
/// ```
pub fn load_number<B>(header: HeaderName) -> impl Fn(&Response<B>) -> Option<f64> + Clone {
    move |response| number(response.headers().get(&header)?.to_str().ok()?)
}

/// Parses a number; `None` if it is not finite.
pub(super) fn number(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    number.is_finite().then_some(number)
}
