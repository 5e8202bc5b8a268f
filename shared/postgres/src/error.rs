//! Why Postgres cannot be used by an address, and what would help.

use std::error::Error as _;
use std::io;

use rustls::CertificateError;
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use crate::address::Address;

/// The error that a start, `migrate` and `doctor` report. Waiting helps against some of its kinds
/// ([`PostgresError::is_retryable`]).
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The connection failed or broke. `advice` begins with what is wrong.
    #[error("{advice}")]
    Unreachable {
        /// What would help.
        advice: String,
        /// Whether another try may succeed.
        retryable: bool,
        /// The answer.
        #[source]
        source: Error,
    },
    /// No answer came in time.
    #[error("Postgres at {servers} does not answer within {seconds} s")]
    Silent {
        /// The servers that were asked.
        servers: String,
        /// How long we waited.
        seconds: u64,
    },
    /// There are texts that the database cannot hold.
    #[error(
        "the database \"{database}\" has the encoding {encoding}, expected UTF8: create another one with CREATE DATABASE … ENCODING \
         'UTF8' TEMPLATE template0, and name that in DATABASE_URL"
    )]
    NotUtf8 {
        /// The database's name.
        database: String,
        /// Its encoding.
        encoding: String,
    },
    /// Transactions of one connection run in different sessions, so the settings of a session are lost.
    #[error(
        "Postgres at {servers} is behind a pooler in transaction mode, which loses what each connection sets: set \
         DATABASE_SETTINGS=role and run `producer migrate`, or set pool_mode = session in the pooler, or name Postgres itself in \
         DATABASE_URL"
    )]
    SettingsLost {
        /// The servers that were asked.
        servers: String,
    },
    /// Prepared statements are lost.
    #[error(
        "Postgres at {servers} is behind a pooler in transaction mode, which loses prepared statements (PgBouncer before 1.21, or \
         with max_prepared_statements = 0): take PgBouncer 1.21 or newer with max_prepared_statements = 200 and \
         DATABASE_SETTINGS=role, or set pool_mode = session in the pooler, or name Postgres itself in DATABASE_URL"
    )]
    StatementsLost {
        /// The servers that were asked.
        servers: String,
    },
    /// `DATABASE_SETTINGS=role`, but the account has other settings.
    #[error(
        "DATABASE_SETTINGS is role, and the account \"{account}\" lacks what sessions rely on ({names}): run `producer migrate` with this account and \
         DATABASE_SETTINGS=role; where that has been done, the pooler's connections are older (RECONNECT in its console renews them)"
    )]
    OtherSettings {
        /// The account.
        account: String,
        /// The names of the settings.
        names: String,
    },
}

impl PostgresError {
    /// Returns why a connection to this address failed or broke.
    pub fn new(address: &Address, source: Error) -> PostgresError {
        let (advice, retryable) = explain(address, &source);
        PostgresError::Unreachable { advice, retryable, source }
    }

    /// Whether an open connection has ended. A new one can be opened.
    pub fn is_ended(&self) -> bool {
        matches!(self, PostgresError::Unreachable { source, retryable: true, .. } if is_ended(source))
    }

    /// Whether waiting helps: Postgres is away, starting or full. It does not help with a wrong address.
    pub fn is_retryable(&self) -> bool {
        match self {
            PostgresError::Unreachable { retryable, .. } => *retryable,
            PostgresError::Silent { .. } => true,
            PostgresError::NotUtf8 { .. }
            | PostgresError::SettingsLost { .. }
            | PostgresError::StatementsLost { .. }
            | PostgresError::OtherSettings { .. } => false,
        }
    }
}

/// Why a server is not used, apart from what Postgres answers and what the network reports.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A primary is required.
    #[error("it is a standby")]
    Standby,
    /// A server that only reads is required.
    #[error("its transactions write")]
    TakesWrites,
    /// `sslmode` requires TLS.
    #[error("it offers none")]
    NoTls,
    /// It answers a request for TLS with an error. No certificate vouches for the error's text.
    #[error("\"{0}\"")]
    InsteadOfTls(String),
    /// It answers a request for TLS with something else.
    #[error("the answer is not Postgres's")]
    NotPostgres,
}

pub(crate) fn refusal(error: &Error) -> Option<&Refusal> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

/// Whether the session was ended, by an administrator or by another process that gives the account new settings. A new
/// session can be opened.
pub fn is_ended(error: &Error) -> bool {
    // PgBouncer reports this with class 08.
    error.is_closed()
        || error.code().is_some_and(|code| *code == SqlState::ADMIN_SHUTDOWN || code.code().starts_with("08"))
}

/// Returns what is wrong and what would help, and whether another try may succeed.
pub(crate) fn explain(address: &Address, error: &Error) -> (String, bool) {
    let servers = address.servers();
    if let Some(answer) = error.as_db_error() {
        return refused(address, answer);
    }
    if let Some(certificate) = certificate_error(error) {
        return (untrusted(address, certificate), false);
    }
    if let Some(refusal) = refusal(error) {
        return unsuitable(&servers, refusal);
    }
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    if cause.contains("password missing") {
        let user = address.user();
        let advice = format!(
            "Postgres at {servers} wants a password of the account \"{user}\": add it to DATABASE_URL (postgres://user:password@…)"
        );
        return (advice, false);
    }
    (format!("Postgres at {servers} cannot be reached (DATABASE_URL)"), true)
}

