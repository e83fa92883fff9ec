// SPDX-License-Identifier: Apache-2.0
//! How a line looks. Text is for people: time, level, message, and the fields that are words; numbers are in the
//! message already. JSON has the keys of Kubernetes components (`--logging-format=json`): `ts` in milliseconds since
//! the epoch, `v` the level of `-v` that shows the line, `msg`, and all fields. `level` is our addition: warnings and
//! errors have the same `v` as information.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::{Event, Level, Subscriber};
use tracing_serde::fields::AsMap as _;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::levels::{CHANGES, OPERATIONS, PASSES, SYNCS};

/// The format of log lines (`logging.format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => anyhow::bail!("{other:?} is not text or json"),
        }
    }
}

impl<S, N> FormatEvent<S, N> for LogFormat
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
        let (now, level) = (Timestamp::now(), *event.metadata().level());
        if *self == LogFormat::Json {
            return writeln!(writer, "{}", render_json(event, now));
        }
        let (on, off) = if writer.has_ansi_escapes() { (color(level), "\u{1b}[0m") } else { ("", "") };
        writeln!(writer, "{now:.6} {on}{level:>5}{off} {}", render_text(event))
    }
}

fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        _ => "\u{1b}[2m",
    }
}

/// The message, and the other fields by name.
fn fields(event: &Event<'_>) -> (Value, Map<String, Value>) {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(event.field_map()) else {
        return Default::default();
    };
    (fields.remove("message").unwrap_or_default(), fields)
}

/// The line of an event as text, without time and level.
pub fn render_text(event: &Event<'_>) -> String {
    let (message, fields) = fields(event);
    let mut line = message.as_str().unwrap_or_default().to_owned();
    for (name, value) in &fields {
        let Value::String(text) = value else { continue };
        let quoted = text.is_empty() || text.contains([' ', '"']);
        let _ = if quoted { write!(line, " {name}={text:?}") } else { write!(line, " {name}={text}") };
    }
    line
}

#[derive(Serialize)]
struct JsonLine {
    ts: f64,
    level: String,
    v: u32,
    msg: Value,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

fn render_json(event: &Event<'_>, now: Timestamp) -> String {
    let metadata = event.metadata();
    let v = match *metadata.level() {
        Level::DEBUG if metadata.target() == CHANGES => SYNCS,
        Level::DEBUG => PASSES,
        Level::TRACE => OPERATIONS,
        _ => 0,
    };
    let (msg, fields) = fields(event);
    let level = metadata.level().as_str().to_ascii_lowercase();
    let line = JsonLine { ts: now.as_microsecond() as f64 / 1e3, level, v, msg, fields };
    serde_json::to_string(&line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;

    /// Collects every event as text and as JSON.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<(String, Value)>>>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let line = render_json(event, Timestamp::from_microsecond(1_580_306_777_047_500).unwrap());
            assert!(line.starts_with(r#"{"ts":1580306777047.5,"level":""#), "{line}");
            self.0.lock().unwrap().push((render_text(event), serde_json::from_str(&line).unwrap()));
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<(String, Value)> {
        let lines = Lines::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines.clone()), log);
        std::mem::take(&mut *lines.0.lock().unwrap())
    }

    #[test]
    fn json_has_numbers_as_numbers_and_the_keys_of_kubernetes() {
        let lines = lines(|| {
            tracing::info!(services = 3003, took_ms = 1.5, ok = true, family = %"IPv4", "ready: all");
            tracing::debug!(target: CHANGES, "sync");
            tracing::error!(count = 7usize, "failed");
        });
        assert_eq!(
            lines[0].1,
            json!({"ts": 1_580_306_777_047.5, "level": "info", "v": 0, "msg": "ready: all", "services": 3003,
                   "took_ms": 1.5, "ok": true, "family": "IPv4"})
        );
        assert_eq!((&lines[1].1["v"], &lines[1].1["msg"]), (&json!(2), &json!("sync")));
        assert_eq!((&lines[2].1["level"], &lines[2].1["count"]), (&json!("error"), &json!(7)));
    }

    #[test]
    fn text_shows_words_after_the_message_and_no_numbers() {
        let lines = lines(|| {
            tracing::info!(services = 3003, kind = "real_server", server = %"https://x y", "ready: 3,003 Services");
        });
        assert_eq!(lines[0].0, "ready: 3,003 Services kind=real_server server=\"https://x y\"");
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        assert!("xml".parse::<LogFormat>().unwrap_err().to_string().contains("text or json"));
    }
}
