// SPDX-License-Identifier: Apache-2.0
//! Lines as Kubernetes components write them with `--logging-format=json`: `ts` in milliseconds since the
//! epoch, `v` the level of `-v` that a line needs, `msg`, and fields beside them, numbers as numbers. `level`
//! is ours: warnings and errors have the same `v` as information.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{OPERATIONS, PASSES, SYNCS};
use crate::reconcile::CHANGES;

/// See the module.
pub(super) struct KubeJson;

impl<S, N> FormatEvent<S, N> for KubeJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        writeln!(writer, "{}", render(event, now.as_micros() as f64 / 1e3))
    }
}

fn render(event: &Event<'_>, milliseconds: f64) -> String {
    let metadata = event.metadata();
    let v = match *metadata.level() {
        Level::DEBUG if metadata.target() == CHANGES => SYNCS,
        Level::DEBUG => PASSES,
        Level::TRACE => OPERATIONS,
        _ => 0,
    };
    let mut fields = Map::new();
    event.record(&mut Fields(&mut fields));
    let message = fields.remove("msg").unwrap_or_default();
    let level = metadata.level().as_str().to_ascii_lowercase();
    // What is read first stands first; a map would be sorted.
    let mut line = format!(r#"{{"ts":{milliseconds},"level":"{level}","v":{v},"msg":{message}"#);
    for (name, value) in fields {
        line.push_str(&format!(",{}:{value}", Value::from(name)));
    }
    line.push('}');
    line
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<Value>>>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let line = render(event, 1_580_306_777_047.5);
            assert!(line.starts_with(r#"{"ts":1580306777047.5,"level":""#), "{line}");
            self.0.lock().unwrap().push(serde_json::from_str(&line).unwrap());
        }
    }

    #[test]
    fn numbers_are_numbers_and_keys_are_those_of_kubernetes() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(services = 3003, took_ms = 1.5, ok = true, family = %"IPv4", "ready: all");
            tracing::debug!(target: CHANGES, "sync");
            tracing::error!(count = 7usize, "failed");
        });
        let lines = lines.0.lock().unwrap();
        assert_eq!(
            lines[0],
            json!({"ts": 1_580_306_777_047.5, "level": "info", "v": 0, "msg": "ready: all", "services": 3003,
                   "took_ms": 1.5, "ok": true, "family": "IPv4"})
        );
        assert_eq!((&lines[1]["v"], &lines[1]["msg"]), (&json!(2), &json!("sync")));
        assert_eq!((&lines[2]["level"], &lines[2]["count"]), (&json!("error"), &json!(7)));
    }
}
