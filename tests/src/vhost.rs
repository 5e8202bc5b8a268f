//! A vhost for one test, on the broker that `AMQP_URL` names, created through its management API.

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Connection};
use queue::{Broker, BrokerConfig, DeadLetter, jobs_queue};
use tokio_util::sync::CancellationToken;

use crate::services::{address, unique_name, with_path};
use crate::{TIMEOUT, http, until};

/// A vhost; it is deleted when this is dropped.
pub struct Vhost {
    /// Its address.
    pub url: String,
    management: String,
    name: String,
}

impl Vhost {
    /// Creates an empty vhost.
    pub fn new() -> Vhost {
        let (server, management) = (address("AMQP_URL"), address("RABBITMQ_MANAGEMENT_URL"));
        let user = server.parse::<AMQPUri>().expect("AMQP_URL").authority.userinfo.username;
        let management = management.trim_end_matches('/').to_owned();
        let name = unique_name();
        let vhost = Vhost { url: with_path(&server, &name), management, name };
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        vhost
            .put("vhosts", "", "{}")
            .and_then(|()| vhost.put("permissions", &format!("/{user}"), all))
            .expect("a RabbitMQ with the management plugin at RABBITMQ_MANAGEMENT_URL");
        vhost
    }

    fn put(&self, what: &str, rest: &str, json: &str) -> Result<(), String> {
        http::put(&format!("{}/api/{what}/{}{rest}", self.management, self.name), json)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of the management API, with a user who has all rights.
    pub fn management_url(&self) -> &str {
        &self.management
    }

    /// Creates a user of the broker who may configure, write and read in this vhost whatever has a name that matches
    /// this pattern. Returns the vhost's address with this user in it.
    pub fn user(&self, may: &str) -> Guest {
        let (name, password) = (unique_name(), "guest");
        let permissions = format!(r#"{{"configure":"{may}","write":"{may}","read":"{may}"}}"#);
        let user = format!(r#"{{"password":"{password}","tags":""}}"#);
        http::put(&format!("{}/api/users/{name}", self.management), &user)
            .and_then(|()| self.put("permissions", &format!("/{name}"), &permissions))
            .expect("a RabbitMQ that accepts users");
        let (scheme, rest) = self.url.split_once("://").expect("an address");
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let url = format!("{scheme}://{name}:{password}@{host}");
        let permissions = format!("{}/api/permissions/{}/{name}", self.management, self.name);
        Guest { url, address: format!("{}/api/users/{name}", self.management), permissions }
    }

    /// Creates a user of the broker who may look at everything, with this part in its name and this password.
    pub fn monitor(&self, part: &str, password: &str) -> Monitor {
        let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let name = encoded(&format!("{}{part}", unique_name()));
        let address = format!("{}/api/users/{name}", self.management);
        let user = serde_json::json!({"password": password, "tags": "monitoring"});
        http::put(&address, &user.to_string())
            .and_then(|()| {
                self.put("permissions", &format!("/{name}"), r#"{"configure":"","write":"","read":""}"#)
            })
            .expect("a RabbitMQ that accepts users");
        Monitor { credentials: format!("{name}:{}", encoded(password)), address }
    }

    /// The names of its queues, from the management API.
    pub fn queues(&self) -> Vec<String> {
        let list = format!("{}/api/queues/{}?columns=name", self.management, self.name);
        let (_, body) = http::get(&list).expect("an answer");
        let queues: Vec<serde_json::Value> = serde_json::from_str(&body).expect("JSON");
        queues.iter().filter_map(|queue| Some(queue["name"].as_str()?.to_owned())).collect()
    }

    /// Opens a supervised connection, as the programs do.
    pub async fn broker(&self) -> Broker {
        let config = BrokerConfig::new(&self.url, "test").with_pools([job::Name::default()]);
        let broker = Broker::start(config, CancellationToken::new());
        broker.ready(TIMEOUT).await.expect("a broker that answers");
        broker
    }

    /// Opens a plain lapin connection.
    pub async fn lapin(&self) -> Connection {
        Connection::connect(&self.url, Default::default()).await.expect("a broker that answers")
    }

    /// Publishes bodies to the default pool as a foreign client would, and waits for the confirms.
    pub async fn publish(&self, messages: Vec<(Vec<u8>, BasicProperties)>) {
        let connection = self.lapin().await;
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(Default::default()).await.expect("confirms");
        let queue = jobs_queue(&job::Name::default());
        for (body, properties) in messages {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent =
                channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties).await;
            let confirm = sent.expect("published").await.expect("an answer");
            assert!(confirm.is_ack() && confirm.take_message().is_none(), "confirmed and routed");
        }
        connection.close(200, "done".into()).await.expect("closed");
    }

    /// Returns how many messages wait in the default pool's queue, and how many consumers it has.
    pub async fn waiting_and_consumers(&self) -> (u32, u32) {
        let queue = jobs_queue(&job::Name::default());
        self.look_at(&queue).await.expect("a queue")
    }

    /// Returns how many messages wait in a queue, and how many consumers it has.
    pub async fn look_at(&self, queue: &str) -> lapin::Result<(u32, u32)> {
        let connection = Connection::connect(&self.url, Default::default()).await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(queue.into(), options, Default::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok((queue.message_count(), queue.consumer_count()))
    }

    /// The connections to this vhost that the management API knows: the client's name and the broker's name of each.
    pub fn connections(&self) -> Vec<(String, String)> {
        let list = format!("{}/api/vhosts/{}/connections", self.management, self.name);
        let (_, body) = http::get(&list).expect("an answer");
        let connections: Vec<serde_json::Value> = serde_json::from_str(&body).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let named = connections
            .iter()
            .filter_map(|one| Some((text(&one["user_provided_name"])?, text(&one["name"])?)));
        named.collect()
    }

    /// Limits the number of connections from now on; -1 removes the limit. Existing connections stay.
    pub fn limit_connections(&self, most: i32) {
        let value = format!(r#"{{"value":{most}}}"#);
        self.put("vhost-limits", "/max-connections", &value).expect("a RabbitMQ that accepts limits");
    }

    /// Closes every connection to this vhost from the broker's side, as an operator would. Returns how many.
    pub fn close_connections(&self) -> Result<usize, String> {
        self.close_connections_called("")
    }

    /// As `close_connections`, but only those whose client's name contains `part`.
    pub fn close_connections_called(&self, part: &str) -> Result<usize, String> {
        let list = format!("{}/api/vhosts/{}/connections", self.management, self.name);
        let (_, body) = http::get(&list).map_err(|error| error.to_string())?;
        let connections: Vec<serde_json::Value> =
            serde_json::from_str(&body).map_err(|error| format!("{error} in: {body}"))?;
        let own_name = |connection: &serde_json::Value| {
            let own = &connection["client_properties"]["connection_name"];
            part.is_empty() || own.as_str().is_some_and(|own| own.contains(part))
        };
        let called = connections.iter().filter(|connection| own_name(connection));
        let names = called.filter_map(|connection| connection["name"].as_str());
        let mut closed = 0;
        for name in names {
            let name: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            // A connection that has ended meanwhile is not found, which is fine.
            closed +=
                usize::from(http::delete(&format!("{}/api/connections/{name}", self.management)).is_ok());
        }
        Ok(closed)
    }

    /// The messages in `harness.dead`, once there are so many. What another reader has looked at comes back a moment after it.
    pub async fn so_many_dead_letters(&self, count: usize) -> Vec<DeadLetter> {
        until("the dead letters", async || {
            Some(self.dead_letters().await).filter(|letters| letters.len() == count)
        })
        .await
    }

    /// The messages in `harness.dead` that nobody else looks at.
    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        let broker = self.broker().await;
        let letters = broker.dead_letters(1_000).await.expect("dead letters");
        broker.close().await;
        letters
    }
}

/// A user of the broker; deleted when this is dropped.
pub struct Guest {
    /// The vhost's address with this user in it.
    pub url: String,
    address: String,
    permissions: String,
}

impl Guest {
    /// Sets what the user may do with names that match these patterns. A channel that is already open keeps its old
    /// rights.
    pub fn may(&self, configure: &str, write: &str, read: &str) {
        let permissions = serde_json::json!({"configure": configure, "write": write, "read": read});
        http::put(&self.permissions, &permissions.to_string()).expect("a RabbitMQ that accepts permissions");
    }
}

/// A read-only user of the broker; deleted when this is dropped.
pub struct Monitor {
    credentials: String,
    address: String,
}

impl Monitor {
    /// The name and password in the form of an address.
    pub fn credentials(&self) -> &str {
        &self.credentials
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        remove_user(&self.address);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        remove_user(&self.address);
    }
}

fn remove_user(address: &str) {
    if let Err(error) = http::delete(address) {
        eprintln!("the user {address} was not deleted: {error}");
    }
}

impl Default for Vhost {
    fn default() -> Vhost {
        Vhost::new()
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        if let Err(error) = http::delete(&format!("{}/api/vhosts/{}", self.management, self.name)) {
            eprintln!("the vhost {} was not deleted: {error}", self.name);
        }
    }
}
