//! A trace, recorded or synthetic: when jobs came, and how long each ran.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};

use serde_json::Value;

/// The names of a line's fields.
const FIELDS: [&str; 3] = ["arrival_s", "service_s", "session"];
/// The latest arrival: a year. A later one is a Unix time by mistake.
const MAX_ARRIVAL_S: f64 = 366.0 * 86_400.0;
/// The longest service time: a month.
const MAX_SERVICE_S: f64 = 31.0 * 86_400.0;
/// The longest name of a session.
const MAX_SESSION_BYTES: usize = 128;
/// The most problems that are listed; the others are counted.
const TOLD: usize = 10;

/// A job that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, in milliseconds from the trace's beginning.
    pub arrival_ms: u64,
    /// How long it runs once it has a slot, in milliseconds.
    pub service_ms: u64,
    /// Its session, counted from 0; jobs of one session run one at a time.
    pub session: Option<u32>,
}

/// Jobs in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    jobs: Vec<Arrival>,
    sessions: usize,
}

/// Why a trace cannot be used: each problem with its line and field.
#[derive(Debug)]
pub struct TraceError {
    problems: Vec<String>,
    further: usize,
}

impl TraceError {
    fn of(problem: impl fmt::Display) -> TraceError {
        TraceError { problems: vec![problem.to_string()], further: 0 }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))?;
        match self.further {
            0 => Ok(()),
            further => write!(f, "; and {further} more"),
        }
    }
}

impl std::error::Error for TraceError {}

impl Trace {
    /// Makes a trace of these jobs, sorted by arrival. Jobs that arrive at the same time keep their order.
    pub fn new(mut jobs: Vec<Arrival>) -> Trace {
        jobs.sort_by_key(|job| job.arrival_ms);
        let sessions = jobs.iter().filter_map(|job| job.session).max().map_or(0, |last| last as usize + 1);
        Trace { jobs, sessions }
    }

    /// The jobs, in the order of their arrival.
    pub fn jobs(&self) -> &[Arrival] {
        &self.jobs
    }

    /// The number of sessions; every job's session is below it.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    /// When the last job comes, in milliseconds.
    pub fn last_arrival_ms(&self) -> u64 {
        self.jobs.last().map_or(0, |job| job.arrival_ms)
    }

    /// Reads CSV with a header, or JSON lines, as the first line shows. Empty lines are ignored.
    ///
    /// # Errors
    /// Lists what is wrong, with line and field: up to ten problems, and the number of the others.
    pub fn read(mut input: impl BufRead) -> Result<Trace, TraceError> {
        let mut reader = Reader::default();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => reader.line(number, &line),
                Err(error) => return Err(TraceError::of(read_failed(number, &error))),
            }
            if reader.header_is_wrong {
                break;
            }
        }
        reader.finish()
    }
}

fn read_failed(number: usize, error: &io::Error) -> String {
    format!("line {number}: cannot be read: {error}")
}

/// How lines are written.
enum Format {
    JsonLines,
    /// Which of [`FIELDS`] each column is.
    Csv(Vec<usize>),
}

#[derive(Default)]
struct Reader {
    format: Option<Format>,
    jobs: Vec<Arrival>,
    sessions: HashMap<String, u32>,
    problems: Vec<String>,
    further: usize,
    header_is_wrong: bool,
}

