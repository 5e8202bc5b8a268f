//! A private Postgres with all ways in: TLS, IPv6, a Unix socket and passwords.

use std::path::PathBuf;
use std::process::Command;

use sqlx::{Connection, PgConnection};

use crate::authority::Authority;
use crate::database::{Database, run};
use crate::keeper::Keeper;
use crate::services::with_path;

/// The server; it is stopped when this is dropped.
pub struct GuardedPostgres {
    /// Its address.
    pub url: String,
    /// Its port.
    pub port: u16,
    /// The folder of its Unix socket and of its data.
    pub folder: PathBuf,
    /// The authority of its certificate, which is made for the name `localhost`.
    pub authority: Authority,
    keeper: Keeper,
}

impl GuardedPostgres {
    /// Starts a server, which takes some seconds. The account `locked` needs its password, `right`.
    pub async fn start() -> GuardedPostgres {
        let keeper = Keeper::start(&["DATABASE_URL"], &[]).await;
        let url = keeper.url.clone();
        let port = url.rsplit([':', '/']).nth(1).and_then(|port| port.parse().ok()).expect("a port");
        let mut admin = PgConnection::connect(&url).await.expect("our own Postgres");
        let folder: String =
            sqlx::query_scalar("SHOW data_directory").fetch_one(&mut admin).await.expect("a folder");
        let folder = PathBuf::from(folder);
        let authority = Authority::new();
        let certificate = authority.certificate("localhost");
        // The files must belong to the server's user.
        let script = r#"cp "$1" "$3/server.crt" && cp "$2" "$3/server.key" && chmod 600 "$3/server.key" &&
            chown --reference="$3/PG_VERSION" "$3/server.crt" "$3/server.key""#;
        let copying = [&certificate.chain, &certificate.key, &folder];
        let copied = Command::new("sh").args(["-c", script, "sh"]).args(copying).status().expect("a shell");
        assert!(copied.success());
        let rules = folder.join("pg_hba.conf");
        let others = std::fs::read_to_string(&rules).expect("the rules");
        std::fs::write(&rules, format!("host all locked all scram-sha-256\n{others}")).expect("written");
        for sql in [
            "CREATE ROLE locked LOGIN PASSWORD 'right' IN ROLE harness",
            "ALTER SYSTEM SET ssl = on",
            "ALTER SYSTEM SET listen_addresses = '127.0.0.1, ::1'",
            &format!("ALTER SYSTEM SET unix_socket_directories = '{}'", folder.display()),
        ] {
            run(&mut admin, sql.to_owned()).await;
        }
        keeper.run(&["restart-postgres"]).await;
        GuardedPostgres { url, port, folder, authority, keeper }
    }

    /// Creates a database on it.
    pub async fn database(&self) -> Database {
        Database::made_on(&self.url, "").await
    }

    /// The address of one of its databases by another way in, such as `harness@localhost:5432`.
    pub fn by(&self, way: &str, database: &Database) -> String {
        let name = database.url.rsplit('/').next().expect("a name");
        with_path(&format!("postgres://{way}"), name)
    }

    /// Makes it a standby.
    pub async fn become_standby(&self) {
        self.keeper.run(&["stop-postgres"]).await;
        std::fs::write(self.folder.join("standby.signal"), "").expect("written");
        self.keeper.run(&["start-postgres"]).await;
    }

    /// Makes it accept writes again.
    pub async fn become_primary(&self) {
        self.keeper.run(&["stop-postgres"]).await;
        std::fs::remove_file(self.folder.join("standby.signal")).expect("removed");
        self.keeper.run(&["start-postgres"]).await;
    }
}
