//! The address of Postgres. It is read once, and used for all connections.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::parameters::{EXPECTED, quoted, read};
use crate::settings::SetBy;
use crate::tls::{self, Mode};

/// An address that has been checked. Neither `Debug` nor an error shows the password.
#[derive(Clone)]
pub struct Address {
    /// The driver's configuration, without the servers.
    pub(crate) config: Config,
    pub(crate) servers: Vec<Server>,
    /// Whether a standby counts as no answer.
    pub(crate) primary: bool,
    pub(crate) set_by: SetBy,
    /// Whether the address names the authorities to trust (`sslrootcert`).
    pub(crate) names_authorities: bool,
    /// How to use TLS, if the address allows it.
    pub(crate) tls: Option<MakeRustlsConnect>,
}

/// One of an address's servers: a host, an IP address or both.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) host: Option<Host>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.host, self.address) {
            (Some(Host::Tcp(name)), _) if name.contains(':') => write!(f, "[{name}]:{port}"),
            (Some(Host::Tcp(name)), _) => write!(f, "{name}:{port}"),
            (Some(Host::Unix(folder)), _) => write!(f, "{}/.s.PGSQL.{port}", folder.display()),
            (None, address) => write!(f, "{}:{port}", address.map(|it| it.to_string()).unwrap_or_default()),
        }
    }
}

/// The known parameters, and the values that each takes.
const KNOWN: [(&str, &str); 20] = [
    ("host", "names, IP addresses or a folder (/…), separated by commas"),
    ("hostaddr", "IP addresses, separated by commas"),
    ("port", "a number to 65535 for each host, separated by commas"),
    ("user", "a name"),
    ("password", "a text"),
    ("dbname", "a name"),
    ("sslmode", "disable, prefer, require, verify-ca or verify-full"),
    ("sslrootcert", "a file of certificates (PEM)"),
    ("sslnegotiation", "postgres or direct"),
    ("channel_binding", "disable, prefer or require"),
    ("target_session_attrs", "any, read-write or read-only"),
    ("load_balance_hosts", "disable or random"),
    ("application_name", "a text"),
    ("options", "a text, such as -c search_path=fleet"),
    ("connect_timeout", "seconds"),
    ("tcp_user_timeout", "seconds"),
    ("keepalives", "0 or 1"),
    ("keepalives_idle", "seconds"),
    ("keepalives_interval", "seconds"),
    ("keepalives_retries", "a number"),
];

impl Address {
    /// Reads `postgres://user:password@host:5432/database?parameter=value` or `host=… dbname=…`. The error names what
    /// is wrong.
    pub fn new(text: &str, set_by: SetBy) -> Result<Address, String> {
        Address::trusting(text, set_by, None)
    }

    /// As [`Address::new`], and trusts these authorities (PEM) in addition to the system's. `sslrootcert` wins over
    /// both.
    pub fn trusting(text: &str, set_by: SetBy, own: Option<&str>) -> Result<Address, String> {
        let given = Given::read(text)?;
        let servers = servers(&config(&given.places)?)?;
        let mut config = config(&given.others)?;
        if servers.is_empty() || config.get_dbname().is_none() {
            return Err(format!("no host or no database in it, {EXPECTED}"));
        }
        let mode = mode_for(given.mode, &servers, &config)?;
        let authorities = given.authorities.as_deref();
        let tls = (mode != Mode::Disable).then(|| tls::connector(mode, authorities, own)).transpose()?;
        given.fill_up(&mut config);
        // The driver would mistake a primary whose transactions are read-only by default for a standby.
        let primary = match config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => true,
            _ => servers.len() > 1 && !given.has("target_session_attrs"),
        };
        if primary {
            config.target_session_attrs(TargetSessionAttrs::Any);
        }
        config.ssl_mode(mode.negotiated());
        Ok(Address { config, servers, primary, names_authorities: authorities.is_some(), set_by, tls })
    }

    /// Returns the parameters for a driver, except its servers and how TLS is verified.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns how its connections get their settings.
    pub fn set_by(&self) -> SetBy {
        self.set_by
    }

    /// Whether the connection can be read in transit.
    pub fn is_plain(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Disable
    }

    /// Returns the database's name.
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }

    /// Returns the account, if the address names one.
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// Returns the servers, for people: `db-1:5432,db-2:5432`.
    pub fn servers(&self) -> String {
        self.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("config", &self.config)
            .field("servers", &self.servers)
            .field("set_by", &self.set_by)
            .finish_non_exhaustive()
    }
}

/// The parameters of an address, each checked by itself.
struct Given {
    mode: Mode,
    /// `sslrootcert`.
    authorities: Option<PathBuf>,
    /// The parameters that say where the servers are.
    places: Vec<String>,
    /// The other parameters for the driver.
    others: Vec<String>,
}