impl Reader {
    fn line(&mut self, number: usize, bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return self.problem(format!("line {number}: is not UTF-8"));
        };
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return;
        }
        let read = match &self.format {
            None if text.starts_with('{') => {
                self.format = Some(Format::JsonLines);
                read_json(text)
            }
            None => match read_header(text) {
                Ok(columns) => return self.format = Some(Format::Csv(columns)),
                Err(problem) => {
                    self.header_is_wrong = true;
                    Err(problem)
                }
            },
            Some(Format::JsonLines) => read_json(text),
            Some(Format::Csv(columns)) => read_csv(columns, text),
        };
        match read.and_then(|given| self.arrival(given)) {
            Ok(job) => self.jobs.push(job),
            Err(problem) => self.problem(format!("line {number}: {problem}")),
        }
    }

    fn arrival(&mut self, given: [Option<Value>; 3]) -> Result<Arrival, String> {
        let [arrival, service, session] = given;
        Ok(Arrival {
            arrival_ms: read_ms(FIELDS[0], arrival, MAX_ARRIVAL_S)?,
            service_ms: read_ms(FIELDS[1], service, MAX_SERVICE_S)?,
            session: self.session(session)?,
        })
    }

    fn session(&mut self, given: Option<Value>) -> Result<Option<u32>, String> {
        let name = match given {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(name)) if name.is_empty() => return Ok(None),
            Some(Value::String(name)) if name.len() <= MAX_SESSION_BYTES => name,
            Some(other) => {
                return Err(format!(
                    "session: got {}, expected a name of at most {MAX_SESSION_BYTES} bytes",
                    shorten(&other.to_string())
                ));
            }
        };
        let next = self.sessions.len() as u32;
        Ok(Some(*self.sessions.entry(name).or_insert(next)))
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < TOLD { self.problems.push(problem) } else { self.further += 1 }
    }

    fn finish(self) -> Result<Trace, TraceError> {
        if !self.problems.is_empty() {
            return Err(TraceError { problems: self.problems, further: self.further });
        }
        if self.jobs.is_empty() {
            return Err(TraceError::of("there are no jobs in it, expected a line for each"));
        }
        Ok(Trace::new(self.jobs))
    }
}

fn read_header(text: &str) -> Result<Vec<usize>, String> {
    let mut columns = Vec::new();
    for name in text.split(',').map(unquote) {
        let Some(field) = FIELDS.iter().position(|field| *field == name) else {
            return Err(format!(
                "the header has the column \"{}\", expected arrival_s,service_s and maybe session (or JSON lines)",
                shorten(name)
            ));
        };
        if columns.contains(&field) {
            return Err(format!("the header has the column {name} twice"));
        }
        columns.push(field);
    }
    match (0..2).find(|field| !columns.contains(field)) {
        Some(missing) => Err(format!("the header has no column {}", FIELDS[missing])),
        None => Ok(columns),
    }
}

fn read_csv(columns: &[usize], text: &str) -> Result<[Option<Value>; 3], String> {
    let mut given = [None, None, None];
    let cells: Vec<&str> = text.split(',').map(unquote).collect();
    if cells.len() > columns.len() {
        return Err(format!("has {} fields, but the header has {}", cells.len(), columns.len()));
    }
    for (field, cell) in columns.iter().zip(cells) {
        given[*field] = Some(match cell.parse::<f64>() {
            Ok(number) if *field < 2 && number.is_finite() => Value::from(number),
            _ => Value::from(cell),
        });
    }
    Ok(given)
}

/// Removes quotes. Names and numbers hold no commas, so quotes are never needed, but some programs write them.
fn unquote(cell: &str) -> &str {
    let cell = cell.trim();
    cell.strip_prefix('"').and_then(|cell| cell.strip_suffix('"')).unwrap_or(cell)
}

fn read_json(text: &str) -> Result<[Option<Value>; 3], String> {
    let object: serde_json::Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("is not a JSON object: {error}"))?;
    let mut given = [None, None, None];
    for (name, value) in object {
        match FIELDS.iter().position(|field| *field == name) {
            Some(field) => given[field] = Some(value),
            None => {
                return Err(format!(
                    "has the field \"{}\", expected arrival_s, service_s and maybe session",
                    shorten(&name)
                ));
            }
        }
    }
    Ok(given)
}

fn read_ms(field: &str, given: Option<Value>, max_s: f64) -> Result<u64, String> {
    let Some(given) = given else {
        return Err(format!("{field}: is missing, expected seconds"));
    };
    match given.as_f64() {
        Some(seconds) if (0.0..=max_s).contains(&seconds) => Ok((seconds * 1e3).round() as u64),
        _ => Err(format!("{field}: got {}, expected seconds from 0 to {max_s}", shorten(&given.to_string()))),
    }
}

