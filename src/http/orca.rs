use http::Response;

use crate::load::Report;

/// Reads what a server reports of its load: ORCA's header `endpoint-load-metrics`, as text or JSON.
///
/// For [`ReportedLayer`](crate::load::ReportedLayer). The utilization is `application_utilization`, or else
/// `cpu_utilization`; the rates are `rps_fractional` (or the older `rps`) and `eps`.
///
/// ```text
/// endpoint-load-metrics: TEXT cpu_utilization=0.3,rps_fractional=120,eps=2
/// endpoint-load-metrics: JSON {"application_utilization": 0.7, "rps_fractional": 120}
/// ```
///
/// Fields that are not known are passed over; a header that cannot be read is none.
///
/// Source: [ORCA](https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto), Envoy's load report headers.
#[must_use]
pub fn load_report<B>(response: &Response<B>) -> Option<Report> {
    let header = response.headers().get("endpoint-load-metrics")?;
    let (format, metrics) = header.to_str().ok()?.trim().split_once(' ')?;
    match format {
        "TEXT" => text(metrics),
        "JSON" => json(metrics),
        _ => None,
    }
}

fn text(metrics: &str) -> Option<Report> {
    report(|name| {
        let mut pairs = metrics.split(',').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| key.trim() == name)?;
        value.trim().parse().ok()
    })
}

fn json(metrics: &str) -> Option<Report> {
    let metrics: serde_json::Value = serde_json::from_str(metrics).ok()?;
    report(|name| metrics.get(name)?.as_f64())
}

/// Makes the report of its metrics; `None` if there is no utilization.
fn report(metric: impl Fn(&str) -> Option<f64>) -> Option<Report> {
    let application = metric("application_utilization").filter(|value| *value > 0.0);
    let utilization = application.or_else(|| metric("cpu_utilization"))?;
    let qps = metric("rps_fractional").or_else(|| metric("rps"));
    let report = Report::new(utilization, qps.unwrap_or(0.0));
    Some(report.eps(metric("eps").unwrap_or(0.0)))
}
