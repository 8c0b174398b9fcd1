use http::Response;

use super::load_number::number;
use crate::report::LoadReport;

/// Reads a server's load report from ORCA's header `endpoint-load-metrics`, as text or JSON.
///
/// For [`ReportedWeightsLayer`](crate::report::ReportedWeightsLayer). The utilization is
/// `application_utilization` if that is above 0, and otherwise `cpu_utilization`. The rates are
/// `rps_fractional` (or the older `rps`) and `eps`.
///
/// ```text
/// endpoint-load-metrics: TEXT cpu_utilization=0.3,rps_fractional=120,eps=2
/// endpoint-load-metrics: JSON {"application_utilization": 0.7, "rps_fractional": 120}
/// ```
///
/// In JSON, field names may be in snake case or camel case, and numbers may be strings: the JSON
/// form of protocol buffers allows both. Unknown fields are skipped. Returns `None` if the header
/// is missing, cannot be read or has no utilization. Only headers are read: not trailers, and not
/// the binary form that gRPC servers put there.
///
/// Source: [ORCA](https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto),
/// Envoy's load report headers.
#[must_use]
pub fn load_report<B>(response: &Response<B>) -> Option<LoadReport> {
    let metrics = Metrics::of(response)?;
    let application = metrics.get("application_utilization");
    let utilization = application
        .filter(|value| *value > 0.0)
        .or_else(|| metrics.get("cpu_utilization"))?;
    let qps = metrics.get("rps_fractional").or_else(|| metrics.get("rps"));
    let report = LoadReport::new(utilization, qps.unwrap_or(0.0));
    Some(report.eps(metrics.get("eps").unwrap_or(0.0)))
}

/// Reads one metric from ORCA's header `endpoint-load-metrics`.
///
/// For [`ReportedLayer`](crate::report::ReportedLayer): take a named metric in which servers report
/// how many requests they have in flight.
///
/// ```text
/// endpoint-load-metrics: TEXT cpu_utilization=0.3,named_metrics.in_flight=12
/// endpoint-load-metrics: JSON {"cpu_utilization": 0.3, "named_metrics": {"in_flight": 12}}
/// ```
///
/// ```
/// use tower_lb::{http::load_metric, report::ReportedLayer};
///
/// let layer = ReportedLayer::new(load_metric::<Vec<u8>>("named_metrics.in_flight"));
/// # let _ = layer;
/// ```
pub fn load_metric<B>(name: &'static str) -> impl Fn(&Response<B>) -> Option<f64> + Clone {
    move |response| Metrics::of(response)?.get(name)
}

/// The metrics in the header, by name.
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

    /// Finds a metric. In both forms, a metric within another is named `outer.inner`.
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

/// Returns a field's camel-case name, which the JSON form of a protocol buffer may use.
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