/// Shortens what was given to as much as helps to find it.
fn shorten(given: &str) -> String {
    match given.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &given[..end]),
        None => given.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Trace::read(text.as_bytes()).expect_err("a problem").to_string()
    }

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let csv = "arrival_s,service_s,session\r\n0.5,60,a\r\n\r\n2,1.25,\r\n1,3,a\r\n";
        let json = concat!(
            "{\"arrival_s\":0.5,\"service_s\":60,\"session\":\"a\"}\n",
            "{\"service_s\":1.25,\"arrival_s\":2}\n",
            "{\"arrival_s\":1,\"service_s\":3,\"session\":\"a\"}",
        );
        let trace = Trace::read(csv.as_bytes()).unwrap();
        assert_eq!(trace, Trace::read(json.as_bytes()).unwrap());
        let job = |arrival_ms, service_ms, session| Arrival { arrival_ms, service_ms, session };
        assert_eq!(
            trace.jobs(),
            [job(500, 60_000, Some(0)), job(1_000, 3_000, Some(0)), job(2_000, 1_250, None)]
        );
        assert_eq!((trace.sessions(), trace.last_arrival_ms()), (1, 2_000));
    }

    #[test]
    fn columns_may_stand_in_any_order_and_quotes_are_taken_off() {
        let trace = Trace::read("\"service_s\", \"arrival_s\"\n\"7\",\"1\"\n".as_bytes()).unwrap();
        assert_eq!(trace.jobs(), [Arrival { arrival_ms: 1_000, service_ms: 7_000, session: None }]);
    }

    #[test]
    fn a_problem_is_reported_with_line_and_field() {
        let head = "arrival_s,service_s\n";
        for (text, expected) in [
            (
                format!("{head}1,2\nsoon,2\n"),
                "line 3: arrival_s: got \"soon\", expected seconds from 0 to 31622400",
            ),
            (format!("{head}1,-2\n"), "line 2: service_s: got -2.0, expected seconds from 0 to 2678400"),
            (format!("{head}1,NaN\n"), "line 2: service_s: got \"NaN\", expected seconds from 0 to 2678400"),
            (
                format!("{head}1764028800,2\n"),
                "line 2: arrival_s: got 1764028800.0, expected seconds from 0 to 31622400",
            ),
            (format!("{head}1\n"), "line 2: service_s: is missing, expected seconds"),
            (format!("{head}1,2,3\n"), "line 2: has 3 fields, but the header has 2"),
            (
                "arrival_s,duration\n1,2\n".to_owned(),
                "line 1: the header has the column \"duration\", expected arrival_s,service_s and maybe session (or JSON lines)",
            ),
            ("arrival_s,arrival_s\n".to_owned(), "line 1: the header has the column arrival_s twice"),
            ("arrival_s\n1\n".to_owned(), "line 1: the header has no column service_s"),
            ("{\"arrival_s\":1}\n".to_owned(), "line 1: service_s: is missing, expected seconds"),
            (
                "{\"arrival_s\":\"1\",\"service_s\":1}\n".to_owned(),
                "line 1: arrival_s: got \"1\", expected seconds from 0 to 31622400",
            ),
            (
                "{\"arrival_s\":1,\"service_s\":1,\"session\":7}\n".to_owned(),
                "line 1: session: got 7, expected a name of at most 128 bytes",
            ),
            (
                "{\"arrival_s\":1,\"service_s\":1,\"sesion\":\"a\"}\n".to_owned(),
                "line 1: has the field \"sesion\", expected arrival_s, service_s and maybe session",
            ),
            (
                "{\"arrival_s\":1,\"service_s\":1}\n[]\n".to_owned(),
                "line 2: is not a JSON object: invalid type: sequence, expected a map at line 1 column 0",
            ),
            ("".to_owned(), "there are no jobs in it, expected a line for each"),
            (head.to_owned(), "there are no jobs in it, expected a line for each"),
        ] {
            assert_eq!(said(&text), expected, "{text}");
        }
        let bytes: &[u8] = b"arrival_s,service_s\n1,2\n\xff,1\n";
        assert_eq!(Trace::read(bytes).unwrap_err().to_string(), "line 3: is not UTF-8");
    }

    #[test]
    fn ten_problems_are_listed_and_the_others_counted() {
        let text = format!("arrival_s,service_s\n{}", "x,1\n".repeat(13));
        let said = said(&text);
        assert!(
            said.contains("line 2: ") && said.contains("line 11: ") && !said.contains("line 12: "),
            "{said}"
        );
        assert!(said.ends_with("; and 3 more"), "{said}");
    }
}
