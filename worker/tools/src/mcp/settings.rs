//! The settings of a server, checked.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use process::{Limits, Program, Sandbox, SandboxConfig, SettingError, is_withheld};
use url::Url;

use crate::config::{FILE_MB, Names, Scope, ServerConfig};
use crate::ranges;
use crate::toolbox::Machine;

/// The longest start.
const MOST_START_MS: u64 = 600_000;

/// A server, and what of it may be used.
pub struct ServerSettings {
    pub name: String,
    pub how: How,
    pub scope: Scope,
    pub allow: Option<Names>,
    pub safe: Names,
    pub side_by_side: Names,
    pub approve: Names,
    pub start_timeout: Duration,
    pub timeout: Duration,
    pub max_output_bytes: usize,
}

/// How it is reached.
pub enum How {
    /// As a program of ours.
    Program(Box<ServerProgram>),
    /// Over HTTP.
    Http { url: String, headers: HashMap<HeaderName, HeaderValue>, client: reqwest::Client },
}

/// A program that is a server.
pub struct ServerProgram {
    pub program: Program,
    pub sandbox: Option<Sandbox>,
    pub limits: Limits,
    pub stop_grace: Duration,
    /// Whether it is given what leads to the gateway.
    pub gateway: bool,
}

impl ServerConfig {
    /// Checks the settings of the server of this name. The error lists everything that is wrong.
    pub(crate) fn check(
        self,
        name: &str,
        sandbox: &SandboxConfig,
        machine: &Machine<'_>,
    ) -> Result<ServerSettings, Vec<SettingError>> {
        let mut problems = ranges::wrong(&[
            ("start_timeout_ms", self.start_timeout_ms, 1, MOST_START_MS),
            ("timeout_ms", self.timeout_ms, 1, ranges::DAY_MS),
            ("stop_grace_ms", self.stop_grace_ms, 0, 60_000),
            ("max_output_bytes", self.max_output_bytes as u64, ranges::LEAST_OUTPUT, ranges::MOST_OUTPUT),
            ("memory_limit_mb", self.memory_limit_mb.unwrap_or(16), 16, ranges::MOST_MEMORY_MB),
            ("max_file_mb", self.max_file_mb.unwrap_or(FILE_MB), 1, ranges::MOST_FILE_MB),
        ]);
        let how = match (self.command.is_empty(), self.url.is_empty()) {
            (false, true) => self.program(sandbox, &mut problems),
            (true, false) => self.http(machine, &mut problems),
            (true, true) => {
                let problem = "missing, expected the program of a server, or its `url`";
                problems.push(SettingError::new("command", problem));
                None
            }
            (false, false) => {
                problems.push(SettingError::new("url", "got both `command` and `url`, expected one of them"));
                None
            }
        };
        let Some(how) = how.filter(|_| problems.is_empty()) else { return Err(problems) };
        Ok(ServerSettings {
            name: name.to_owned(),
            how,
            scope: self.scope,
            allow: self.allow,
            safe: self.safe,
            side_by_side: self.side_by_side,
            approve: self.approve,
            start_timeout: Duration::from_millis(self.start_timeout_ms),
            timeout: Duration::from_millis(self.timeout_ms),
            max_output_bytes: self.max_output_bytes,
        })
    }

    fn program(&self, sandbox: &SandboxConfig, problems: &mut Vec<SettingError>) -> Option<How> {
        if !self.headers_env.is_empty() || self.bearer_env.is_some() {
            let setting = if self.bearer_env.is_some() { "bearer_env" } else { "headers_env" };
            problems.push(SettingError::new(
                setting,
                "it is for a server with a `url`, expected env_allow or env",
            ));
        }
        if self.gateway && self.scope == Scope::Worker {
            problems.push(SettingError::new(
                "gateway",
                "the gateway is an attempt's, expected scope = \"attempt\"",
            ));
        }
        let program = Program::find(&self.command, &self.env_allow, &self.env);
        let program = program.map_err(|found| problems.extend(found)).ok();
        let named = program.iter().flat_map(Program::named);
        let sandbox = sandbox.clone().check(named).map_err(|found| problems.extend(found)).ok();
        Some(How::Program(Box::new(ServerProgram {
            program: program?,
            sandbox: sandbox?,
            limits: ranges::limits(self.memory_limit_mb, self.max_file_mb),
            stop_grace: Duration::from_millis(self.stop_grace_ms),
            gateway: self.gateway,
        })))
    }

    fn http(&self, machine: &Machine<'_>, problems: &mut Vec<SettingError>) -> Option<How> {
        for (setting, given) in [
            ("env_allow", !self.env_allow.is_empty()),
            ("env", !self.env.is_empty()),
            ("gateway", self.gateway),
            ("memory_limit_mb", self.memory_limit_mb.is_some()),
            ("max_file_mb", self.max_file_mb.is_some()),
        ] {
            if given {
                problems.push(SettingError::new(setting, "it is for a server with a `command`"));
            }
        }
        address(&self.url).map_err(|problem| problems.push(SettingError::new("url", problem))).ok();
        let headers = self.headers(machine, problems);
        let client = http_client::build(machine.tls.clone());
        let client = client.map_err(|problem| problems.push(SettingError::new("url", problem))).ok()?;
        Some(How::Http { url: self.url.clone(), headers, client })
    }