impl Given {
    fn read(text: &str) -> Result<Given, String> {
        let (mut given, mut authorities) = (None, None);
        // The last parameter that has no meaning without a verified connection.
        let mut wanting_tls = None;
        let (mut places, mut others) = (Vec::new(), Vec::new());
        // If a password has a space or an & in it, what follows may be the rest of the password.
        let may_be_secret = text.split_whitespace().collect::<String>().contains("password=");
        for (name, value) in read(text)? {
            if name == "sslrootcert" || (name == "sslnegotiation" && value == "direct") {
                wanting_tls = Some(name.clone());
            }
            match name.as_str() {
                "sslmode" => given = Some(Mode::read(&value)?),
                // What libpq calls "system" is the default here.
                "sslrootcert" if value == "system" => authorities = None,
                "sslrootcert" => authorities = Some(PathBuf::from(value)),
                "host" | "hostaddr" | "port" => places.push(checked(&name, &value, may_be_secret)?),
                _ => others.push(checked(&name, &value, may_be_secret)?),
            }
        }
        let mode = match (given, wanting_tls) {
            (Some(Mode::Disable), Some(name)) => {
                return Err(format!("{name}: sslmode is disable, expected verify-full with it"));
            }
            (given, None) => given.unwrap_or(Mode::Disable),
            (given, Some(_)) => given.unwrap_or(Mode::Verified),
        };
        Ok(Given { mode, authorities, places, others })
    }

    /// Whether one of the `others` has this name.
    fn has(&self, name: &str) -> bool {
        self.others.iter().any(|other| other.starts_with(&format!("{name}=")))
    }

    /// Sets our defaults for parameters that were not given.
    fn fill_up(&self, config: &mut Config) {
        if !self.has("connect_timeout") {
            config.connect_timeout(Duration::from_secs(5));
        }
        if !self.has("keepalives_idle") {
            config.keepalives_idle(Duration::from_secs(10));
        }
        if !self.has("keepalives_interval") {
            config.keepalives_interval(Duration::from_secs(5));
        }
        if !self.has("tcp_user_timeout") {
            config.tcp_user_timeout(Duration::from_secs(15));
        }
        if !self.has("application_name") {
            config.application_name("harness-fleet");
        }
    }
}

fn config(parameters: &[String]) -> Result<Config, String> {
    Config::from_str(&parameters.join(" ")).map_err(|_| format!("it is no address, {EXPECTED}"))
}

/// Returns the mode for these servers, or an error if they rule out the requested one.
fn mode_for(mode: Mode, servers: &[Server], config: &Config) -> Result<Mode, String> {
    // Nothing is between the two ends of a Unix socket, and Postgres offers no TLS on it.
    if servers.iter().all(|server| matches!(server.host, Some(Host::Unix(_)))) {
        return Ok(Mode::Disable);
    }
    if mode == Mode::Prefer && config.get_ssl_negotiation() == SslNegotiation::Direct {
        return Err("sslnegotiation: direct begins TLS without asking, so sslmode cannot be prefer, expected verify-full with it".to_owned());
    }
    if mode != Mode::Disable && servers.iter().any(|server| server.host.is_none()) {
        return Err("hostaddr: TLS verifies the name of a host, expected host=… beside it".to_owned());
    }
    Ok(mode)
}

/// Returns the servers that these parameters name.
fn servers(config: &Config) -> Result<Vec<Server>, String> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(format!("hostaddr: {} for {count} hosts, expected one for each", addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("port: {} for {count} hosts, expected one for each", ports.len()));
    }
    let server = |number: usize| Server {
        host: hosts.get(number).cloned(),
        address: addresses.get(number).copied(),
        port: ports.get(number).or(ports.first()).copied().unwrap_or(5432),
    };
    Ok((0..count).map(server).collect())
}

