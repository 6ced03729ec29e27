//! OpenTelemetry's protocol as JSON over HTTP: an `ExportMetricsServiceRequest` (OTLP 1.x, "JSON Protobuf encoding").

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{Family, Sample, Type};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`: each value is a total.
const CUMULATIVE: u8 = 2;

/// The request with all metrics.
pub fn document(families: &[Family<'_>], now: DateTime<Utc>) -> String {
    let time = now.timestamp_nanos_opt().unwrap_or_default().to_string();
    let metrics: Vec<Value> = families.iter().map(|family| metric(family, &time)).collect();
    let service = json!({"attributes": attributes(&[("service.name", "k2-offload")])});
    let scope = json!({"name": "k2-offload", "version": env!("CARGO_PKG_VERSION")});
    let scoped = json!([{"scope": scope, "metrics": metrics}]);
    json!({"resourceMetrics": [{"resource": service, "scopeMetrics": scoped}]}).to_string()
}

fn metric(family: &Family<'_>, time: &str) -> Value {
    let points: Vec<Value> = family.samples.iter().map(|sample| point(sample, time)).collect();
    let (kind, data) = match family.kind {
        Type::Gauge => ("gauge", json!({"dataPoints": points})),
        Type::Counter => {
            ("sum", json!({"dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true}))
        }
    };
    json!({"name": family.name, "description": family.help, kind: data})
}

fn point(sample: &Sample<'_>, time: &str) -> Value {
    json!({"attributes": attributes(&sample.labels), "timeUnixNano": time, "asDouble": sample.value})
}

fn attributes(labels: &[(&str, &str)]) -> Vec<Value> {
    labels.iter().map(|(name, value)| json!({"key": name, "value": {"stringValue": value}})).collect()
}
