//! One connection.

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls};
use tracing::debug;

use crate::address::Address;
use crate::settings::{SetBy, set_for_session};

/// A connection, and the task that reads from it, which ends with the last question.
pub struct Session {
    /// To ask by.
    pub client: Client,
    reader: JoinHandle<()>,
}

impl Session {
    /// Takes leave of Postgres, and waits until that is sent.
    pub async fn close(self) {
        drop(self.client);
        // It fails only when the task has panicked.
        let _ = self.reader.await;
    }

    /// For a pool, which ends the task itself.
    pub fn into_parts(self) -> (Client, JoinHandle<()>) {
        (self.client, self.reader)
    }
}

/// Opens a connection that is set for our statements. The address bounds the wait for the network alone; the caller bounds the
/// rest.
pub async fn connect(address: &Address) -> Result<Session, Error> {
    let session = match address.tls.clone() {
        Some(tls) => {
            let (client, connection) = address.config.connect(tls).await?;
            Session { client, reader: tokio::spawn(read(connection)) }
        }
        None => {
            let (client, connection) = address.config.connect(NoTls).await?;
            Session { client, reader: tokio::spawn(read(connection)) }
        }
    };
    if address.set_by == SetBy::Connection {
        set_for_session(&session.client).await?;
    }
    Ok(session)
}

/// Its end is known to whoever asks by it.
async fn read(connection: impl Future<Output = Result<(), Error>>) {
    if let Err(cause) = connection.await {
        let cause: &dyn std::error::Error = &cause;
        debug!(cause, "a connection to Postgres has ended");
    }
}