    fn headers(
        &self,
        machine: &Machine<'_>,
        problems: &mut Vec<SettingError>,
    ) -> HashMap<HeaderName, HeaderValue> {
        let mut headers = HashMap::new();
        let named =
            self.headers_env.iter().map(|(name, of)| (format!("headers_env.{name}"), name.as_str(), "", of));
        let bearer =
            self.bearer_env.iter().map(|of| ("bearer_env".to_owned(), "authorization", "Bearer ", of));
        for (setting, name, before, variable) in named.chain(bearer) {
            if is_withheld(variable) {
                let problem = format!("got {variable}, a secret of the worker's; expected another variable");
                problems.push(SettingError::new(setting, problem));
                continue;
            }
            let Some(value) = (machine.variable)(variable) else {
                let problem =
                    format!("the worker's environment has no {variable}, expected a variable that is set");
                problems.push(SettingError::new(setting, problem));
                continue;
            };
            match (HeaderName::try_from(name), HeaderValue::try_from(format!("{before}{}", value.trim()))) {
                (Ok(own), _) if is_ours(&own) => {
                    problems.push(SettingError::new(setting, "the worker sets it, expected another header"));
                }
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
                (Err(_), _) => {
                    problems.push(SettingError::new(setting, "no header of HTTP, expected its name"))
                }
                (_, Err(_)) => {
                    let problem = format!("the value of {variable} is no header's, expected visible ASCII");
                    problems.push(SettingError::new(setting, problem));
                }
            }
        }
        headers
    }
}

/// Returns whether each request has this header already.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    let own = ["accept", "content-type", "content-length", "host", "idempotency-key", "last-event-id"];
    own.contains(&name) || name.starts_with("mcp-")
}

fn address(url: &str) -> Result<(), String> {
    let expected = "expected an address such as https://tools.example.com/mcp, without a password";
    let url = Url::parse(url).map_err(|error| format!("no address: {error}, {expected}"))?;
    match url.scheme() {
        "http" | "https" if url.password().is_some() || !url.username().is_empty() => {
            Err(format!("got a login in the address, which bearer_env and headers_env can hold, {expected}"))
        }
        "http" | "https" => Ok(()),
        scheme => Err(format!("got the scheme {scheme}, {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring;
    use rustls::{ClientConfig, RootCertStore};

    use super::*;

    fn wrong(table: &str) -> Vec<String> {
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let tls = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let variable = |name: &str| match name {
            "TOKEN" => Some("hunter2".to_owned()),
            "BROKEN" => Some("hun\nter2".to_owned()),
            _ => None,
        };
        let config: ServerConfig = toml::from_str(table).unwrap();
        let checked =
            config.check("s", &SandboxConfig::default(), &Machine { tls: &tls, variable: &variable });
        checked.err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_server_is_a_program_or_an_address_and_its_secrets_have_names_alone() {
        let none: [&str; 0] = [];
        assert_eq!(wrong("command = ['true']\nenv_allow = ['TOKEN']"), none);
        assert_eq!(
            wrong("url = 'https://h/mcp'\nbearer_env = 'TOKEN'\nheaders_env = { X-Key = 'TOKEN' }"),
            none
        );
        for (table, named) in [
            ("", "command: missing"),
            ("command = ['true']\nurl = 'http://h/'", "url: got both"),
            ("command = ['/no/such']", "command[0]: "),
            ("command = ['true']\nbearer_env = 'TOKEN'", "bearer_env: it is for a server with a `url`"),
            ("url = 'http://h/'\nenv_allow = ['TOKEN']", "env_allow: it is for a server with a `command`"),
            ("url = 'http://h/'\ngateway = true", "gateway: it is for a server with a `command`"),
            ("command = ['true']\nscope = 'worker'\ngateway = true", "gateway: the gateway is an attempt's"),
            ("url = 'ftp://h/'", "url: got the scheme ftp"),
            ("url = 'h'", "url: no address"),
            ("url = 'http://u:pw@h/'", "url: got a login"),
            ("url = 'http://h/'\nbearer_env = 'NONE'", "bearer_env: the worker's environment has no NONE"),
            ("url = 'http://h/'\nbearer_env = 'BROKEN'", "bearer_env: the value of BROKEN is no header's"),
            ("url = 'http://h/'\nbearer_env = 'DATABASE_URL'", "bearer_env: got DATABASE_URL, a secret"),
            (
                "url = 'http://h/'\nheaders_env = { Mcp-Session-Id = 'TOKEN' }",
                "headers_env.Mcp-Session-Id: the worker",
            ),
            ("url = 'http://h/'\ntimeout_ms = 0", "timeout_ms: got 0"),
            ("url = 'http://h/'\nmax_file_mb = 1", "max_file_mb: it is for a server with a `command`"),
            ("command = ['true']\nmax_file_mb = 0", "max_file_mb: got 0, expected 1 to"),
        ] {
            let problems = wrong(table);
            assert!(problems.len() == 1 && problems[0].starts_with(named), "{table}: {problems:?}");
            assert!(!problems[0].contains("hunter2"), "{problems:?}");
        }
    }
}
