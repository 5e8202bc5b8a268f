//! Logs as JSON: one flat object per line, with the fields of the event and of the spans around it. Logs as text use
//! tracing's own format. In both, an error is shown with its causes, each once.
//!
//! `ops/telemetry.md` lists the fields. The fields that every line has come first, then the others by name. If the
//! event and the spans around it set the same name more than once, the innermost wins, and the event is innermost.

use std::error::Error;
use std::fmt;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing::{Event, Subscriber};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::with_causes;

/// The names with which every line begins.
const FIRST: [&str; 5] = ["timestamp", "level", "service", "target", "message"];

/// One line per event.
pub struct Flat {
    service: String,
}

impl Flat {
    /// Formats lines for the process of this name.
    pub fn new(service: String) -> Flat {
        Flat { service }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, Fields> for Flat {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, Fields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Map::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(known) = span.extensions().get::<FormattedFields<Fields>>() {
                let object = format!("{{{}}}", known.fields);
                fields.extend(serde_json::from_str::<Map<String, Value>>(&object).unwrap_or_default());
            }
        }
        event.record(&mut Members(|name: &str, value| drop(fields.insert(name.to_owned(), value))));
        let (level, mut target) = (event.metadata().level().as_str(), event.metadata().target().to_owned());
        // An event of a library that uses the crate `log` has its own target among its fields.
        if let Some(Value::String(own)) = fields.remove("log.target") {
            target = own;
            fields.retain(|name, _| !name.starts_with("log."));
        }
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let message = fields.remove("message").unwrap_or_default();
        let first = [json!(timestamp), json!(level), json!(self.service), json!(target), message];
        let first = FIRST.into_iter().zip(&first);
        let others = fields.iter().map(|(name, value)| (name.as_str(), value));
        let others = others.filter(|(name, _)| !FIRST.contains(name));
        writer.write_char('{')?;
        for (at, (name, value)) in first.chain(others).enumerate() {
            write!(writer, "{}{}:", if at > 0 { "," } else { "" }, json!(name))?;
            // JSON keeps characters that some readers take for a line end, or a terminal for a command.
            for character in value.to_string().chars() {
                let acts = matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                if acts || character.is_control() {
                    write!(writer, "\\u{:04x}", u32::from(character))?;
                } else {
                    writer.write_char(character)?;
                }
            }
        }
        writer.write_str("}\n")
    }
}

/// The fields of a span, kept as the members of a JSON object without its braces. That makes adding a field cheap,
/// because every job has a span and few jobs have a log line.
pub struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let (mut result, mut comma) = (Ok(()), "");
        fields.record(&mut Members(|name: &str, value| {
            // Names are identifiers, so they need no escaping.
            result = result.and_then(|()| write!(writer, "{comma}\"{name}\":{value}"));
            comma = ",";
        }));
        result
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        if !current.fields.is_empty() && !fields.is_empty() {
            current.fields.push(',');
        }
        self.format_fields(current.as_writer(), fields)
    }
}

/// The fields of a text line.
pub struct Text;

impl<'w> FormatFields<'w> for Text {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = WithCauses(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct WithCauses<'a>(DefaultVisitor<'a>);

/// Writes control characters as escapes, except line ends.
fn escaped(text: &str) -> String {
    let is_harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars().fold(String::with_capacity(text.len()), |mut kept, c| {
        if is_harmless(c) {
            kept.push(c)
        } else {
            kept.extend(c.escape_default())
        }
        kept
    })
}

impl Visit for WithCauses<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.record_str(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        // The text may come from outside, and a control character must not reach a terminal.
        self.0.record_debug(field, &format_args!("{}", escaped(&with_causes(value))));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.record_debug(field, value);
    }
}

/// Passes each field on as a member of an object.
struct Members<F>(F);

impl<F: FnMut(&str, Value)> Members<F> {
    fn set(&mut self, field: &Field, value: Value) {
        let name = field.name();
        (self.0)(name.strip_prefix("r#").unwrap_or(name), value);
    }
}

impl<F: FnMut(&str, Value)> Visit for Members<F> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, json!(value));
    }

    /// Includes all its causes.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field, Value::String(with_causes(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, Value::String(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing::Dispatch;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the lines that are logged meanwhile, as JSON or as text.
    fn logged(json: bool, act: impl FnOnce()) -> Vec<String> {
        let kept = Kept::default();
        let writer = kept.clone();
        let logs = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let registry = tracing_subscriber::registry();
        let flat = Flat::new("harness-test".to_owned());
        let dispatch = if json {
            Dispatch::new(registry.with(logs.fmt_fields(Fields).event_format(flat)))
        } else {
            Dispatch::new(registry.with(logs.fmt_fields(Text).with_ansi(false)))
        };
        tracing::dispatcher::with_default(&dispatch, act);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_one_flat_object_with_what_the_spans_know() {
        let lines = logged(true, || {
            let job = tracing::error_span!("job", job_id = %"j \"1\"", attempt = tracing::field::Empty);
            let _in = job.enter();
            job.record("attempt", 2);
            let cause = anyhow::Error::from(io::Error::other("inner")).context("outer");
            let cause: &(dyn Error + 'static) = cause.as_ref();
            tracing::info!(job_id = %"inner", cause, ratio = 0.5, ok = true, level = "mine", "said\n\"so\"");
            tracing::warn!("only this");
        });
        let line: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        let Value::Object(mut wanted) = json!({
            "level": "INFO", "service": "harness-test", "target": "service::logs::tests", "message": "said\n\"so\"",
            "job_id": "inner", "attempt": 2, "cause": "outer: inner", "ratio": 0.5, "ok": true
        }) else {
            unreachable!()
        };
        wanted.insert("timestamp".to_owned(), line["timestamp"].clone());
        assert_eq!(line, wanted);
        assert!(lines[0].starts_with("{\"timestamp\":\"2"), "{}", lines[0]);
        let line: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!((&line["job_id"], &line["message"]), (&json!("j \"1\""), &json!("only this")));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn an_error_is_shown_with_its_causes_each_once() {
        for json in [true, false] {
            let lines = logged(json, || {
                let inner = io::Error::other("inner");
                let cause = anyhow::Error::from(inner).context("outer: inner").context("first");
                let cause: &(dyn Error + 'static) = cause.as_ref();
                tracing::warn!(cause, ratio = 0.5, name = "x", "said");
            });
            assert!(lines[0].contains("first: outer: inner"), "{}", lines[0]);
            assert!(lines[0].contains("said") && lines[0].contains("0.5"), "{}", lines[0]);
            assert_eq!(lines[0].matches("inner").count(), 1, "{}", lines[0]);
        }
    }
}
