use http::{HeaderName, Response};

use crate::load::Report;

/// Reads what a server reports of its load: ORCA's header `endpoint-load-metrics`, as text or JSON.
///
/// For [`ReportedWeightsLayer`](crate::load::ReportedWeightsLayer). The utilization is `application_utilization`, or else
/// `cpu_utilization`; the rates are `rps_fractional` (or the older `rps`) and `eps`.
///
/// ```text
/// endpoint-load-metrics: TEXT cpu_utilization=0.3,rps_fractional=120,eps=2
/// endpoint-load-metrics: JSON {"application_utilization": 0.7, "rps_fractional": 120}
/// ```
///
/// In JSON, fields have their names in either spelling, and numbers may be strings, as in that form of every protocol buffer.
/// Fields that are not known are passed over; a header that cannot be read is none. Headers alone are read: not trailers, and not
/// the binary form that gRPC servers put there.
///
/// Source: [ORCA](https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto), Envoy's load report headers.
#[must_use]
pub fn load_report<B>(response: &Response<B>) -> Option<Report> {
    let metrics = Metrics::of(response)?;
    let application = metrics.get("application_utilization");
    let utilization = application
        .filter(|value| *value > 0.0)
        .or_else(|| metrics.get("cpu_utilization"))?;
    let qps = metrics.get("rps_fractional").or_else(|| metrics.get("rps"));
    let report = Report::new(utilization, qps.unwrap_or(0.0));
    Some(report.eps(metrics.get("eps").unwrap_or(0.0)))
}

/// Reads one metric from ORCA's header `endpoint-load-metrics`: for [`ReportedLayer`](crate::load::ReportedLayer), a named one
/// in which servers say how many requests they have in hand.
///
/// ```text
/// endpoint-load-metrics: TEXT cpu_utilization=0.3,named_metrics.in_flight=12
/// endpoint-load-metrics: JSON {"cpu_utilization": 0.3, "named_metrics": {"in_flight": 12}}
/// ```
///
/// ```
/// use tower_lb::{http::load_metric, load::ReportedLayer};
///
/// let layer = ReportedLayer::new(load_metric::<Vec<u8>>("named_metrics.in_flight"));
/// # let _ = layer;
/// ```
pub fn load_metric<B>(name: &'static str) -> impl Fn(&Response<B>) -> Option<f64> + Clone {
    move |response| Metrics::of(response)?.get(name)
}

/// Reads a bare number from a header of your own, for [`ReportedLayer`](crate::load::ReportedLayer).
///
/// ```
/// use http::HeaderName;
/// use tower_lb::{http::load_number, load::ReportedLayer};
///
/// let layer = ReportedLayer::new(load_number::<Vec<u8>>(HeaderName::from_static("x-in-flight")));
/// # let _ = layer;
/// ```
pub fn load_number<B>(header: HeaderName) -> impl Fn(&Response<B>) -> Option<f64> + Clone {
    move |response| number(response.headers().get(&header)?.to_str().ok()?)
}

/// What the header says, by name.
enum Metrics<'a> {
    Text(&'a str),
    Json(serde_json::Value),
}

impl<'a> Metrics<'a> {
    fn of<B>(response: &'a Response<B>) -> Option<Self> {
        let header = response.headers().get("endpoint-load-metrics")?;
        let (format, metrics) = header.to_str().ok()?.trim().split_once(' ')?;
        match format {
            "TEXT" => Some(Self::Text(metrics)),
            "JSON" => serde_json::from_str(metrics).ok().map(Self::Json),
            _ => None,
        }
    }

    /// Finds a metric; one within another is named `outer.inner` in both forms.
    fn get(&self, name: &str) -> Option<f64> {
        match self {
            Self::Text(metrics) => {
                let mut pairs = metrics.split(',').filter_map(|pair| pair.split_once('='));
                let (_, value) = pairs.find(|(key, _)| key.trim() == name)?;
                number(value)
            }
            Self::Json(metrics) => {
                let (field, inner) = match name.split_once('.') {
                    Some((outer, inner)) => (outer, Some(inner)),
                    None => (name, None),
                };
                let value = metrics
                    .get(field)
                    .or_else(|| metrics.get(camel_case(field)));
                let value = inner.map_or(value, |inner| value?.get(inner))?;
                value.as_f64().or_else(|| number(value.as_str()?))
            }
        }
    }
}

/// Returns the other name that a field has in the JSON form of a protocol buffer.
fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default();
    let capitalised = words.flat_map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters)
    });
    first.chars().chain(capitalised).collect()
}

fn number(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    number.is_finite().then_some(number)
}
