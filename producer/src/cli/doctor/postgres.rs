//! The checks of `producer doctor` on Postgres.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::postgres::{Address, Pooling, SetBy, look_at_settings};
use store::{Server, Store};

use super::{Checklist, access, chain, inbox, lines, money, provider_keys, questions, schedules, webhooks};
use crate::cli::context::LedgerAccess;

/// A job's id carries the time of the host that made it, which may be a day ahead. From this skew on, an operator
/// should look at the clocks.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

pub(super) async fn look(ledger: &LedgerAccess, list: &mut Checklist) {
    let (store, address) = (&ledger.store, &ledger.address);
    let (session, pooling) = match ::postgres::look(address).await {
        Ok(found) => found,
        Err(error) => {
            list.report("database_connected", Err(chain(error)));
            return;
        }
    };
    list.report("database_connected", Ok(answers(address)));
    let settings = look_at_settings(address, &session).await.map(|()| settings(address.set_by(), pooling));
    if !list.report("database_settings", settings.map_err(chain)) {
        return;
    }
    let schema = migrations::check_schema(address, &session).await;
    let schema = schema.map(|()| "the schema of this release".to_owned());
    let current = list.report("schema_current", schema.map_err(chain));
    if current {
        let lacking = migrations::lacking_indexes(address, &session.client).await;
        list.report("indexes", lacking.map_err(chain).and_then(indexed));
    }
    session.close().await;
    if !current {
        return;
    }
    match store.server().await {
        Ok(server) => {
            list.report("database_writable", writable(&server));
            if pooling == Pooling::Own {
                list.report("database_room", room(&server, ledger.pool_size));
            }
        }
        Err(error) => {
            list.report("database_writable", Err(chain(error)));
        }
    }
    let rights = match store.missing_rights().await {
        Ok(missing) if missing.is_empty() => Ok("all rights on the ledger's tables".to_owned()),
        Ok(missing) => Err(format!("this account lacks {}", missing.join(", "))),
        Err(error) => Err(chain(error)),
    };
    list.report("database_rights", rights);
    let partitions = match store.partitions_ahead(ledger.retention).await {
        Ok(found) if found.missing == 0 => Ok(format!(
            "results, labels and model calls have partitions for {} hours more",
            found.ahead.as_secs() / 3_600
        )),
        Ok(found) => Err(format!("{} weeks have no partition: run `producer migrate`", found.missing)),
        Err(error) => Err(chain(error)),
    };
    list.report("partitions", partitions);
    list.report("clock", clock(store).await);
    inbox::look(store, list).await;
    lines::look(store, list).await;
    schedules::look(store, list).await;
    webhooks::look(store, list).await;
    questions::look(store, list).await;
    provider_keys::look(store, list).await;
    money::look(store, list).await;
    access::look(store, list).await;
}

fn answers(address: &Address) -> String {
    let way = if address.is_plain() {
        "without encryption (sslmode=require encrypts)"
    } else {
        "with a verified certificate where the server has TLS"
    };
    format!("Postgres answers at {}, {way}", address.servers())
}

fn settings(set_by: SetBy, pooling: Pooling) -> String {
    match (set_by, pooling) {
        (SetBy::Connection, _) => "each connection makes its own settings".to_owned(),
        (SetBy::Role, Pooling::Own) => "the account has the settings that its sessions need".to_owned(),
        (SetBy::Role, Pooling::Shared) => {
            "the account has the settings that its sessions need; a pooler shares the sessions by transaction"
                .to_owned()
        }
    }
}

fn indexed(lacking: usize) -> Result<String, String> {
    match lacking {
        0 => Ok("all partitions of the results have their indexes".to_owned()),
        lacking => Err(format!(
            "{lacking} partitions of harness_results lack an index, so lists of a tenant are slow: run `producer migrate`"
        )),
    }
}

fn writable(server: &Server) -> Result<String, String> {
    if server.is_standby {
        Err("Postgres is a standby, which accepts no writes: name the primary in DATABASE_URL, or all servers and \
                     target_session_attrs=read-write"
            .to_owned())
    } else {
        Ok("the server accepts writes".to_owned())
    }
}

fn room(server: &Server, pool_size: usize) -> Result<String, String> {
    let account = server.account_connections.map(|limit| (limit, "its CONNECTION LIMIT"));
    let (limit, name) = account.unwrap_or((server.connections, "max_connections"));
    if pool_size <= limit as usize {
        Ok(format!("the account \"{}\" may have {limit} connections", server.account))
    } else {
        Err(format!(
            "the account \"{}\" may have {limit} connections, and a process opens up to {pool_size}: lower DATABASE_POOL_SIZE, or \
             raise {name}",
            server.account
        ))
    }
}

async fn clock(store: &Store) -> Result<String, String> {
    let clock = store.clock().await.map_err(chain)?;
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let skew = ours.abs_diff(Duration::from_millis(clock.now_unix_ms()));
    if skew <= CLOCK_SKEW {
        Ok(format!("within {} ms of Postgres's", skew.as_millis()))
    } else {
        Err(format!(
            "{} s away from Postgres's, expected at most {}: set this host's clock",
            skew.as_secs(),
            CLOCK_SKEW.as_secs()
        ))
    }
}
