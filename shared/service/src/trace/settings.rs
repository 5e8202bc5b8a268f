//! The settings of traces: our flags and variables, and the variables that OpenTelemetry's specification names.
//!
//! A wrong value of one of the latter is ignored with a warning, as the specification requires. They are often set for
//! a whole cluster, with other programs in mind.

use std::path::Path;
use std::time::Duration;

use opentelemetry_sdk::trace::ShouldSample;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{HeaderName, HeaderValue};

use super::receiver::Receiver;
use super::sampler::sampler;
use crate::http_url::percent_decoded;
use crate::{Authorities, HttpUrl, Problems};

const EXPECTED: &str = "expected the address of an OTLP receiver over HTTP, such as http://collector:4318";
const EXPECTED_HEADERS: &str = "expected KEY=VALUE, separated by commas, values written as in URLs";

/// Where traces go, including the path.
const WHOLE_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// The most spans that may wait, unless `OTEL_BSP_MAX_QUEUE_SIZE` sets it.
const QUEUE_SIZE: usize = 2_048;
/// The timeout for a batch, unless `OTEL_EXPORTER_OTLP_TIMEOUT` sets it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Variables of the specification that would change what is exported, but have no effect here.
const UNSUPPORTED: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
];

type Headers = Vec<(HeaderName, HeaderValue)>;