/// Explains an answer of Postgres, or of a pooler before it.
fn refused(address: &Address, answer: &DbError) -> (String, bool) {
    let (servers, user, database) = (address.servers(), address.user(), address.database());
    let (code, said) = (answer.code(), answer.message());
    // A pooler's messages are in one language, but its codes say little. Postgres's messages are in that of
    // lc_messages.
    let pooler_says =
        |words: &[&str]| answer.routine().is_none() && words.iter().any(|words| said.contains(words));
    let no_entry = answer.routine() == Some("ClientAuthentication")
        && *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
        && address.is_plain();
    let advice = if *code == SqlState::INVALID_CATALOG_NAME || pooler_says(&["no such database"]) {
        format!(
            "there is no database \"{database}\" at {servers}: create it (CREATE DATABASE … ENCODING 'UTF8'), or name another in \
             DATABASE_URL"
        )
    } else if no_entry {
        format!(
            "Postgres at {servers} has no entry in pg_hba.conf that lets the account \"{user}\" in without TLS: add sslmode=require \
             to DATABASE_URL, or such an entry there"
        )
    // Class 28: pg_hba.conf, an unknown account, a wrong password. PgBouncer has no separate code for the last two.
    } else if code.code().starts_with("28") || pooler_says(&["password", "no such user", "auth"]) {
        format!(
            "Postgres at {servers} refuses the account \"{user}\": check user and password in DATABASE_URL, and pg_hba.conf"
        )
    } else if pooler_says(&["unsupported startup parameter"]) {
        format!(
            "the pooler at {servers} does not take a parameter of DATABASE_URL: add it to ignore_startup_parameters in its \
             settings, or remove it and set it for the account (ALTER ROLE … IN DATABASE … SET …)"
        )
    } else if pooler_says(&["statement pooling mode"]) {
        format!(
            "the pooler at {servers} is in statement mode, which has no transactions: set pool_mode = transaction or session there"
        )
    } else {
        return refused_for_now(&servers, user, code);
    };
    (advice, false)
}

/// Explains an answer that may be temporary: no connection is left, or Postgres starts or stops.
fn refused_for_now(servers: &str, user: &str, code: &SqlState) -> (String, bool) {
    if *code == SqlState::TOO_MANY_CONNECTIONS {
        let advice = format!(
            "Postgres at {servers} has no connection left for the account \"{user}\": lower DATABASE_POOL_SIZE, or raise \
             max_connections or the account's CONNECTION LIMIT"
        );
        return (advice, true);
    }
    // 08 connection, 53 resources, 57P shutdown and restart, 40 rollback.
    let passing = ["08", "53", "57P", "40"].iter().any(|class| code.code().starts_with(class));
    (format!("Postgres at {servers} refuses"), passing)
}

fn unsuitable(servers: &str, refusal: &Refusal) -> (String, bool) {
    match refusal {
        Refusal::Standby => {
            let advice = format!(
                "each server at {servers} that answers is a standby, and target_session_attrs=read-write (the default of several \
                 hosts) asks for a primary: name the primary in DATABASE_URL as well"
            );
            (advice, true)
        }
        Refusal::TakesWrites => {
            let advice = format!(
                "no server at {servers} is a standby, and target_session_attrs=read-only in DATABASE_URL asks for one: remove it"
            );
            (advice, true)
        }
        Refusal::NoTls => {
            let advice = format!(
                "Postgres at {servers} has no TLS, which sslmode in DATABASE_URL asks for: set ssl = on there, or sslmode=disable here"
            );
            (advice, false)
        }
        // Postgres may have run out of memory or of processes.
        Refusal::InsteadOfTls(_) => {
            (format!("Postgres at {servers} answers a request for TLS with an error"), true)
        }
        Refusal::NotPostgres => {
            (format!("what answers at {servers} is not Postgres: check host and port in DATABASE_URL"), false)
        }
    }
}

fn certificate_error(error: &Error) -> Option<&CertificateError> {
    let cause = error.source()?.downcast_ref::<io::Error>()?.get_ref()?;
    match cause.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(certificate) => Some(certificate),
        _ => None,
    }
}

fn untrusted(address: &Address, error: &CertificateError) -> String {
    let certificate = format!("the certificate of Postgres at {}", address.servers());
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "{certificate} is for another name: write the host in DATABASE_URL as the certificate has it, or set sslmode=verify-ca"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{certificate} has expired: renew it")
        }
        // This error comes from webpki. rustls has no name for it.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
            "{certificate} is an authority's own: make one with basicConstraints CA:FALSE, or one that the authority \
             has signed"
        ),
        _ if address.names_authorities => format!(
            "{certificate} is of an authority that is not in the file of sslrootcert in DATABASE_URL: add its CA there"
        ),
        _ => format!(
            "{certificate} is of an authority that is not known here: name the file of its CA with sslrootcert=… in DATABASE_URL"
        ),
    }
}