/// Returns a parameter in the driver's form, if it is known and the driver accepts its value.
fn checked(name: &str, value: &str, may_be_secret: bool) -> Result<String, String> {
    // libpq's name for it.
    let name = if name == "keepalives_count" { "keepalives_retries" } else { name };
    let Some((_, expected)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = KNOWN.iter().map(|(known, _)| *known).collect();
        let known = known.join(", ");
        return Err(if may_be_secret {
            format!(
                "unknown parameter beside the password: in a URL & is written %26, and in the other form a password with spaces \
                 is put in '…'; expected one of {known}"
            )
        } else {
            format!("unknown parameter \"{}\", expected one of {known}", name.escape_debug())
        });
    };
    let parameter = format!("{name}={}", quoted(value));
    match Config::from_str(&parameter) {
        Ok(_) => Ok(parameter),
        Err(_) => Err(format!("{name}: got something else, expected {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::new(text, SetBy::Connection).unwrap_or_else(|problem| panic!("{text}: {problem}"))
    }

    fn problem(text: &str) -> String {
        Address::new(text, SetBy::Connection).expect_err(text)
    }

    #[test]
    fn every_form_leads_to_the_same_servers() {
        assert_eq!(address("postgres://me:pw@db/d\n").servers(), "db:5432");
        assert_eq!(address("postgres://me:pw@[::1]:5433/d").servers(), "[::1]:5433");
        assert_eq!(address("host=127.0.0.1 dbname=d user=me").servers(), "127.0.0.1:5432");
        assert_eq!(address("postgres://%2Frun%2Fpg/d").servers(), "/run/pg/.s.PGSQL.5432");
        let list = address("postgres://me@a:1,b:2/d?target_session_attrs=read-write");
        assert_eq!((list.servers().as_str(), list.database(), list.user()), ("a:1,b:2", "d", "me"));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (text, parts) in [
            ("postgres://h/d?schema=public", ["\"schema\"", "sslmode"]),
            ("postgres://h/d?sslmode=allow", ["sslmode", "verify-full"]),
            ("postgres://h/d?sslrootcert=/nowhere.pem&sslmode=require", ["sslrootcert", "/nowhere.pem"]),
            ("postgres://h:x/d", ["port", "65535"]),
            ("postgres://h/d?connect_timeout=x", ["connect_timeout", "seconds"]),
            ("postgres://h/d?target_session_attrs=standby", ["target_session_attrs", "read-write"]),
            ("host=a,b,c port=1,2 dbname=d", ["port", "3 hosts"]),
            ("postgres://h/d?sslmode=disable&sslrootcert=system", ["sslrootcert", "verify-full"]),
            ("postgres://h/d?sslmode=disable&sslnegotiation=direct", ["sslnegotiation", "verify-full"]),
            ("postgres://h1,/d", ["host", "empty"]),
            ("postgres://u@:5432/d", ["host", "empty"]),
            ("host=h,,g dbname=d", ["host", "empty"]),
            ("postgres://h/d?sslmode=prefer&sslnegotiation=direct", ["sslnegotiation", "verify-full"]),
            ("hostaddr=127.0.0.1 dbname=d sslmode=require", ["hostaddr", "host="]),
            ("postgres://h", ["no host or no database", "postgres://"]),
            ("", ["no host or no database", "postgres://"]),
        ] {
            let problem = problem(text);
            assert!(parts.iter().all(|part| problem.contains(part)), "{text}: {problem}");
        }
    }

    #[test]
    fn the_last_host_that_is_given_wins() {
        assert_eq!(address("postgres://u@localhost/d?host=/run/sql").servers(), "/run/sql/.s.PGSQL.5432");
        assert_eq!(address("postgres://h:1/d?host=g&port=2").servers(), "g:2");
        assert_eq!(address("host=a dbname=x host=b dbname=d").servers(), "b:5432");
        assert_eq!(address("host=a dbname=x dbname=d").database(), "d");
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", address("postgres://me:secret@h/d"));
        assert!(!shown.contains("secret"), "{shown}");
        assert!(!problem("postgres://me:secret@h:x/d?sslmode=secretx").contains("secret@"));
        for split in [
            "host=h dbname=d password=my secret=word",
            "host=h dbname=d password = my secret='word",
            "postgres://h/d?password=my&secret=word",
            "postgres://h/d?password=my&secret=%ff",
            "postgres://me@h/d?password=my&secret",
        ] {
            assert!(!problem(split).contains("secret"), "{split}: {}", problem(split));
        }
    }

    #[test]
    fn tls_is_verified_wherever_there_is_some() {
        for (mode, negotiated) in [
            ("", SslMode::Disable),
            ("?sslmode=disable", SslMode::Disable),
            ("?sslmode=prefer", SslMode::Prefer),
            ("?sslmode=require", SslMode::Require),
            ("?sslmode=verify-ca", SslMode::Require),
            ("?sslmode=verify-full", SslMode::Require),
            ("?sslrootcert=system", SslMode::Require),
            ("?sslnegotiation=direct", SslMode::Require),
        ] {
            let address = address(&format!("postgres://h/d{mode}"));
            assert_eq!(address.config().get_ssl_mode(), negotiated, "{mode}");
            assert_eq!(address.tls.is_none(), address.is_plain(), "{mode}");
        }
        assert!(address("postgres://%2Frun/d?sslmode=require").is_plain(), "a Unix socket");
    }
}