/// How traces are made.
#[derive(Debug)]
pub(crate) struct TraceSettings {
    pub(super) receiver: Receiver,
    pub(super) service: String,
    pub(super) sampler: Option<Box<dyn ShouldSample>>,
    pub(super) queue_size: usize,
    /// Further attributes of this process.
    pub(crate) resource: Vec<(&'static str, String)>,
    pub(super) warnings: Vec<String>,
}

/// The variables of a process.
pub(crate) struct Variables<F>(pub F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    /// Returns a variable that is set and not empty.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// Returns the first of these that is set.
    fn first(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        names.into_iter().find_map(|name| Some((name, self.get(name)?)))
    }

    /// Returns a number that the first of these sets, or warns why it is ignored.
    fn number(&self, names: [&'static str; 2], warnings: &mut Vec<String>) -> Option<u64> {
        let (name, given) = self.first(names)?;
        let number = given.parse().ok().filter(|number| *number > 0);
        if number.is_none() {
            warnings.push(format!("{name}: got \"{given}\", expected a number above 0; it is ignored"));
        }
        number
    }

    /// Returns where traces go, and which variable says so. `base` is the value of the flag.
    fn endpoint(&self, base: Option<&str>) -> Option<(&'static str, String)> {
        let base = base.filter(|base| !base.is_empty());
        let whole = self.get(WHOLE_ENDPOINT).map(|whole| (WHOLE_ENDPOINT, whole));
        whole.or_else(|| Some(("OTEL_EXPORTER_OTLP_ENDPOINT", base?.to_owned())))
    }

    /// Returns the headers of each request. `given` are those of the flag.
    fn headers(&self, given: Option<&str>, problems: &mut Problems) -> Option<Headers> {
        const OWN: &str = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
        match self.get(OWN) {
            Some(own) => problems.check(OWN, read_headers(&own)),
            None => problems.check("OTEL_EXPORTER_OTLP_HEADERS", read_headers(given.unwrap_or_default())),
        }
    }

    /// Returns the trusted authorities: those of the file that is named for traces alone, or the `usual` ones.
    fn authorities(&self, usual: &Authorities, problems: &mut Problems) -> Option<Authorities> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
        match self.first(names) {
            Some((name, path)) => problems.check(name, Authorities::with(Path::new(&path))),
            None => Some(usual.clone()),
        }
    }

    /// Whether the variables switch traces off.
    fn switched_off(&self) -> bool {
        self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || self.get("OTEL_TRACES_EXPORTER").as_deref() == Some("none")
    }

    /// Returns warnings about requested settings that have no effect.
    fn ignored_settings(&self) -> Vec<String> {
        let exporter =
            self.get("OTEL_TRACES_EXPORTER").filter(|other| !["none", "otlp"].contains(&other.as_str()));
        let exporter = exporter.map(|other| {
            format!("OTEL_TRACES_EXPORTER: got \"{other}\", expected otlp or none; otlp is used")
        });
        let protocol = self.first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        let protocol = protocol
            .filter(|(_, value)| value != "http/protobuf")
            .map(|(name, other)| format!("{name}: got \"{other}\", expected http/protobuf, which is used"));
        let unsupported = UNSUPPORTED.into_iter().filter(|name| self.get(name).is_some());
        let unsupported = unsupported.map(|name| format!("{name} is set, but has no effect here"));
        exporter.into_iter().chain(protocol).chain(unsupported).collect()
    }

    /// Returns which traces are recorded. If the requested sampler is wrong, warns and returns the usual one.
    fn sampler(&self, warnings: &mut Vec<String>) -> Option<Box<dyn ShouldSample>> {
        const USUAL: &str = "parentbased_always_on";
        let argument = self.get("OTEL_TRACES_SAMPLER_ARG");
        let name = self.get("OTEL_TRACES_SAMPLER");
        match sampler(name.as_deref().unwrap_or(USUAL), argument.as_deref()) {
            Ok(sampler) => Some(sampler),
            Err(problem) => {
                warnings.push(format!("{problem}; instead, every trace is recorded that its caller records"));
                sampler(USUAL, None).ok()
            }
        }
    }

    /// Returns the name of this process: `OTEL_SERVICE_NAME`, or its usual name.
    pub(crate) fn service(&self, usual: &str) -> String {
        self.get("OTEL_SERVICE_NAME").unwrap_or_else(|| usual.to_owned())
    }
}

impl TraceSettings {
    /// Reads all of them. Returns `None` if no receiver is set, or if traces are switched off.
    pub(crate) fn read<F: Fn(&str) -> Option<String>>(
        endpoint: Option<&str>,
        headers: Option<&str>,
        authorities: &Authorities,
        service: String,
        variables: &Variables<F>,
        problems: &mut Problems,
    ) -> Option<TraceSettings> {
        let (name, given) = variables.endpoint(endpoint)?;
        let is_whole = name == WHOLE_ENDPOINT;
        let url = problems.check(name, read_endpoint(&given, is_whole));
        let headers = variables.headers(headers, problems);
        let authorities = variables.authorities(authorities, problems);
        if variables.switched_off() {
            return None;
        }
        let mut warnings = variables.ignored_settings();
        let timeout = variables
            .number(["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"], &mut warnings);
        let queue_size = variables.number(["OTEL_BSP_MAX_QUEUE_SIZE"; 2], &mut warnings);
        let sampler = variables.sampler(&mut warnings);
        Some(TraceSettings {
            receiver: Receiver {
                headers: with_credentials(headers?, url.as_ref()?),
                url: if is_whole {
                    url.as_ref()?.whole().to_owned()
                } else {
                    format!("{}/v1/traces", url.as_ref()?.base())
                },
                shown: url?.origin(),
                tls: authorities?.tls(),
                timeout: timeout.map_or(TIMEOUT, Duration::from_millis),
            },
            service,
            sampler,
            queue_size: queue_size.map_or(QUEUE_SIZE, |size| size as usize),
            resource: Vec::new(),
            warnings,
        })
    }
}

/// Reads the receiver's address, or the base to which the path is appended.
fn read_endpoint(given: &str, is_whole: bool) -> Result<HttpUrl, String> {
    let url = HttpUrl::parse(given).map_err(|problem| format!("{problem}, {EXPECTED}"))?;
    if url.has_query() && !is_whole {
        return Err(format!("has a query, {EXPECTED}"));
    }
    Ok(url)
}

/// Adds the address's credentials to the headers. A header `authorization` takes precedence.
fn with_credentials(mut headers: Headers, url: &HttpUrl) -> Headers {
    if !headers.iter().any(|(name, _)| name == AUTHORIZATION) {
        headers.extend(url.authorization().map(|value| (AUTHORIZATION, value)));
    }
    headers
}

/// Reads `key=value,key=value` with percent-encoded values (W3C Baggage, as the specification requires). No error shows
/// a value.
fn read_headers(text: &str) -> Result<Headers, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .enumerate()
        .map(|(at, pair)| {
            let nth = at + 1;
            let (key, value) =
                pair.split_once('=').ok_or(format!("header {nth} has no =, {EXPECTED_HEADERS}"))?;
            let name = key.trim().parse::<HeaderName>();
            let name =
                name.map_err(|_| format!("header {nth} has no name that is one, {EXPECTED_HEADERS}"))?;
            let value = percent_decoded(value.trim()).and_then(|value| HeaderValue::from_bytes(&value).ok());
            let mut value =
                value.ok_or(format!("header {name} has no value that is one, {EXPECTED_HEADERS}"))?;
            value.set_sensitive(true);
            Ok((name, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: &str, headers: &str, set: &[(&str, &str)]) -> Result<Option<TraceSettings>, String> {
        let mut problems = Problems::default();
        let variables = Variables(|name: &str| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        let service = variables.service("harness-test");
        let read = TraceSettings::read(
            Some(endpoint),
            Some(headers),
            &Authorities::default(),
            service,
            &variables,
            &mut problems,
        );
        if problems.count() > 0 { Err(problems.into_error().to_string()) } else { Ok(read) }
    }

    #[test]
    fn without_a_receiver_or_when_switched_off_no_traces_are_made() {
        assert!(read("", "", &[]).unwrap().is_none());
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(read("http://c:4318", "", &[off]).unwrap().is_none(), "{off:?}");
        }
    }

    #[test]
    fn the_receiver_is_the_base_and_a_path_or_all_that_was_given() {
        let url =
            |endpoint: &str, set: &[(&str, &str)]| read(endpoint, "", set).unwrap().unwrap().receiver.url;
        assert_eq!(url("http://c:4318", &[]), "http://c:4318/v1/traces");
        assert_eq!(url("https://c/base/", &[]), "https://c/base/v1/traces");
        let whole = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://d/in")];
        assert_eq!(url("http://c:4318", &whole), "http://d/in");
        assert_eq!(url("", &whole), "http://d/in");
        let slash = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://d/in/")];
        assert_eq!(url("", &slash), "http://d/in/");
        let settings = read("http://me:s3cret@c:4318", "", &[]).unwrap().unwrap();
        assert_eq!(settings.receiver.shown, "http://c:4318");
    }

    #[test]
    fn an_address_that_is_none_is_reported_by_the_settings_name_and_without_passwords() {
        for wrong in ["collector:4318", "grpc://c:4317", "http://", "s3cret", "ftp://me:s3cret@c"] {
            let refused = read(wrong, "", &[]).unwrap_err();
            assert!(
                refused.contains("OTEL_EXPORTER_OTLP_ENDPOINT: ") && refused.contains(EXPECTED),
                "{refused}"
            );
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }

    #[test]
    fn headers_are_read_as_in_urls_and_never_shown() {
        let headers =
            read("http://c", "authorization=Bearer%20s3cret, x-tenant = a=b,", &[]).unwrap().unwrap();
        assert!(!format!("{headers:?}").contains("s3cret"));
        let headers = headers.receiver.headers;
        let text = |at: usize| (headers[at].0.as_str(), headers[at].1.to_str().unwrap());
        assert_eq!((text(0), text(1)), (("authorization", "Bearer s3cret"), ("x-tenant", "a=b")));
        for wrong in ["s3cret", "a b=s3cret", "a=s3cret%2", "a=s3cret%0A", "=s3cret"] {
            let refused = read("http://c", wrong, &[]).unwrap_err();
            assert!(refused.contains("OTEL_EXPORTER_OTLP_HEADERS: header "), "{refused}");
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }

    #[test]
    fn what_the_specification_names_is_heeded_or_reported() {
        let set = [
            ("OTEL_SERVICE_NAME", "mine"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ];
        let settings = read("http://c", "", &set).unwrap().unwrap();
        assert_eq!((settings.service.as_str(), settings.queue_size), ("mine", 7));
        assert_eq!(settings.receiver.timeout, Duration::from_millis(1500));
        assert_eq!(settings.warnings, Vec::<String>::new());
        let set = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ];
        let settings = read("http://c", "", &set).unwrap().unwrap();
        for (name, _) in set {
            assert!(
                settings.warnings.iter().any(|warning| warning.contains(name)),
                "{name}: {:?}",
                settings.warnings
            );
        }
        assert_eq!(settings.queue_size, QUEUE_SIZE);
    }
}
