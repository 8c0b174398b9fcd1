//! What servers report of their load.

use tower_lb::{http::load_report, load::Report};

use crate::support::response;

#[test]
fn orca_reports_are_read_as_text_and_as_json() {
    let read = |header: &str| load_report(&response(200, &[("endpoint-load-metrics", header)], ()));
    let full = Some(Report::new(0.3, 120.0).eps(2.0));
    for header in [
        "TEXT cpu_utilization=0.3,rps_fractional=120,eps=2",
        "TEXT  cpu_utilization = 0.3 , rps_fractional = 120 , eps=2 ",
        "TEXT eps=2,named_metrics.x=7,rps_fractional=120.0,cpu_utilization=0.3,mem_utilization=.9",
        "TEXT application_utilization=0.3,cpu_utilization=0.9,rps=120,eps=2",
        "TEXT application_utilization=0,cpu_utilization=0.3,rps_fractional=120,eps=2",
        r#"JSON {"cpu_utilization": 0.3, "rps_fractional": 120, "eps": 2}"#,
        r#"JSON {"named_metrics": {"x": 7}, "application_utilization": 0.3, "rps": 120, "eps": 2.0}"#,
    ] {
        assert_eq!(read(header), full, "{header}");
    }
    assert_eq!(
        read("TEXT cpu_utilization=0.3"),
        Some(Report::new(0.3, 0.0))
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
        r#"JSON {"cpu_utilization": "0.3"}"#,
    ] {
        assert_eq!(read(header), None, "{header}");
    }
    let huge = format!("JSON {}", "[".repeat(100_000));
    assert_eq!(read(&huge), None, "and no overflow of the stack");
    assert_eq!(load_report(&response(200, &[], ())), None);
}
