//! Load reports that servers send.

use http::HeaderName;
use tower_lb::{
    http::{load_metric, load_number, load_report},
    report::LoadReport,
};

use crate::support::response;

#[test]
fn orca_reports_are_read_as_text_and_as_json() {
    let read = |header: &str| load_report(&response(200, &[("endpoint-load-metrics", header)], ()));
    let full = Some(LoadReport::new(0.3, 120.0).eps(2.0));
    for header in [
        "TEXT cpu_utilization=0.3,rps_fractional=120,eps=2",
        "TEXT  cpu_utilization = 0.3 , rps_fractional = 120 , eps=2 ",
        "TEXT eps=2,named_metrics.x=7,rps_fractional=120.0,cpu_utilization=0.3,mem_utilization=.9",
        "TEXT application_utilization=0.3,cpu_utilization=0.9,rps=120,eps=2",
        "TEXT application_utilization=0,cpu_utilization=0.3,rps_fractional=120,eps=2",
        r#"JSON {"cpu_utilization": 0.3, "rps_fractional": 120, "eps": 2}"#,
        r#"JSON {"cpuUtilization": 0.3, "rpsFractional": 120, "eps": 2}"#,
        r#"JSON {"applicationUtilization": 0.3, "cpu_utilization": 0.9, "rps": "120", "eps": 2}"#,
        r#"JSON {"cpu_utilization": "0.3", "rps": "120", "eps": 2}"#,
        r#"JSON {"named_metrics": {"x": 7}, "application_utilization": 0.3, "rps": 120, "eps": 2.0}"#,
    ] {
        assert_eq!(read(header), full, "{header}");
    }
    assert_eq!(
        read("TEXT cpu_utilization=0.3"),
        Some(LoadReport::new(0.3, 0.0))
    );
    for header in [
        "",
        "TEXT",
        "TEXT ",
        "TEXT rps_fractional=120",
        "TEXT cpu_utilization=much",
        "cpu_utilization=0.3",
        "BIN AAAA",
        "JSON",
        "JSON {",
        "JSON []",
        "JSON 7",
        r#"JSON {"cpu_utilization": "much"}"#,
        r#"JSON {"cpu_utilization": {}}"#,
    ] {
        assert_eq!(read(header), None, "{header}");
    }
    let huge = format!("JSON {}", "[".repeat(100_000));
    assert_eq!(read(&huge), None, "and no overflow of the stack");
    assert_eq!(load_report(&response(200, &[], ())), None);
}

#[test]
fn a_metric_of_orca_is_read_by_name() {
    let read = load_metric("named_metrics.in_flight");
    let read = |header: &str| read(&response(200, &[("endpoint-load-metrics", header)], ()));
    for (header, expected) in [
        ("TEXT named_metrics.in_flight=12", Some(12.0)),
        (
            "TEXT cpu_utilization=.3, named_metrics.in_flight = 0.5",
            Some(0.5),
        ),
        (r#"JSON {"named_metrics": {"in_flight": 12}}"#, Some(12.0)),
        ("TEXT in_flight=12", None),
        ("TEXT named_metrics.in_flight=inf", None),
        (
            "TEXT named_metrics.in_flight=1,named_metrics.in_flight=2",
            Some(1.0),
        ),
        (r#"JSON {"in_flight": 12}"#, None),
        (r#"JSON {"named_metrics": 12}"#, None),
        (r#"JSON {"namedMetrics": {"in_flight": 12}}"#, Some(12.0)),
        (r#"JSON {"named_metrics": {"in_flight": "12"}}"#, Some(12.0)),
        (r#"JSON {"named_metrics": {"inFlight": 12}}"#, None),
        (r#"JSON {"named_metrics.in_flight": 12}"#, None),
        ("12", None),
    ] {
        assert_eq!(read(header), expected, "{header}");
    }
    let utilization = load_metric("cpu_utilization");
    let response = response(
        200,
        &[("endpoint-load-metrics", "TEXT cpu_utilization=.3")],
        (),
    );
    assert_eq!(utilization(&response), Some(0.3));
}

#[test]
fn a_bare_number_is_read_from_any_header() {
    let read = load_number(HeaderName::from_static("x-in-flight"));
    let huge = "9".repeat(100_000);
    for (header, expected) in [
        ("12", Some(12.0)),
        (" 12.5 ", Some(12.5)),
        ("1e3", Some(1000.0)),
        ("", None),
        ("NaN", None),
        ("infinity", None),
        ("12 requests", None),
        (&huge, None),
    ] {
        let response = response(200, &[("x-in-flight", header)], ());
        assert_eq!(read(&response), expected, "{header}");
    }
    assert_eq!(read(&response(200, &[], ())), None);
}
